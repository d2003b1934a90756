"""Data sets as tensors: embedded digits, torchvision's, your own .npz file or folder of images.

A named data set is decoded once, into `<data.root>/<dataset>.npz`; from then on that file is all
that is read. sklearn, torchvision, PIL and filelock are imported only where they are used.
"""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_runner.errors import UserError, check, exhausted, one_of
from cl_runner.machine import ram
from cl_runner.machine.reading import regular

FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASSES: dict[str, tuple[str, ...]] = {  # of the named data sets, in the order of their labels
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion_mnist": tuple(FASHION.split(",")),
    "cifar10": tuple(CIFAR10.split()),
    "cifar100": tuple(CIFAR100.split()),
}
TORCHVISION = {  # class in torchvision.datasets, and where it keeps its files below root
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
OWN = {
    "npz": "an .npz file that holds x_train, y_train, x_test and y_test",
    "folder": "a folder with images in train/<class>/ and test/<class>/",
}
KEYS = ("x_train", "y_train", "x_test", "y_test")
SPLITS = ("train", "test")
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}  # what they promise
MOST_PIXELS = 2**26  # of one image
TOO_LARGE = f"has more than {MOST_PIXELS} pixels (8192x8192): make it smaller"
HEADER = 2**16  # bytes; numpy refuses longer ones of arrays
SMALL = 2**26  # bytes; arrays below may be packed as closely as they like
DENSEST = 200  # how many times its packed size a larger array may be
DELETE = "delete it, so that it is made again"
CORRECT = "correct the file that data.path names"
OFFLINE = "take benchmark=permuted_digits or split_digits, which need no download"
TIMEOUT = 30.0  # seconds without an answer that end a download
Decoded = dict[str, NDArray[Any]]  # by KEYS: x [N, H, W], [N, H, W, C] or [N, D]; y [N] integers
log = logging.getLogger(__name__)
_kept: list[Any] = []  # torch forgets schemas when their Library is collected


class Damaged(UserError):
    """A file that is not what was once written: cut, or with other bits."""


class Arrays(NamedTuple):
    """A data set in memory; feature vectors of length D are images of size 1 x D."""

    x_train: Tensor  # [N, C, H, W] uint8, or float32 from a floating .npz file
    y_train: Tensor  # [N]          int64, 0 .. len(classes) - 1
    x_test: Tensor  # [M, C, H, W]  as x_train
    y_test: Tensor  # [M]           as y_train
    classes: tuple[str, ...]  # names
    slice_train: Tensor | None = None  # [N] int64, which slice a sample belongs to; None: no slices
    slice_test: Tensor | None = None  # [M] likewise
    slices: tuple[str, ...] = ()  # their names, in the order of the tasks


def load(
    dataset: str, root: Path, path: Path | None, tell: Callable[[str], None] = log.info
) -> Arrays:
    """The data set, from the cache folder `root` (data.root) or the user's own `path` (data.path).

    Downloads what is neither embedded nor below root, and makes a damaged copy in root again, which
    it tells. Raises UserError, in one line, for data that is missing, damaged or of the wrong kind.
    """
    one_of("benchmark.dataset", dataset, (*CLASSES, *OWN))
    try:
        if dataset in CLASSES:
            check(path is None, f"data.path must not be set: {dataset} is read from data.root")
            return _named(dataset, _expanded(root), tell)
        check(path is not None, f"data.path must be set: {OWN[dataset]}")
        path = _expanded(Path(path or ""))
        found = "is something else" if path.exists() else "does not exist"
        right = path.is_file() if dataset == "npz" else path.is_dir()
        check(right, f"data.path must be {OWN[dataset]}; {path} {found}")
        return _npz(path) if dataset == "npz" else _folder(path)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if exhausted(error):
            message = f"not enough memory to read {dataset}: free some, or take a smaller data set"
            raise UserError(message) from None
        if not isinstance(error, OSError):
            raise
        # A folder that may not be entered, a disk that fails.
        message = f"cannot read the data ({_reason(error)}): check data.root and data.path"
        raise UserError(message) from None


def _named(dataset: str, root: Path, tell: Callable[[str], None]) -> Arrays:
    """A named data set from `<root>/<dataset>.npz`, which is made first where it is not there."""
    cached = root / f"{dataset}.npz"
    with suppress(Damaged):
        if cached.exists():
            return _cached(dataset, cached)
    from filelock import FileLock

    check(not root.exists() or root.is_dir(), f"data.root must be a folder, {root} is a file")
    lock = FileLock(root / f".{dataset}.lock")
    obstacle = ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # read-only, or a file system without locks
        obstacle = f"data.root cannot be written: {_reason(error)}"
    damage = ""
    try:
        try:
            if cached.exists():  # made by the process that had the lock
                return _cached(dataset, cached)
        except Damaged as error:
            damage = str(error)
        arrays = _digits() if dataset == "digits" else _from_torchvision(dataset, root)
        arrays = arrays or _download(dataset, root, obstacle, damage)
        if damage:
            tell(f"{damage}: it is made again")
        if not obstacle:
            _save(cached, arrays)
        return _tensors(arrays, CLASSES[dataset])
    finally:
        lock.release()


