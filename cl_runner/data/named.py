"""Named data sets: the embedded digits, and torchvision's, which are downloaded.

A named data set is decoded once, into `<data.root>/<dataset>.npz`; from then on that file is all
that is read. sklearn, torchvision and filelock are imported only where they are used.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cl_runner.config.libraries import torchvision
from cl_runner.data.arrays import (
    DELETE,
    KEYS,
    SPLITS,
    Arrays,
    Damaged,
    Decoded,
    check_arrays,
    reason,
    tensors,
    told,
)
from cl_runner.data.npz import read, save
from cl_runner.errors import check

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
OFFLINE = "take benchmark=permuted_digits or split_digits, which need no download"
TIMEOUT = 30.0  # seconds without an answer that end a download


def named(dataset: str, root: Path, tell: Callable[[str], None]) -> Arrays:
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
        obstacle = f"data.root cannot be written: {reason(error)}"
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
            save(cached, arrays)
        return tensors(arrays, CLASSES[dataset])
    finally:
        lock.release()


def _cached(dataset: str, file: Path) -> Arrays:
    """The data set from its decoded copy. Raises Damaged, or UserError for another's file."""
    arrays = read(file, DELETE)
    check_arrays(arrays, file, DELETE, CLASSES[dataset])
    return tensors(arrays, CLASSES[dataset])


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
    """The module torchvision.datasets. Raises UserError where it cannot be imported."""
    with told("torchvision cannot be imported", f"install one that fits torch, or {OFFLINE}"):
        return torchvision().datasets


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
            with told(f"{root / file} is damaged", DELETE):
                arrays[key] = read(str(root / file)).numpy()
    else:
        for file, md5 in files.items():
            right = datasets.utils.check_integrity(root / file, md5)
            check(right, f"{root / file} is damaged (wrong checksum): {DELETE}")
        for split in SPLITS:
            part = cls(root, train=split == "train")
            arrays |= {f"x_{split}": part.data, f"y_{split}": np.asarray(part.targets)}
    check_arrays(arrays, root / folder, DELETE, CLASSES[dataset])
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
        with told(f"{fault}, and its download failed", f"{remedy}, or {OFFLINE}"):
            if obstacle:
                raise OSError(obstacle)
            if temporary.exists():  # of a process that was killed
                shutil.rmtree(temporary)
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
