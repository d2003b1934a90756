"""The keys of each kind of benchmark, beside those that all have (`schema.Benchmark`)."""

from __future__ import annotations

from dataclasses import dataclass

from cl_runner.config.schema import Benchmark
from cl_runner.errors import check, one_of


@dataclass(frozen=True, kw_only=True)
class Split(Benchmark):
    """The classes are divided among the tasks."""

    class_order: str = "natural"  # natural | shuffled (by benchmark.seed)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("benchmark.class_order", self.class_order, ("natural", "shuffled"))


@dataclass(frozen=True, kw_only=True)
class Permuted(Benchmark):
    """Every task shows all classes, its pixels permuted in a way of its own."""

    first_identity: bool = False  # the first task's pixels stay where they are


@dataclass(frozen=True, kw_only=True)
class Rotated(Benchmark):
    """Every task shows all classes, rotated by an angle of its own."""

    angles: list[float] | None = None  # degrees, one per task; overrides the two below
    max_angle: float = 180.0  # degrees
    angle_spacing: str = "even"  # even: i * max_angle / num_tasks | random: uniform, by seed

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("benchmark.angle_spacing", self.angle_spacing, ("even", "random"))
        check(
            self.angles is None or len(self.angles) == self.num_tasks,
            f"benchmark.angles must hold one angle per task: {self.num_tasks} are needed, "
            f"got {len(self.angles or [])}",
        )


@dataclass(frozen=True, kw_only=True)
class Slices(Benchmark):
    """The tasks are the slices in which the data come: months, users, sites."""

    # None: as many as there are; a number takes the first ones.
    num_tasks: int | None = None  # type: ignore[assignment]  # of the other kinds it is part


@dataclass(frozen=True, kw_only=True)
class Folders(Slices):
    """Images in a folder for each task, which has one for each class."""

    test_fraction: float = 0.2  # held out where a task has no train/ and test/
    resize: int | None = None  # height and width that images are brought to; None: as they are

    def __post_init__(self) -> None:
        super().__post_init__()
        message = f"benchmark.test_fraction must lie in (0, 1), got {self.test_fraction}"
        check(0 < self.test_fraction < 1, message)
        message = f"benchmark.resize must lie in 1 .. 8192 pixels, or be null, got {self.resize}"
        check(self.resize is None or 1 <= self.resize <= 8192, message)