def _cached(dataset: str, file: Path) -> Arrays:
    """The data set from its decoded copy. Raises Damaged, or UserError for another's file."""
    arrays = _read(file, DELETE)
    _check(arrays, file, DELETE, CLASSES[dataset])
    return _tensors(arrays, CLASSES[dataset])


def _save(file: Path, arrays: Decoded) -> None:
    """Write the decoded copy, whole or not at all: a disk that is full costs no more than that."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]  # no key is allow_pickle
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _digits() -> Decoded:
    """The 8x8 digits that scikit-learn carries, 0 .. 16 scaled to 0 .. 255.

    They have no official split. Within each class the last 20 % in the file's order are the test
    set: the file goes from writer to writer, so these are by other writers than those of training,
    which is harder than a random split.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    y = digits.target.astype(np.int64)
    test = np.zeros(len(y), dtype=bool)
    for c in range(10):
        rows = np.flatnonzero(y == c)
        test[rows[len(rows) - len(rows) // 5 :]] = True
    return dict(zip(KEYS, (x[~test], y[~test], x[test], y[test]), strict=True))


def _torchvision() -> Any:
    """The module torchvision.datasets, also where torchvision was built for another torch.

    Its compiled operators cannot load then, and its import fails for want of the schemas of two of
    them, which nothing here calls. Defined by hand they let the import succeed.
    """
    with _told("torchvision cannot be imported", f"install one that fits torch, or {OFFLINE}"):
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            library: Any = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)
            import torchvision
    return torchvision.datasets


def _files(cls: Any) -> tuple[dict[str, str], dict[str, str]]:
    """MD5 by path below root, of torchvision's decoded files ("": unknown) and of its archives."""
    if hasattr(cls, "resources"):  # the MNIST family; the order is that of KEYS
        archives = {f"{cls.__name__}/raw/{name}": md5 for name, md5 in cls.resources}
        return {name.removesuffix(".gz"): "" for name in archives}, archives
    batches = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    return {f"{cls.base_folder}/{name}": md5 for name, md5 in batches}, {cls.filename: cls.tgz_md5}


def _from_torchvision(dataset: str, root: Path) -> Decoded:
    """What lies below root in torchvision's layout, or {} unless all of its files are there.

    Raises UserError, naming the file, where one of them is damaged.
    """
    name, folder = TORCHVISION[dataset]
    datasets = _torchvision()
    cls = getattr(datasets, name)
    files, _ = _files(cls)
    arrays: Decoded = {}
    if not all((root / file).exists() for file in files):
        return arrays
    if hasattr(cls, "resources"):
        for key, file in zip(KEYS, files, strict=True):
            read = getattr(datasets.mnist, f"read_{'image' if key[0] == 'x' else 'label'}_file")
            with _told(f"{root / file} is damaged", DELETE):
                arrays[key] = read(str(root / file)).numpy()
    else:
        for file, md5 in files.items():
            right = datasets.utils.check_integrity(root / file, md5)
            check(right, f"{root / file} is damaged (wrong checksum): {DELETE}")
        for split in SPLITS:
            part = cls(root, train=split == "train")
            arrays |= {f"x_{split}": part.data, f"y_{split}": np.asarray(part.targets)}
    _check(arrays, root / folder, DELETE, CLASSES[dataset])
    return arrays


def _download(dataset: str, root: Path, obstacle: str, damage: str) -> Decoded:
    """The data set by way of torchvision's download, in a temporary folder that does not stay.

    Archives that lie below root in torchvision's layout are used instead of the network. Only for
    the holder of root's lock; `obstacle` says why there is none, `damage` what is wrong with the
    decoded copy. Raises UserError.
    """
    name, folder = TORCHVISION[dataset]
    datasets = _torchvision()
    cls = getattr(datasets, name)
    temporary = root / f".{dataset}.download"
    timeout = socket.getdefaulttimeout()
    fault = f"{dataset} is neither in {root / dataset}.npz nor in {root / folder}"
    fault = f"{damage}, {dataset} is not in {root / folder}" if damage else fault
    remedy = "run once with internet, or copy the files there (data.root=DIR or CL_RUNNER_DATA=DIR)"
    try:
        with _told(f"{fault}, and its download failed", f"{remedy}, or {OFFLINE}"):
            if obstacle:
                raise OSError(obstacle)
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            for archive, md5 in _files(cls)[1].items():
                if (root / archive).exists():
                    right = datasets.utils.check_integrity(root / archive, md5)
                    check(right, f"{root / archive} is damaged (wrong checksum): {DELETE}")
                    (temporary / archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / archive, temporary / archive)
            socket.setdefaulttimeout(TIMEOUT)
            cls(temporary, download=True)
        return _from_torchvision(dataset, temporary)
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(temporary, ignore_errors=True)


def _npz(file: Path) -> Arrays:
    """The user's .npz file; labels are numbered in the sorted order of the training labels."""
    with regular(file) as stream:
        packed = stream.read(2) == b"PK"
    wanted = "data.path must be an .npz file, or with benchmark=split_folder a folder of images"
    check(packed, f"{wanted}; {file} is something else")
    try:
        arrays = _read(file, CORRECT)
    except Damaged as error:
        raise UserError(f"{error}: {CORRECT}") from None
    _check(arrays, file, CORRECT)
    for key in ("x_train", "x_test"):
        if arrays[key].dtype != np.uint8:
            with np.errstate(over="ignore"):
                arrays[key] = arrays[key].astype(np.float32, copy=False)
            finite = bool(np.isfinite(arrays[key]).all())
            check(finite, f"{file}: {key} must be finite in float32; {CORRECT}")
    values = np.unique(arrays["y_train"])
    unknown = np.setdiff1d(arrays["y_test"], values)
    some = ", ".join(str(value) for value in unknown[:5])
    check(not some, f"{file}: y_test has labels that y_train has not, {some}; {CORRECT}")
    for key in ("y_train", "y_test"):
        arrays[key] = np.searchsorted(values, arrays[key])
    return _tensors(arrays, tuple(str(value) for value in values))


def _folder(path: Path) -> Arrays:
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
    _check_free(f"the images of {path}", len(sizes) * w * h * (1 if grey else 3))
    images = {file: _image(file) for file in sizes}
    if any(image.ndim == 3 for image in images.values()):
        images = {f: i if i.ndim == 3 else np.stack([i] * 3, axis=-1) for f, i in images.items()}
    arrays: Decoded = {}
    for split, files in found.items():
        arrays[f"x_{split}"] = np.stack([images[file] for file in files])
        arrays[f"y_{split}"] = np.array([classes.index(file.parent.name) for file in files])
    return _tensors(arrays, classes)


def _listing(folder: Path) -> list[Path]:
    """All images in the class folders of `folder`, sorted, hidden ones left out."""
    check(folder.is_dir(), f"data.path must be {OWN['folder']}; {folder} is missing")
    files: list[Path] = []
    for sub in sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != "."):
        images = sorted(f for f in sub.iterdir() if f.suffix.lower() in SUFFIXES)
        images = [f for f in images if f.name[0] != "." and not f.is_dir()]
        check(bool(images), f"{sub} holds no image ({', '.join(SUFFIXES)}): add some or delete it")
        files += images
    check(bool(files), f"data.path must be {OWN['folder']}; {folder} holds no class")
    return files


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An image of which no pixel is decoded yet, of the format that its suffix promises.

    Pillow knows many more formats, and hands some of them to other programs. Raises UserError.
    """
    from PIL import Image

    kind = SUFFIXES[file.suffix.lower()]
    fault = f"{file} is damaged, or no {kind} image"
    told = _told(fault, "replace or delete it")
    with told, regular(file) as stream, warnings.catch_warnings():
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


def _read(file: Path, remedy: str) -> Decoded:
    """The four arrays of an .npz file.

    Raises Damaged, or UserError where it lacks one. Each is read to its end, where its checksum is.
    """
    arrays: Decoded = {}
    with regular(file) as stream:
        if not zipfile.is_zipfile(stream):
            raise Damaged(f"{file} is damaged or not an .npz file")
        try:
            with zipfile.ZipFile(stream) as archive:
                there = set(archive.namelist())
                members = {k: archive.getinfo(f"{k}.npy") for k in KEYS if f"{k}.npy" in there}
                _check_sizes(file, list(members.values()))
                for key, info in members.items():
                    with archive.open(info) as member:
                        arrays[key] = _array(key, member, info.file_size)
        except (UserError, PermissionError):
            raise
        except Exception as error:
            if exhausted(error):  # what does not fit into memory is not damaged
                raise
            raise Damaged(f"{file} cannot be read ({_reason(error)})") from None
    missing = [key for key in KEYS if key not in arrays]
    check(not missing, f"{file} lacks {', '.join(missing)}: {remedy}")
    return arrays


def _check_sizes(file: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise UserError unless what an .npz file unpacks to is plausible and fits into memory.

    Raises ValueError for sizes that contradict each other.
    """
    for member in members:
        packed, unpacked = member.compress_size, member.file_size
        stored = member.compress_type == zipfile.ZIP_STORED
        if packed > file.stat().st_size or (stored and packed != unpacked):
            raise ValueError(f"the size of {member.filename} is wrong")
        check(
            unpacked <= SMALL or unpacked <= DENSEST * packed,
            f"{file}: {member.filename} would unpack to {unpacked / 1e6:.0f} MB, more than "
            f"{DENSEST} times its size; if that is meant, save it unpacked, by numpy.savez",
        )
    _check_free(f"the arrays of {file}", sum(member.file_size for member in members))


