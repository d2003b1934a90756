"""TensorBoard: event files, to which a run that goes on adds one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_runner.config.loggers import TensorBoard
from cl_runner.machine.console import near
from cl_runner.results.files import check_writable
from cl_runner.running.loggers.library import About, Values


def folder(settings: TensorBoard, out: Path) -> Path:
    """Where the event files lie; below one folder of many runs, as the runs' folders do."""
    if settings.dir is None:
        return out / "tensorboard"
    parts = near(out).parts
    return Path(settings.dir).joinpath(*(part for part in parts if part not in (out.anchor, "..")))


def check_place(settings: TensorBoard, out: Path) -> None:
    """See Library."""
    if settings.dir is not None:
        check_writable(f"logger.tensorboard.dir={settings.dir}", folder(settings, out))


def begin(settings: TensorBoard, about: About) -> tuple[Any, str]:
    """See Library."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    place = folder(settings, about.out)
    writer: Any = SummaryWriter(str(place))
    if about.known is None:
        plain = {
            k: v if isinstance(v, int | float | str) else str(v) for k, v in about.config.items()
        }
        rows = "\n".join(f"|{k}|{str(v).replace('|', ' ')}|" for k, v in plain.items())
        writer.add_text("configuration", f"|key|value|\n|---|---|\n{rows}")
        for summary in hparams(plain, {"metrics/ACC": 0.0})[:2]:  # not the third: that it ended
            writer.file_writer.add_summary(summary)
        writer.flush()
    return writer, place.name


def measured(writer: Any, _axis: str, points: Sequence[tuple[int, Values]]) -> None:
    """See Library."""
    for step, values in points:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    writer.flush()  # a process may be killed


def kept(writer: Any, out: Path, files: Sequence[Path]) -> None:
    """See Library. It shows pictures; tables lie beside."""
    import numpy as np
    from PIL import Image

    for path in (path for path in files if path.suffix == ".png"):
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
        writer.add_image(
            path.relative_to(out).with_suffix("").as_posix(), pixels, dataformats="HWC"
        )


def ended(writer: Any, state: str) -> None:
    """See Library."""
    writer.add_text("status", state)
    writer.close()
