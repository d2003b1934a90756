"""The keys of each kind of benchmark, beside those that all have (`schema.Benchmark`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cl_runner.config.schema import Benchmark
from cl_runner.errors import check, one_of

CONDITIONS = ("none", "brightness", "contrast", "noise", "blur", "occlusion")


@dataclass(frozen=True, kw_only=True)
class Split(Benchmark):
    """The classes are divided among the tasks."""

    divides: ClassVar[bool] = True

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

    divides: ClassVar[bool] = True

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


@dataclass(frozen=True, kw_only=True)
class Conditions(Benchmark):
    """Every task shows all classes under a condition of its own."""

    # None: as many as conditions; a number takes the first ones.
    num_tasks: int | None = None  # type: ignore[assignment]
    conditions: list[str] = field(default_factory=lambda: list(CONDITIONS))
    severity: list[float] = field(default_factory=lambda: [0.5])  # one for all, or one each

    def __post_init__(self) -> None:
        super().__post_init__()
        check_listed("benchmark.conditions", self.conditions, self.num_tasks)
        for condition in self.conditions:
            one_of("benchmark.conditions", condition, CONDITIONS)
        check(
            len(self.severity) in (1, len(self.conditions)),
            f"benchmark.severity must hold 1 number, or one for each of the "
            f"{len(self.conditions)} conditions, got {len(self.severity)}",
        )
        check(
            all(0 <= severity <= 1 for severity in self.severity),
            f"benchmark.severity must lie in [0, 1], got {self.severity}",
        )


@dataclass(frozen=True, kw_only=True)
class LabelPermuted(Benchmark):
    """Every task shows all images, the labels of their classes exchanged in a way of its own."""

    first_identity: bool = False  # the first task's labels are those of the data


@dataclass(frozen=True, kw_only=True)
class RandomLabels(Benchmark):
    """Every task shows all images, each under a label that is drawn for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.validation_fraction == 0,
            f"benchmark.validation_fraction has no meaning for {self.name}: random labels tell "
            "nothing about other images",
        )
        check(
            self.imbalance is None,
            f"benchmark.imbalance has no meaning for {self.name}, whose labels are drawn",
        )


@dataclass(frozen=True, kw_only=True)
class Sequence(Benchmark):
    """Each task is a data set of its own."""

    divides: ClassVar[bool] = True

    # None: as many as data sets; a number takes the first ones.
    num_tasks: int | None = None  # type: ignore[assignment]
    datasets: list[str] = field(default_factory=lambda: ["mnist", "fashion_mnist", "digits"])

    def __post_init__(self) -> None:
        super().__post_init__()
        check_listed("benchmark.datasets", self.datasets, self.num_tasks)


def check_listed(key: str, listed: list[str], num_tasks: int | None) -> None:
    """Raise UserError unless a list has an entry for each of so many tasks."""
    check(bool(listed), f"{key} must hold one entry per task, got an empty list")
    enough = num_tasks is None or num_tasks <= len(listed)
    check(enough, f"benchmark.num_tasks={num_tasks} is more than the {len(listed)} of {key}")
