"""The schema of the loggers: what is set of each, and checked before a run begins. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from cl_runner.errors import check, one_of

SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class Logger:
    """What all loggers have in common: a library that must be installed."""

    modules: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        name, missing = self.modules[0], [m for m in self.modules if not installed(m)]
        check(
            not missing,
            f"logger={name} needs {', '.join(missing)}: pip install 'cl_runner[{name}]'",
        )


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Logger):
    """Event files."""

    modules: ClassVar[tuple[str, ...]] = ("tensorboard",)

    dir: str | None = None  # a folder for many runs, each in one of its own; None: in the run's

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.dir != "", "logger.tensorboard.dir must be a folder, or null")


@dataclass(frozen=True, kw_only=True)
class MLflow(Logger):
    """A tracking store: a file, or a server."""

    modules: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")

    tracking_uri: str | None = None  # None: mlruns.db beside the run's folder
    experiment: str = "cl_runner"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.experiment.strip()), "logger.mlflow.experiment must not be empty")
        uri = self.tracking_uri
        check(
            uri is None or ("://" in uri and uri != SQLITE),
            "logger.mlflow.tracking_uri must be a URI, such as sqlite:///mlruns.db or "
            f"http://localhost:5000, or null, got {uri!r}",
        )

    def file(self, out: Path) -> Path | None:
        """The database's file for the run in `out`; None where it is none: a server."""
        if self.tracking_uri is None:
            return out.absolute().parent / "mlruns.db"
        name = self.tracking_uri.removeprefix(SQLITE)
        return None if name == self.tracking_uri else Path(name).absolute()


@dataclass(frozen=True, kw_only=True)
class WandB(Logger):
    """Weights & Biases; offline, until the runs are sent by `wandb sync`."""

    modules: ClassVar[tuple[str, ...]] = ("wandb",)

    project: str = "cl_runner"
    mode: str = "offline"  # offline | online | disabled
    dir: str | None = None  # where the files of the runs lie, in wandb/; None: in the run's folder

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("logger.wandb.mode", self.mode, ("offline", "online", "disabled"))
        check(bool(self.project.strip()), "logger.wandb.project must not be empty")
        check(
            not set(self.project) & set("/\\#?%:"),
            f"logger.wandb.project must be without / \\ # ? % :, got {self.project!r}",
        )
        check(self.dir != "", "logger.wandb.dir must be a folder, or null")


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
Loggers = Mapping[str, Any]  # those of a run, by their names


def installed(module: str) -> bool:
    """Whether a library is there; a folder of its name in the working folder is none."""
    found = find_spec(module)
    return found is not None and found.origin is not None
