"""`model.weights`: where the trained weights are that a run starts from, and which they are.

What a run is known by is not the name of a file but what is in it: in config.yaml the path is
followed by `#sha256=` and the first digits of the file's digest. A file that has changed since is
refused, and makes another run. No torch in here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cl_runner.errors import UserError, check

WEIGHTS = "weights.safetensors"  # of a run with checkpoint.keep=true, beside its checkpoint
SUFFIXES = (".safetensors", ".pt", ".pth")
PIN = "#sha256="
DIGITS = 16  # of the digest, as of `config_hash`


def weights_file(weights: str) -> Path:
    """The file that `model.weights` means: itself, or that of a run's folder. Raises UserError."""
    name = weights.partition(PIN)[0]
    path = Path(name).expanduser()
    if path.is_dir():
        file = path / WEIGHTS
        lacking = f"model.weights={name}: there is no {WEIGHTS} in that folder; a run leaves one"
        check(file.is_file(), f"{lacking} with checkpoint.keep=true")
        return file
    wanted = f"model.weights={name}: it must be the folder of a run or a {', '.join(SUFFIXES)} file"
    check(path.exists(), f"{wanted}; it does not exist")
    check(path.suffix in SUFFIXES and path.is_file(), wanted)
    return path


def pinned(weights: str) -> str:
    """`model.weights` with the digest of what it means; one that is there must be the file's.

    Raises UserError where the file is not there or has changed.
    """
    name, pin, known = weights.partition(PIN)
    file = weights_file(weights)
    try:
        own = digest(file)
    except OSError as error:
        raise UserError(f"model.weights={name}: cannot read {file}: {error.strerror}") from None
    message = f"model.weights={name}: {file} is not what it was: its SHA-256 begins with {own}, not"
    check(not pin or own == known, f"{message} with {known[:DIGITS]}")
    return f"{name}{PIN}{own}"


def digest(file: Path) -> str:
    """The first digits of a file's SHA-256."""
    found = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            found.update(chunk)
    return found.hexdigest()[:DIGITS]
