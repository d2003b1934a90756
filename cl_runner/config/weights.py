"""`init_from`: where the trained weights are that a run starts from, and which they are.

What a run is known by is not the name of a file but what is in it: in config.yaml the path is
followed by `#sha256=` and the first digits of the file's digest. A file that has changed since is
refused, and makes another run. No torch in here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cl_runner.errors import UserError, check

WEIGHTS = "weights.safetensors"  # of a run with checkpoint.keep=true, beside its checkpoint
PIN = "#sha256="
DIGITS = 16  # of the digest, as of `config_hash`
REMEDY = "safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors') converts a model"


def weights_file(init_from: str) -> Path:
    """The file that `init_from` means: itself, or that of a run's folder. Raises UserError."""
    name = init_from.partition(PIN)[0]
    path = Path(name).expanduser()
    if path.is_dir():
        file = path / WEIGHTS
        lacking = f"init_from={name}: there is no {WEIGHTS} in that folder; a run leaves one"
        check(file.is_file(), f"{lacking} with checkpoint.keep=true")
        return file
    wanted = f"init_from={name}: it must be the folder of a run or a .safetensors file"
    check(path.exists(), f"{wanted}; it does not exist")
    safe = path.suffix == ".safetensors"
    check(safe, f"{wanted}, which cannot execute anything as a pickle can; {REMEDY}")
    check(path.is_file(), f"{wanted}; it is no regular file")
    return path


def pinned(init_from: str) -> str:
    """`init_from` with the digest of what it means; one that is there must be that of the file.

    Raises UserError where the file is not there or has changed.
    """
    name, pin, known = init_from.partition(PIN)
    file = weights_file(init_from)
    try:
        own = digest(file)
    except OSError as error:
        raise UserError(f"init_from={name}: cannot read {file}: {error.strerror}") from None
    message = f"init_from={name}: {file} is not what it was: its SHA-256 begins with {own}, not"
    check(not pin or own == known, f"{message} with {known[:DIGITS]}")
    return f"{name}{PIN}{own}"


def digest(file: Path) -> str:
    """The first digits of a file's SHA-256."""
    found = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            found.update(chunk)
    return found.hexdigest()[:DIGITS]
