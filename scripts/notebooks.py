"""Execute the notebooks of examples/ and write them with what they show.

    python scripts/notebooks.py [NAME...]

Each runs in an empty folder, with this Python; needs nbclient and ipykernel. What is left in the
file tells nothing of the machine: no times of cells, no paths.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

EXAMPLES = Path(__file__).parents[1] / "examples"
TIMEOUT = 600  # seconds of a cell


def executed(path: Path, folder: Path) -> Any:
    """A notebook after all of its cells have run in a folder. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    with kernel_of_this_python(folder):
        # By sockets in the folder: no port is open.
        config = Config(AsyncKernelManager={"transport": "ipc", "ip": str(folder / ".socket")})
        about = {"resources": {"metadata": {"path": str(folder)}}, "config": config}
        NotebookClient(notebook, timeout=TIMEOUT, kernel_name="here", **about).execute()
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


@contextmanager
def kernel_of_this_python(folder: Path) -> Iterator[None]:
    """Jupyter knows a kernel `here`, whichever others the machine has."""
    place = folder / ".jupyter"
    (place / "kernels/here").mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": argv, "display_name": "here", "language": "python"}
    (place / "kernels/here/kernel.json").write_text(json.dumps(about), encoding="utf-8")
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("JUPYTER_PATH")
        if before is not None:
            os.environ["JUPYTER_PATH"] = before


def main() -> None:
    """Execute those that are named, or all."""
    names = sys.argv[1:] or sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(EXAMPLES / name, Path(folder))
        nbformat.write(notebook, EXAMPLES / name)
        print(f"{name}: {(EXAMPLES / name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
