"""The command `cl-run`: what is typed, what is answered, how it ends."""
