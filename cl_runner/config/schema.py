"""The configuration's schema: every section is a frozen dataclass with its own checks.

YAML files and the command line fill these classes through Hydra (`config.parse`). Which benchmark
and which model has which class says the table beside the functions that build them: `KINDS` in
`data.benchmarks` (the classes are in `config.benchmarks`), `MODELS` in `nn.networks`. The
strategies' dataclasses are their own schema (`cl_runner.strategies`). No torch in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from cl_runner.config.loggers import Loggers
from cl_runner.errors import check, one_of

SCENARIOS = ("task", "domain", "class")
SECTIONS = (
    *("data", "benchmark", "model", "adapter", "optimizer", "training"),
    *("ssl", "detector", "budget", "guard", "eval", "energy", "checkpoint", "strategy"),
)
ENGINES = ("auto", "eager", "compile", "graph")
ACTIONS = ("rollback", "stop", "warn")
VERBOSE = ("true", "false", "full")
# How convolutional models may start.
CONVOLUTIONAL = ("default", "kaiming_fan_in", "kaiming_fan_out", "uniform_side")
ALL_BUT_HEAD = "all_but_head"  # model.freeze
DEFAULT = "DEFAULT"  # model.weights: those that a library has for an architecture
OWN_WEIGHTS = "name the folder of a run, or a .safetensors, .pt or .pth file"
PRETEXTS = ("none", "rotation", "barlow", "masked")
PRECISIONS = ("auto", "float32", "float32_onednn", "tf32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where data sets are kept."""

    root: str  # the cache folder
    path: str | None = None  # your own data, a file or a folder, as the benchmark says

    def __post_init__(self) -> None:
        check(bool(self.root.strip()), "data.root must not be empty (nor CL_RUNNER_DATA)")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What all benchmarks have in common: a data set, turned into a sequence of tasks."""

    divides: ClassVar[bool] = False  # each sample is in one task only; else in every one
    chosen: ClassVar[bool] = False  # the first task's model chooses the samples of those after it
    scenarios: ClassVar[tuple[str, ...]] = SCENARIOS  # those in which it is defined

    name: str
    kind: str
    dataset: str
    num_tasks: int
    default_scenario: str  # for `scenario` and `training.epochs`, where the user sets neither
    default_epochs: int
    seed: int  # all that a stream draws: class order, permutations, random angles, subsets
    train_fraction: float = 1.0  # share of the training samples that is used
    train_samples: int | None = None  # or their number
    validation_fraction: float = 0.0  # carved from the training samples
    imbalance: float | None = None  # samples of the first class for one of the last; None: all
    samples_per_task: int | None = None  # training samples of each task, drawn anew for each
    fresh: bool = False  # which no other task has drawn, as long as there are any
    resize: int | None = None  # height and width that images are brought to, in pixels
    pad_to: int | None = None  # then zero padding to this height and width, in pixels
    mean: list[float] | None = None  # per channel, of inputs in [0, 1]
    std: list[float] | None = None
    boundaries: str = (
        "sharp"  # between tasks in training: sharp | fuzzy | random, docs/boundaries.md
    )
    fuzzy_width: float = 0.5  # share of a task over which the next one comes in

    def __post_init__(self) -> None:
        one_of("benchmark.default_scenario", self.default_scenario, SCENARIOS)
        one_of("benchmark.boundaries", self.boundaries, ("sharp", "fuzzy", "random"))
        check(
            0 < self.fuzzy_width <= 1,
            f"benchmark.fuzzy_width must lie in (0, 1], got {self.fuzzy_width}",
        )
        check(self.seed >= 0, f"benchmark.seed must be at least 0, got {self.seed}")
        one = self.num_tasks is None or self.num_tasks >= 1  # None: `config.benchmarks.Slices`
        check(one, f"benchmark.num_tasks must be at least 1, got {self.num_tasks}")
        check(
            0 < self.train_fraction <= 1,
            f"benchmark.train_fraction must lie in (0, 1], got {self.train_fraction}",
        )
        check(
            self.train_samples is None or self.train_samples >= 1,
            f"benchmark.train_samples must be at least 1, got {self.train_samples}",
        )
        check(
            self.train_samples is None or self.train_fraction == 1,
            "benchmark.train_samples and benchmark.train_fraction exclude each other: set one",
        )
        check(
            0 <= self.validation_fraction < 1,
            f"benchmark.validation_fraction must lie in [0, 1), got {self.validation_fraction}",
        )
        check(
            self.imbalance is None or self.imbalance >= 1,
            f"benchmark.imbalance must be at least 1, or null, got {self.imbalance}",
        )
        check(
            self.samples_per_task is None or self.samples_per_task >= 1,
            f"benchmark.samples_per_task must be at least 1, or null, got {self.samples_per_task}",
        )
        check(
            not self.fresh or self.samples_per_task is not None,
            "benchmark.fresh=true needs benchmark.samples_per_task",
        )
        check(
            not (self.fresh and self.divides),
            f"benchmark.fresh has no meaning for {self.name}, whose tasks share no samples",
        )
        check(
            self.resize is None or 1 <= self.resize <= 8192,
            f"benchmark.resize must lie in 1 .. 8192 pixels, or be null, got {self.resize}",
        )
        check(
            (self.mean is None) == (self.std is None),
            "benchmark.mean and benchmark.std go together: set both or neither",
        )
        check(
            self.std is None or all(s > 0 for s in self.std),
            f"benchmark.std must be positive, got {self.std}",
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """What all models have in common."""

    has_default: ClassVar[bool] = False  # whether model.weights=DEFAULT means something

    name: str
    weights: str | None = None  # to start from: a run's folder, a file or DEFAULT, `config.weights`
    weights_for: list[str] | None = None  # what is taken of them, named as by `freeze`; None: all
    # What is not trained: names of parameters, or of parts, whose parameters' names they begin;
    # ALL_BUT_HEAD alone: everything but the output layer.
    freeze: list[str] = field(default_factory=list)
    cache_features: str = "auto"  # auto | true | false, see `running.features`

    def check_common(self) -> None:
        """Refuse what makes no sense in any model; the classes of models check what is theirs."""
        only = self.weights_for
        check(only is None or self.weights is not None, "model.weights_for needs model.weights")
        check(only != [], "model.weights_for must name one or more parts of the model, or be null")
        one_of("model.cache_features", self.cache_features, ("auto", "true", "false"))
        alone = ALL_BUT_HEAD not in self.freeze or len(self.freeze) == 1
        check(alone, f"model.freeze={ALL_BUT_HEAD} stands alone, got {self.freeze}")
        drawn = self.weights == DEFAULT and not self.has_default
        check(not drawn, f"model.weights={DEFAULT}: model={self.name} has none; {OWN_WEIGHTS}")


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Fully connected network with ReLU."""

    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    init: str = "default"  # see nn.networks.MLP
    norm: str = "none"  # none | batch: BatchNorm before each ReLU
    dropout: float = 0.0  # probability, after each hidden layer

    def __post_init__(self) -> None:
        one_of("model.init", self.init, ("default", "xavier", "truncated_normal"))
        one_of("model.norm", self.norm, ("none", "batch"))
        check(
            all(h >= 1 for h in self.hidden_sizes),
            f"model.hidden_sizes must be positive, got {self.hidden_sizes}",
        )
        check(0 <= self.dropout < 1, f"model.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class CNN(Model):
    """3x3 convolutions with ReLU and 2x2 max pooling, then one hidden layer."""

    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden_size: int = 128
    init: str = "default"  # see nn.networks.initialise

    def __post_init__(self) -> None:
        one_of("model.init", self.init, CONVOLUTIONAL)
        check(
            len(self.channels) >= 1 and all(c >= 1 for c in self.channels),
            f"model.channels must be one or more positive numbers, got {self.channels}",
        )
        check(self.hidden_size >= 1, f"model.hidden_size must be positive, got {self.hidden_size}")


@dataclass(frozen=True, kw_only=True)
class StridedCNN(Model):
    """3x3 convolutions with strides, BatchNorm and ReLU, then hidden layers."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256])
    hidden_sizes: list[int] = field(default_factory=lambda: [2000, 2000])

    def __post_init__(self) -> None:
        check(
            len(self.channels) >= 1 and all(c >= 1 for c in self.channels),
            f"model.channels must be one or more positive numbers, got {self.channels}",
        )
        check(
            all(h >= 1 for h in self.hidden_sizes),
            f"model.hidden_sizes must be positive, got {self.hidden_sizes}",
        )


@dataclass(frozen=True, kw_only=True)
class ResNet(Model):
    """Residual network for 32x32 images."""

    width: int  # filters of the first stage
    init: str  # see nn.networks.initialise

    def __post_init__(self) -> None:
        one_of("model.init", self.init, CONVOLUTIONAL)
        check(self.width >= 1, f"model.width must be positive, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class Library(Model):
    """A network for images of a library, with an output layer of the right size."""

    has_default: ClassVar[bool] = True

    arch: str  # the library's name for it

    def __post_init__(self) -> None:
        check(bool(self.arch.strip()), "model.arch must name a network")


@dataclass(frozen=True, kw_only=True)
class Torchvision(Library):
    """A network of torchvision.models."""

    arch: str = "resnet18"


@dataclass(frozen=True, kw_only=True)
class Timm(Library):
    """A network of timm."""

    arch: str = "vit_tiny_patch16_224"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is trained in the place of a model's weights; `none`: they are."""

    name: str


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """Low-rank adapters in the Linear layers; the model's weights stay (see nn.adapters)."""

    rank: int = 8
    alpha: float = 8.0
    layers: list[str] | None = None  # names; None: all but the output layer
    head: str = "train"  # the output layer: train | frozen

    def __post_init__(self) -> None:
        check(self.rank >= 1, f"adapter.rank must be at least 1, got {self.rank}")
        check(self.alpha > 0, f"adapter.alpha must be positive, got {self.alpha}")
        one_of("adapter.head", self.head, ("train", "frozen"))
        names = self.layers
        check(
            names is None or len(names) == len(set(names)) > 0,
            f"adapter.layers must be one or more different names, or null, got {names}",
        )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have in common, the learning-rate schedule among it."""

    name: str
    lr: float
    weight_decay: float = 0.0
    clip_value: float | None = None  # each number of the gradient is kept within +- this
    clip_norm: float | None = None  # a gradient that is longer is scaled to this length
    reset: bool = False  # forget the slots (momentum, second moments) when a task begins
    schedule: str = "constant"  # constant | cosine | step, within each task
    milestones: list[float] = field(default_factory=list)  # step: fractions of the task, in (0, 1)
    decay: float = 0.1  # step: factor at each milestone
    min_lr: float = 0.0  # cosine: the rate in which it ends
    cycles: int = 1  # cosine: how often it begins anew, each cycle twice as long as the one before

    def __post_init__(self) -> None:
        one_of("optimizer.schedule", self.schedule, ("constant", "cosine", "step"))
        check(self.decay > 0, f"optimizer.decay must be positive, got {self.decay}")
        check(self.lr > 0, f"optimizer.lr must be positive, got {self.lr}")
        check(
            self.weight_decay >= 0,
            f"optimizer.weight_decay must be at least 0, got {self.weight_decay}",
        )
        check(
            self.clip_value is None or self.clip_value > 0,
            f"optimizer.clip_value must be positive, or null, got {self.clip_value}",
        )
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm must be positive, or null, got {self.clip_norm}",
        )
        check(
            0 <= self.min_lr < self.lr,
            f"optimizer.min_lr must lie in [0, {self.lr}), below optimizer.lr, got {self.min_lr}",
        )
        check(
            1 <= self.cycles <= 20,
            f"optimizer.cycles must lie between 1 and 20, got {self.cycles}",
        )
        for key, unused in (("min_lr", 0.0), ("cycles", 1)):
            check(
                self.schedule == "cosine" or getattr(self, key) == unused,
                f"optimizer.{key} has no meaning with optimizer.schedule={self.schedule}",
            )
        check(
            all(0 < m < 1 for m in self.milestones),
            f"optimizer.milestones must be fractions of a task in (0, 1), got {self.milestones}",
        )
        check(
            (self.schedule == "step") == bool(self.milestones),
            "optimizer.milestones and optimizer.schedule=step go together: set both or neither",
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.momentum < 1, f"optimizer.momentum must lie in [0, 1), got {self.momentum}")
        check(
            not self.nesterov or self.momentum > 0,
            "optimizer.nesterov needs optimizer.momentum > 0",
        )


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, weight decay added to the gradient; AdamW, weight decay apart from it."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"optimizer.betas must be two numbers in [0, 1), got {self.betas}",
        )
        check(self.eps > 0, f"optimizer.eps must be positive, got {self.eps}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, and on what, each task is trained."""

    epochs: int = 1
    iterations: int | None = None  # optimizer steps per task; replaces epochs
    batch_size: int = 128
    passes: int = 1  # steps that are taken on each batch of the stream, one after another
    active_classes: str = "all"  # class-incremental softmax during training: current | seen | all
    augment: str = "none"  # none | crop (padding 4) | crop_flip: and horizontal flip, both random
    boundaries: str = "known"  # what the learner is told of them: known | none | detected
    ssl: str = "none"  # a pretext task, learnt without labels: none | rotation | barlow | masked

    def __post_init__(self) -> None:
        one_of("training.ssl", self.ssl, PRETEXTS)
        one_of("training.boundaries", self.boundaries, ("known", "none", "detected"))
        one_of("training.active_classes", self.active_classes, ("current", "seen", "all"))
        one_of("training.augment", self.augment, ("none", "crop", "crop_flip"))
        check(self.epochs >= 1, f"training.epochs must be at least 1, got {self.epochs}")
        check(
            self.iterations is None or self.iterations >= 1,
            f"training.iterations must be at least 1, got {self.iterations}",
        )
        check(self.batch_size >= 1, f"training.batch_size must be positive, got {self.batch_size}")
        check(self.passes >= 1, f"training.passes must be at least 1, got {self.passes}")
        check(
            self.passes == 1 or self.boundaries != "detected",
            f"training.passes={self.passes} does not go with training.boundaries=detected, whose "
            "detector takes each step's loss as that of new samples",
        )


@dataclass(frozen=True, kw_only=True)
class SSL:
    """How the pretext task of training.ssl is learnt: before the stream, and beside it."""

    epochs: int = 30  # before the first task; 0: none
    weight: float = 0.0  # of its loss beside the strategy's, in each step of the stream; 0: none
    rows: str = "task"  # of the phase before: task, the first task's own | FILE.npz
    batch_size: int = 128  # of that phase
    lr: float = 1e-3  # of Adam, in that phase, and of the head's throughout
    hidden_sizes: list[int] = field(default_factory=lambda: [256])  # of the head
    mask_ratio: float | None = None  # share of hidden patches; None: by the pretext task
    patch_size: int = 1  # pixels, of a side of what is hidden
    lambda_: float = 0.005  # barlow: weight of the off-diagonal terms

    def __post_init__(self) -> None:
        check(self.epochs >= 0, f"ssl.epochs must be at least 0, got {self.epochs}")
        check(self.weight >= 0, f"ssl.weight must be at least 0, got {self.weight}")
        right = self.rows == "task" or self.rows.endswith(".npz")
        check(right, f"ssl.rows must be task or the name of an .npz file, got {self.rows!r}")
        check(self.batch_size >= 2, f"ssl.batch_size must be at least 2, got {self.batch_size}")
        check(self.lr > 0, f"ssl.lr must be positive, got {self.lr}")
        right = all(size >= 1 for size in self.hidden_sizes)
        check(right, f"ssl.hidden_sizes must be positive, got {self.hidden_sizes}")
        right = self.mask_ratio is None or 0 < self.mask_ratio < 1
        check(right, f"ssl.mask_ratio must lie in (0, 1), or be null, got {self.mask_ratio}")
        check(self.patch_size >= 1, f"ssl.patch_size must be at least 1, got {self.patch_size}")
        check(self.lambda_ >= 0, f"ssl.lambda must be at least 0, got {self.lambda_}")

    def hidden_share(self, pretext: str) -> float:
        """The share of patches that a pretext task hides."""
        return self.mask_ratio or {"masked": 0.75, "barlow": 0.25}[pretext]

    def check_meaning(self, pretext: str) -> None:
        """Refuse what changes nothing for a pretext task, and one that is never learnt."""
        names = set(vars(self))
        used = {
            "none": set(),
            "rotation": names - {"mask_ratio", "patch_size", "lambda_"},
            "barlow": names,
            "masked": names - {"lambda_"},
        }[pretext]
        if self.epochs == 0:
            used -= {"rows", "batch_size"}
        defaults = vars(type(self)())
        for name in sorted(names - used):
            value, default = getattr(self, name), defaults[name]
            where = f"training.ssl={pretext}" + (" and ssl.epochs=0" if self.epochs == 0 else "")
            check(
                value == default,
                f"ssl.{name.rstrip('_')}={value} has no meaning with {where}: leave it out",
            )
        check(
            pretext == "none" or self.epochs > 0 or self.weight > 0,
            f"training.ssl={pretext} needs ssl.epochs > 0, to be learnt before the stream, or "
            "ssl.weight > 0, to be learnt beside it",
        )


@dataclass(frozen=True, kw_only=True)
class Detector:
    """What calls the end of a task, by the training loss, where training.boundaries=detected."""

    name: str = "page_hinkley"  # page_hinkley | adwin
    delta: float = 0.5  # page_hinkley: a rise below it is none, in standard deviations
    threshold: float = 12.0  # page_hinkley: of the sum of what is above delta
    window: int = 50  # page_hinkley: steps that the mean and the deviation are of
    confidence: float = 0.002  # adwin: the smaller, the fewer cuts
    rise: float = 1.25  # adwin: a smaller one is no alarm, in standard deviations

    def __post_init__(self) -> None:
        one_of("detector.name", self.name, ("page_hinkley", "adwin"))
        check(self.delta >= 0, f"detector.delta must be at least 0, got {self.delta}")
        check(self.threshold > 0, f"detector.threshold must be positive, got {self.threshold}")
        check(self.window >= 2, f"detector.window must be at least 2 steps, got {self.window}")
        check(
            0 < self.confidence < 1,
            f"detector.confidence must lie in (0, 1), got {self.confidence}",
        )
        check(self.rise >= 0, f"detector.rise must be at least 0, got {self.rise}")
        adwins = {"confidence", "rise"}
        others = vars(self).keys() - adwins - {"name"} if self.name == "adwin" else adwins
        self.without_meaning(f"detector.name={self.name}", others)

    def without_meaning(self, where: str, names: Iterable[str]) -> None:
        """Refuse values, other than the default, of keys that change nothing there."""
        for name in sorted(names):
            value = getattr(self, name)
            check(
                value == getattr(type(self), name),
                f"detector.{name}={value} has no meaning with {where}: leave it out",
            )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run's training may cost, of which each task may spend an even share of what is left.

    And what the run may keep between its tasks.
    """

    samples: int | None = None  # taken from the stream; replayed ones do not count
    flops: float | None = None  # forward and backward
    seconds: float | None = None
    bytes: int | None = None  # parameters, buffer and the strategy's memory, see run.footprint

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            message = f"budget.{name} must be positive, or null for no limit, got {limit}"
            check(limit is None or limit > 0, message)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What an update may not break: the accuracy on the validation data of the tasks before it."""

    drop: float | None = None  # the most that one of them may lose; None: no guard
    every: int | None = None  # optimizer steps between two looks; None: see run.guard.every
    action: str = "rollback"  # of ACTIONS, where one has lost more

    def __post_init__(self) -> None:
        message = f"guard.drop must lie in [0, 1), or null for no guard, got {self.drop}"
        check(self.drop is None or 0 <= self.drop < 1, message)
        message = f"guard.every must be at least 1 step, or null, got {self.every}"
        check(self.every is None or self.every >= 1, message)
        one_of("guard.action", self.action, ACTIONS)


@dataclass(frozen=True, kw_only=True)
class Eval:
    """What is measured, and how often."""

    tasks: str = "all"  # all | seen | last:N | none: see `shown`
    every: int | None = None  # optimizer steps between evaluations within a task
    calibration: bool = False  # NLL, Brier score, calibration error and confusion matrices
    features: bool = False  # what the layers know of each task: similarity and linear probes
    online: bool = False  # what the steps themselves predict, each before it learns
    online_window: int | None = None  # steps of a row of online.csv; None: a task's

    def __post_init__(self) -> None:
        right = self.tasks in ("all", "seen", "none") or self._last() is not None
        message = "eval.tasks must be all, seen, last:N with N of at least 1, or none"
        check(right, f"{message}, got {self.tasks!r}")
        message = f"eval.every must be at least 1 step, or null, got {self.every}"
        check(self.every is None or self.every >= 1, message)
        for name in ("every", "calibration", "features"):
            message = f"eval.{name} has no meaning with eval.tasks=none: leave it out"
            check(self.tasks != "none" or not getattr(self, name), message)
        window = self.online_window
        message = f"eval.online_window must be at least 1 step, or null, got {window}"
        check(window is None or window >= 1, message)
        message = f"eval.online_window={window} needs eval.online=true"
        check(window is None or self.online, message)

    def _last(self) -> int | None:
        """N of last:N; None for anything else."""
        word, _, number = self.tasks.partition(":")
        right = word == "last" and number.isascii() and number.isdecimal() and len(number) < 10
        return int(number) if right and int(number) else None

    def shown(self, done: int, num_tasks: int, *, chosen: bool = False) -> range:
        """The indices of the tasks that are evaluated when `done` of num_tasks are trained.

        `all`; `seen`, those that are trained, and the coming one (within a task: the one under
        way); `last:N`, the last N of these, and the coming one; `none`. chosen: before the first
        is trained, nobody knows the others (`Benchmark.chosen`).
        """
        num_tasks = 1 if chosen and not done else num_tasks
        if self.tasks in ("all", "none"):
            return range(num_tasks if self.tasks == "all" else 0)
        first = 0 if self.tasks == "seen" else max(0, done - (self._last() or 0))
        return range(first, min(done + 1, num_tasks))

    def whole(self, num_tasks: int | None) -> bool:
        """Whether all tasks are evaluated after the last one, which ACC needs.

        num_tasks: None where the data tell it.
        """
        if self.tasks in ("all", "seen"):
            return True
        return num_tasks is not None and (self._last() or 0) >= num_tasks


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Where the energy of training is known from, beside the machine's own counters."""

    watts: float | None = None  # declare this constant draw; None: only what can be read

    def __post_init__(self) -> None:
        message = f"energy.watts must be positive, or null, got {self.watts}"
        check(self.watts is None or self.watts > 0, message)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state of a run is saved within a task; it always is between two tasks."""

    every: float | None = 60.0  # seconds; None: never
    every_steps: int | None = None  # optimizer steps of a task, besides
    keep: bool = False  # the last one stays when the run is complete

    def __post_init__(self) -> None:
        check(
            self.every is None or self.every >= 0,
            f"checkpoint.every must be at least 0 seconds, or null, got {self.every}",
        )
        check(
            self.every_steps is None or self.every_steps >= 1,
            f"checkpoint.every_steps must be at least 1, or null, got {self.every_steps}",
        )


ADAPTERS: dict[str, type[Adapter]] = {"none": Adapter, "lora": LoRA}
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": Adam}


@dataclass(frozen=True, kw_only=True)
class Top:
    """The keys outside all sections."""

    seed: int
    scenario: str
    device: str
    precision: str
    engine: str
    threads: int | None
    verbose: str  # false | true | full: of a sweep's jobs the matrices, too
    plots: bool = False
    resume: bool = False
    fail_fast: bool = False
    missing_keys: str = "refuse"  # refuse | skip: of keys that some choices of a sweep lack
    plugins: list[str] = field(default_factory=list)  # packages of your own, see config.plugins
    seeds: list[int] | None = None

    def __post_init__(self) -> None:
        one_of("scenario", self.scenario, SCENARIOS)
        one_of("device", self.device, ("auto", "cpu", "cuda", "mps"))
        one_of("precision", self.precision, PRECISIONS)
        one_of("engine", self.engine, ENGINES)
        one_of("verbose", self.verbose, VERBOSE)
        one_of("missing_keys", self.missing_keys, ("refuse", "skip"))
        check(self.seed >= 0, f"seed must be at least 0, got {self.seed}")
        there = not self.plots or find_spec("matplotlib") is not None
        check(there, "plots=true needs matplotlib: pip install 'cl_runner[plots]', or plots=false")
        seeds = self.seeds
        check(
            seeds is None or (len(seeds) == len(set(seeds)) > 0 and min(seeds) >= 0),
            f"seeds must be one or more different numbers of at least 0, got {seeds}",
        )
        check(
            self.threads is None or 1 <= self.threads <= 1024,
            f"threads must lie between 1 and 1024, got {self.threads}",
        )

    @property
    def told(self) -> bool:
        """Whether the console is told how it goes."""
        return self.verbose != "false"


@dataclass(frozen=True, kw_only=True)
class Config(Top):
    """One run, whole."""

    data: Data
    benchmark: Benchmark
    model: Model
    adapter: Adapter
    optimizer: Optimizer
    training: Training
    ssl: SSL
    detector: Detector
    budget: Budget
    guard: Guard
    eval: Eval
    energy: Energy
    checkpoint: Checkpoint
    strategy: Mapping[str, Any]  # parsed by cl_runner.strategies, which needs torch
    logger: Loggers = field(default_factory=dict)
    resolved: Mapping[str, Any]  # plain values of what config.yaml holds

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ssl.check_meaning(self.training.ssl)
        if self.guard.drop is not None:
            self.check_guarded()
        check(
            not (self.model.freeze and isinstance(self.adapter, LoRA)),
            f"model.freeze does not go with adapter={self.adapter.name}, which freezes all that it "
            "does not adapt: leave one of them out",
        )
        defined = self.benchmark.scenarios
        check(
            self.scenario in defined,
            f"benchmark={self.benchmark.name} is defined for scenario={', '.join(defined)} only, "
            f"got scenario={self.scenario}",
        )
        fuzzy = self.benchmark.boundaries == "fuzzy"
        check(
            not fuzzy or self.scenario != "task",
            "benchmark.boundaries=fuzzy has no meaning for scenario=task, which tells the task of "
            "each sample: use scenario=domain, scenario=class or benchmark.boundaries=sharp",
        )
        check(
            not (fuzzy and self.scenario == "class" and self.training.active_classes == "seen"),
            "training.active_classes=seen does not go with benchmark.boundaries=fuzzy, which shows "
            "samples of the next task before its classes count as seen: use all or current",
        )
        told = self.training.boundaries
        check(
            told == "known" or not self.benchmark.chosen,
            f"training.boundaries={told} does not go with benchmark={self.benchmark.name}, whose "
            "tasks after the first are trained otherwise than it: use known",
        )
        if told != "known":
            self.check_untold()
        if told != "detected":
            self.detector.without_meaning(f"training.boundaries={told}", vars(self.detector))

    def check_untold(self) -> None:
        """Refuse what tells the learner, all the same, where a task begins or which it is."""
        untold = f"training.boundaries={self.training.boundaries}"
        check(
            self.scenario != "task",
            f"{untold} has no meaning for scenario=task, which tells the task of each sample: use "
            "scenario=domain or scenario=class",
        )
        active = self.training.active_classes
        check(
            active == "all" or self.scenario == "domain",
            f"{untold} needs training.active_classes=all: {active} tells the task's classes",
        )
        schedule = self.optimizer.schedule
        check(
            schedule == "constant",
            f"{untold} needs optimizer.schedule=constant: {schedule} tells how far a task is",
        )
        check(
            not self.optimizer.reset or self.training.boundaries == "detected",
            f"{untold} needs optimizer.reset=false: a reset tells where a task begins",
        )

    def check_guarded(self) -> None:
        """Refuse what leaves the guard nothing to look at."""
        check(
            self.benchmark.validation_fraction > 0,
            "guard.drop needs validation data, such as benchmark.validation_fraction=0.1",
        )
        check(
            self.eval.tasks in ("all", "seen"),
            f"guard.drop needs eval.tasks=all or seen: eval.tasks={self.eval.tasks} does not "
            "measure what the old tasks had",
        )
        check(
            not self.eval.online,
            "guard.drop does not go with eval.online=true, which counts what a task that goes back "
            "has predicted: leave one of them out",
        )
        check(
            self.training.boundaries == "known",
            f"guard.drop needs training.boundaries=known: with {self.training.boundaries} no task "
            "ends where it could be ended early",
        )
