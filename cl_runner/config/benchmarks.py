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

    classes: list[int] | None = None  # those of the data set that are used, from 0; None: all
    class_order: str = "natural"  # natural: as listed, else as numbered | shuffled (by seed)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("benchmark.class_order", self.class_order, ("natural", "shuffled"))
        classes = self.classes
        check(
            classes is None or (len(classes) == len(set(classes)) > 0 and min(classes) >= 0),
            "benchmark.classes must be one or more different numbers of at least 0, or null, got "
            f"{classes}",
        )


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
    base: int | None = None  # the first so many slices are one task, the others' common model
    people: list[str] | None = None  # which slices follow it, in this order; None: all others

    def __post_init__(self) -> None:
        super().__post_init__()
        message = f"benchmark.base must be at least 1, or null, got {self.base}"
        check(self.base is None or self.base >= 1, message)
        people = self.people
        check(
            people is None or self.base is not None,
            f"benchmark.people={people} needs benchmark.base=N, the slices of the common model",
        )
        check(
            people is None or 0 < len(people) == len(set(people)),
            f"benchmark.people must name one or more different slices, or be null, got {people}",
        )
        check(
            self.base is None or self.num_tasks is None or self.num_tasks >= 2,
            f"benchmark.base={self.base} needs benchmark.num_tasks of at least 2: the first is the "
            f"common model's, got {self.num_tasks}",
        )


@dataclass(frozen=True, kw_only=True)
class Folders(Slices):
    """Images in a folder for each task, which has one for each class."""

    test_fraction: float = 0.2  # held out where a task has no train/ and test/

    def __post_init__(self) -> None:
        super().__post_init__()
        message = f"benchmark.test_fraction must lie in (0, 1), got {self.test_fraction}"
        check(0 < self.test_fraction < 1, message)


@dataclass(frozen=True, kw_only=True)
class Files(Slices):
    """Each file of a folder is a task: arrays (.npz) or tables (.csv, .csv.gz)."""

    label: str | None = None  # of tables: the column that holds the classes
    test_fraction: float = 0.2  # of each task's rows, where the data have no test part of their own
    categories: list[str] = field(default_factory=list)  # columns whose values are names, if digits
    text: list[str] = field(default_factory=list)  # columns that are hashed
    text_features: int = 4096  # hashes of each of these
    clip: float | None = None  # standard deviations, of standardised columns
    drop: list[str] = field(default_factory=list)  # columns that are left out

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            0 < self.test_fraction < 1,
            f"benchmark.test_fraction must lie in (0, 1), got {self.test_fraction}",
        )
        check(
            1 <= self.text_features <= 2**20,
            f"benchmark.text_features must lie in 1 .. {2**20}, got {self.text_features}",
        )
        message = f"benchmark.clip must be positive, or null, got {self.clip}"
        check(self.clip is None or self.clip > 0, message)
        seen: dict[str, str] = {}
        for key, columns in self.columns().items():
            for column in columns:
                both = f"benchmark.{seen.get(column)} and benchmark.{key} both name column {column}"
                check(column not in seen, f"{both}: leave it out of one of them")
                seen[column] = key

    def columns(self) -> dict[str, list[str]]:
        """The columns that each key names."""
        single = {key: getattr(self, key, None) for key in ("label", "slice")}
        several = {key: getattr(self, key) for key in ("categories", "text", "drop")}
        return {key: [name] for key, name in single.items() if name is not None} | several


@dataclass(frozen=True, kw_only=True)
class Table(Files):
    """The rows of one table, cut by a column or into equal parts."""

    slice: str | None = None  # the column whose values are the tasks; None: num_tasks equal parts
    slice_by: str | None = None  # year | month | day, of a column of dates; None: by each value

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.label is not None,
            "benchmark.label must name the column that holds the classes: benchmark.label=COLUMN",
        )
        check(
            self.slice is not None or self.num_tasks is not None,
            "benchmark.slice=COLUMN (a task for each value) or benchmark.num_tasks=N (equal parts "
            "in the order of the rows) must be set",
        )
        check(
            self.slice is not None or self.base is None,
            f"benchmark.base={self.base} needs benchmark.slice=COLUMN, whose values it counts",
        )
        check(
            self.slice_by in (None, "year", "month", "day"),
            f"benchmark.slice_by must be one of year, month, day, or null, got {self.slice_by!r}",
        )
        check(
            self.slice_by is None or self.slice is not None,
            f"benchmark.slice_by={self.slice_by} needs benchmark.slice=COLUMN, a column of dates",
        )


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


@dataclass(frozen=True, kw_only=True)
class Edits(Benchmark):
    """The first task is the data set; each further one, an edit, is what its model gets wrong."""

    divides: ClassVar[bool] = True
    chosen: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ("domain",)

    per_edit: int = 1  # samples of an edit
    epochs_per_edit: int = 50  # passes over an edit: of one sample each is a step
    lr_factor: float = 0.1  # edits learn at so much of the optimizer's rate
    pool_fraction: float = 0.5  # of the training samples, kept out of the first task: the pool

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.num_tasks >= 2,
            "benchmark.num_tasks must be at least 2: the first task, and an edit each, got "
            f"{self.num_tasks}",
        )
        for name in ("per_edit", "epochs_per_edit"):
            value = getattr(self, name)
            check(value >= 1, f"benchmark.{name} must be at least 1, got {value}")
        check(self.lr_factor > 0, f"benchmark.lr_factor must be positive, got {self.lr_factor}")
        check(
            0 < self.pool_fraction < 1,
            f"benchmark.pool_fraction must lie in (0, 1), got {self.pool_fraction}",
        )
        check(
            self.boundaries == "sharp",
            f"benchmark.boundaries={self.boundaries} does not go with benchmark={self.name}, whose "
            "edits are not known when the stream begins: use sharp",
        )
        check(
            self.samples_per_task is None,
            f"benchmark.samples_per_task has no meaning for {self.name}: benchmark.per_edit says "
            "how many samples an edit has, benchmark.train_samples how many there are in all",
        )


def check_listed(key: str, listed: list[str], num_tasks: int | None) -> None:
    """Raise UserError unless a list has an entry for each of so many tasks."""
    check(bool(listed), f"{key} must hold one entry per task, got an empty list")
    enough = num_tasks is None or num_tasks <= len(listed)
    check(enough, f"benchmark.num_tasks={num_tasks} is more than the {len(listed)} of {key}")
