"""Images in folders as a data set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cl_runner.data.arrays import SPLITS, Arrays, Decoded, check_free, tensors, told
from cl_runner.errors import UserError, check
from cl_runner.machine.reading import regular

FOLDER = "a folder with images in train/<class>/ and test/<class>/"
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}  # what they promise
MOST_PIXELS = 2**26  # of one image
TOO_LARGE = f"has more than {MOST_PIXELS} pixels (8192x8192): make it smaller"


def folder(path: Path) -> Arrays:
    """The images `path/<split>/<class>/*`: one channel where all are grey, else RGB.

    Classes and files are sorted by name. Raises UserError where sizes differ or a file is damaged.
    """
    found = {split: _listing(path / split) for split in SPLITS}
    classes = tuple(dict.fromkeys(file.parent.name for file in found["train"]))
    first, grey = found["train"][0], True
    sizes: dict[Path, tuple[int, int]] = {}
    for file in (*found["train"], *found["test"]):  # all headers, before any pixel
        name = file.parent.name
        check(name in classes, f"{file.parent}: class {name!r} is missing in {path / 'train'}")
        with _opened(file) as image:
            (w, h), grey = image.size, grey and image.mode in ("1", "L")
        sizes[file] = w, h
        differ = f"{file} has {w}x{h} pixels, but {first} has {sizes[first][0]}x{sizes[first][1]}"
        check((w, h) == sizes[first], f"{differ}: bring all images of data.path to one size")
    check_free(f"the images of {path}", len(sizes) * w * h * (1 if grey else 3))
    images = {file: _image(file) for file in sizes}
    if any(image.ndim == 3 for image in images.values()):
        images = {f: i if i.ndim == 3 else np.stack([i] * 3, axis=-1) for f, i in images.items()}
    arrays: Decoded = {}
    for split, files in found.items():
        arrays[f"x_{split}"] = np.stack([images[file] for file in files])
        arrays[f"y_{split}"] = np.array([classes.index(file.parent.name) for file in files])
    return tensors(arrays, classes)


def _listing(folder: Path) -> list[Path]:
    """All images in the class folders of `folder`, sorted, hidden ones left out."""
    check(folder.is_dir(), f"data.path must be {FOLDER}; {folder} is missing")
    files: list[Path] = []
    for sub in sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != "."):
        images = sorted(f for f in sub.iterdir() if f.suffix.lower() in SUFFIXES)
        images = [f for f in images if f.name[0] != "." and not f.is_dir()]
        check(bool(images), f"{sub} holds no image ({', '.join(SUFFIXES)}): add some or delete it")
        files += images
    check(bool(files), f"data.path must be {FOLDER}; {folder} holds no class")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An image of which no pixel is decoded yet, of the format that its suffix promises.

    Pillow knows many more formats, and hands some of them to other programs. Raises UserError.
    """
    from PIL import Image

    kind = SUFFIXES[file.suffix.lower()]
    fault = f"{file} is damaged, or no {kind} image"
    damage = told(fault, "replace or delete it")
    with damage, regular(file) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told below
        try:
            image = Image.open(stream, formats=(kind,))
        except Image.DecompressionBombError:
            raise UserError(f"{file} {TOO_LARGE}") from None
        check(math.prod(image.size) <= MOST_PIXELS, f"{file} {TOO_LARGE}")
        yield image


def _image(file: Path) -> NDArray[np.uint8]:
    """One image, [H, W] if it is grey, else [H, W, 3]. Raises UserError."""
    with _opened(file) as image:
        deep = image.mode.startswith(("I", "F"))
        check(not deep, f"{file} has more than 8 bits per pixel ({image.mode}): convert it to 8")
        # A palette goes by way of RGBA, because it may hold transparency.
        plain = image.convert("RGBA") if image.mode == "P" else image
        return np.asarray(plain.convert("L" if image.mode in ("1", "L") else "RGB"))
