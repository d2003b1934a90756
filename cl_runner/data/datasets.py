"""Data sets as tensors: embedded digits, torchvision's, your own .npz file or folder of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cl_runner.data.arrays import Arrays, expanded, reading
from cl_runner.data.files import TASK_FILES
from cl_runner.data.folders import FOLDERS
from cl_runner.data.images import FOLDER, folder
from cl_runner.data.named import CLASSES, named
from cl_runner.data.npz import npz
from cl_runner.data.table import EMBEDDED, TABLE
from cl_runner.errors import check, one_of

__all__ = ["CLASSES", "EMBEDDED", "OWN", "Arrays", "load"]

OWN = {
    "npz": "an .npz file that holds x_train, y_train, x_test and y_test",
    "folder": FOLDER,
    "folders": FOLDERS,
    "files": TASK_FILES,
    "table": TABLE,
}
log = logging.getLogger(__name__)


def load(
    dataset: str,
    root: Path,
    path: Path | None,
    tell: Callable[[str], None] = log.info,
    resize: int | None = None,
) -> Arrays:
    """The data set, from the cache folder `root` (data.root) or the user's own `path` (data.path).

    Downloads what is neither embedded nor below root, and makes a damaged copy in root again, which
    it tells. resize: height and width to which the images of a folder, which may be of several
    sizes, are brought when they are decoded. Raises UserError, in one line, for data that is
    missing, damaged or of the wrong kind.
    """
    one_of("benchmark.dataset", dataset, (*CLASSES, "npz", "folder"))
    with reading(dataset):
        if dataset in CLASSES:
            check(path is None, f"data.path must not be set: {dataset} is read from data.root")
            return named(dataset, expanded(root), tell)
        check(path is not None, f"data.path must be set: {OWN[dataset]}")
        path = expanded(Path(path or ""))
        found = "is something else" if path.exists() else "does not exist"
        right = path.is_file() if dataset == "npz" else path.is_dir()
        check(right, f"data.path must be {OWN[dataset]}; {path} {found}")
        return npz(path) if dataset == "npz" else folder(path, resize)