def _check_free(what: str, needed: int) -> None:
    """Raise UserError if memory has no room for so many bytes of data."""
    free = ram.available(torch.device("cpu"))
    message = f"not enough memory: {what} take {ram.size(needed)}, and {{}} are free"
    check(free is None or needed <= free, message.format(ram.size(free or 0)))


def _array(key: str, member: IO[bytes], length: int) -> NDArray[Any]:
    """An array from a file of `length` bytes, whose header is held against that first."""
    stream = io.BytesIO(member.read(HEADER))
    first = np.lib.format.read_magic(stream) == (1, 0)
    headers = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    read = headers[0 if first else 1]
    shape, _, dtype = read(stream)
    told = stream.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and told != length:
        raise ValueError(f"{key} is {'longer' if length > told else 'shorter'} than it says")
    member.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _check(arrays: Decoded, source: Path, remedy: str, classes: tuple[str, ...] = ()) -> None:
    """Raise UserError unless the arrays make a data set; with `classes`, one of uint8 images."""
    train = arrays["x_train"]
    for split in SPLITS:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        first, last = x.shape[1:2], x.shape[3:]  # H and C of (N, H, W, C)
        rules = {
            "x_* must be of shape (N, H, W), (N, H, W, C) or (N, D)": x.ndim in (2, 3, 4),
            "x_* must not be empty": x.size > 0,
            "x_* must have its channels last": not last or last <= (4,) or first > (4,),
            "x_* must be uint8 (0 .. 255) or floating": x.dtype == np.uint8 or x.dtype.kind == "f",
            "x_* must hold uint8 images": not classes or (x.dtype == np.uint8 and x.ndim > 2),
            "y_* must hold integers": y.dtype.kind in "iu",
            "y_* must hold one label for each sample": y.shape == x.shape[:1],
            f"x_* must be like x_train, {train.dtype} {train.shape}": x.dtype == train.dtype
            and x.shape[1:] == train.shape[1:],
        }
        got = f"got {x.dtype} {x.shape} and {y.dtype} {y.shape}"
        for rule, holds in rules.items():
            check(holds, f"{source}: {rule.replace('*', split)}, {got}; {remedy}")
        right = not classes or (int(y.min()) >= 0 and int(y.max()) < len(classes))
        check(right, f"{source}: y_{split} must lie in 0 .. {len(classes) - 1}; {remedy}")


