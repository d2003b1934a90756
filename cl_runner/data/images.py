"""Images in folders as a data set; each is decoded as its suffix says, or not at all."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_runner.data.arrays import SPLITS, Arrays, check_free, told
from cl_runner.errors import UserError, check
from cl_runner.machine.cores_and_gpus import cores
from cl_runner.machine.reading import regular

FOLDER = "a folder with images in train/<class>/ and test/<class>/"
# What the ends of names promise.
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
AT_ONCE = 64  # images that a thread decodes in a row
ONE_SIZE = "set benchmark.resize=32, or another size, or bring all images to one"
GREY = ("1", "L")  # Pillow's modes
MOST_PIXELS = 2**26  # of one image
TOO_LARGE = f"has more than {MOST_PIXELS} pixels (8192x8192): make it smaller"


def folder(path: Path, resize: int | None = None) -> Arrays:
    """The images `path/<split>/<class>/*`: one channel where all are grey, else RGB.

    Classes and files are sorted by name. resize: see `decoded`. Raises UserError as that does, and
    for a class that has test images only.
    """
    train, test = (_listing(path / split) for split in SPLITS)
    for name in test:
        known = f"{path / 'test' / name}: class {name!r} is missing in {path / 'train'}"
        check(name in train, known)
    classes, parts = tuple(train), (train, test)
    x = decoded([file for part in parts for files in part.values() for file in files], path, resize)
    y_train, y_test = (
        torch.tensor([classes.index(name) for name, files in part.items() for _ in files])
        for part in parts
    )
    return Arrays(x[: len(y_train)], y_train, x[len(y_train) :], y_test, classes)


def _listing(folder: Path) -> dict[str, list[str]]:
    """The images in the class folders of `folder`, by class, hidden ones left out."""
    check(folder.is_dir(), f"data.path must be {FOLDER}; {folder} is missing")
    names = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != ".")
    check(bool(names), f"data.path must be {FOLDER}; {folder} holds no class")
    return {name: images_in(folder / name) for name in names}


def images_in(folder: Path) -> list[str]:
    """The paths of a folder's images, sorted, hidden ones left out. Raises UserError for none."""
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if is_image(e.name) and not e.is_dir())
    kinds = ", ".join(SUFFIXES)
    check(bool(found), f"{folder} holds no image ({kinds}): add some or delete it")
    return [f"{folder}{os.sep}{name}" for name in found]  # a Path for each would take seconds


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its name."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - speed


def decoded(files: Sequence[str], path: Path, resize: int | None) -> Tensor:
    """The images [N, C, H, W] uint8: one channel where all are grey, else RGB.

    resize: height and width that each is brought to, by Pillow's bilinear filter, which weighs all
    pixels that one stands for where an image becomes smaller; proportions are not kept. Several are
    decoded at once. Raises UserError where a file is damaged, where sizes differ and nothing is
    resized, and where memory has no room for all of them, which are those below `path`.
    """
    from PIL import Image

    with warnings.catch_warnings():  # for all threads
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told otherwise
        grey, first = True, (0, 0)
        for i, file in enumerate(files):  # all headers, before any pixel
            with _opened(file) as image:
                (w, h), grey = image.size, grey and image.mode in GREY
            first = first if i else (w, h)
            differ = f"{file} has {w}x{h} pixels, but {files[0]} has {first[0]}x{first[1]}"
            fitting = (w, h) == first or resize is not None
            check(fitting, f"{differ}: {ONE_SIZE}")
        width, height = first if resize is None else (resize, resize)
        shape = len(files), 1 if grey else 3, height, width
        check_free(f"the images of {path}", math.prod(shape))
        x = np.empty(shape, np.uint8)

        def fill(start: int) -> None:
            for i, file in enumerate(files[start : start + AT_ONCE], start):
                x[i] = _image(file, grey, (width, height))

        with ThreadPoolExecutor(max_workers=cores()) as pool:
            list(pool.map(fill, range(0, len(files), AT_ONCE)))
    return torch.from_numpy(x)


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """An image of which no pixel is decoded yet, of the format that its suffix promises.

    Pillow knows many more formats, and hands some of them to other programs. Raises UserError.
    """
    from PIL import Image

    kind = SUFFIXES[os.path.splitext(file)[1].lower()]  # noqa: PTH122
    damage = told(f"{file} is damaged, or no {kind} image", "replace or delete it")
    with damage, regular(Path(file)) as stream:
        try:
            image = Image.open(stream, formats=(kind,))
        except Image.DecompressionBombError:
            raise UserError(f"{file} {TOO_LARGE}") from None
        check(math.prod(image.size) <= MOST_PIXELS, f"{file} {TOO_LARGE}")
        yield image


def _image(file: str, grey: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image [C, H, W] of a size (width, height). Raises UserError."""
    from PIL import Image

    with _opened(file) as image:
        deep = image.mode.startswith(("I", "F"))
        check(not deep, f"{file} has more than 8 bits per pixel ({image.mode}): convert it to 8")
        # A palette goes by way of RGBA, because it may hold transparency.
        plain = image.convert("RGBA") if image.mode == "P" else image
        plain = plain.convert("L" if image.mode in GREY else "RGB")
        if plain.size != size:
            plain = plain.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(plain.convert("L" if grey else "RGB"))
        channels_first: NDArray[np.uint8] = np.atleast_3d(pixels).transpose(2, 0, 1)
        return channels_first
