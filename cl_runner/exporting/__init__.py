"""From a finished run to a model that is used without it."""