def _tensors(arrays: Decoded, classes: tuple[str, ...]) -> Arrays:
    """Checked arrays in the layout of Arrays; only channels-last images are copied."""
    x_train, x_test = (_images(torch.from_numpy(arrays[f"x_{split}"])) for split in SPLITS)
    y_train, y_test = (torch.from_numpy(arrays[f"y_{split}"].astype(np.int64)) for split in SPLITS)
    return Arrays(x_train, y_train, x_test, y_test, classes)


def _images(x: Tensor) -> Tensor:
    """[N, D], [N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    if x.ndim == 4:
        return x.permute(0, 3, 1, 2).contiguous()
    return (x[:, None] if x.ndim == 3 else x[:, None, None]).contiguous()


def _expanded(path: Path) -> Path:
    """The path with ~ replaced. Raises UserError for the home of somebody unknown."""
    with _told(f"{path} is no path", "correct data.root or data.path"):
        return path.expanduser()


@contextmanager
def _told(fault: str, remedy: str) -> Iterator[None]:
    """Turn whatever damaged input makes numpy, torchvision or PIL raise into one line.

    A lack of memory is no damage, and passes.
    """
    try:
        yield
    except (UserError, PermissionError):  # what may not be read is not damaged: never "delete it"
        raise
    except Exception as error:
        if exhausted(error):
            raise
        raise UserError(f"{fault} ({_reason(error)}): {remedy}") from None


def _reason(error: Exception) -> str:
    """The last line of an error, which is where torchvision and urllib say why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200]
