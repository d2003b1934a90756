"""The schema: what it refuses and how it says so; the YAML files say exactly what it knows."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from cl_runner import strategies
from cl_runner.cli import choices
from cl_runner.config import benchmarks, schema
from cl_runner.config.identity import UNSET_WITHIN
from cl_runner.config.parse import parse, validate
from cl_runner.config.schema import Config
from cl_runner.config.versions import BASE
from cl_runner.data.benchmarks import KINDS
from cl_runner.errors import UserError
from cl_runner.nn.networks import MODELS
from cl_runner.strategies.er import ER
from cl_runner.strategies.ewc import EWC
from cl_runner.strategies.l2 import L2

CONF = Path(__file__).parents[1] / "conf"
Node = dict[str, Any]


def refused(function: Callable[[], object]) -> str:
    """The message of the UserError that it raises; always one line."""
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Parsing.


@dataclass(frozen=True, kw_only=True)
class Example:
    name: str
    lambda_: float = 1.0
    size: int | None = None
    flag: bool = False
    sizes: list[int] = field(default_factory=lambda: [3])


def test_parse_fills_the_class_and_its_defaults() -> None:
    assert parse(Example, {"name": "a"}, "x") == Example(name="a")
    node = {"name": "b", "lambda": 2, "size": 4, "flag": True, "sizes": [1, 2]}
    full = parse(Example, node, "x")
    assert full == Example(name="b", lambda_=2.0, size=4, flag=True, sizes=[1, 2])
    assert isinstance(full.lambda_, float)
    assert type(full.sizes) is list
    assert parse(Example, {"name": "b", "size": None}, "x").size is None


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"name": "a", "lamda": 1.0}, "x.lamda"),
        ({"name": "a", "lambda_": 1.0}, "x.lambda_"),  # written without the underscore
        ({}, "x.name must be set"),
        ({"name": "???"}, "x.name must be set"),
        ({"name": None}, "x.name"),
        ({"name": "a", "lambda": "big"}, "x.lambda"),
        ({"name": "a", "lambda": None}, "x.lambda"),
        ({"name": "a", "lambda": [1.0]}, "x.lambda"),
        ({"name": "a", "size": 1.5}, "x.size"),
        ({"name": "a", "size": "many"}, "x.size"),
        ({"name": "a", "flag": "maybe"}, "x.flag"),
        ({"name": "a", "sizes": 3}, "x.sizes"),
        ({"name": "a", "sizes": ["a"]}, "x.sizes"),
        ({"name": "a", "sizes": {"a": 1}}, "x.sizes"),
        ({"name": {"a": 1}}, "x.name"),
    ],
)
def test_parse_refuses_and_names_the_key(node: Node, named: str) -> None:
    assert named in refused(lambda: parse(Example, node, "x"))


def test_an_unknown_key_is_told_the_known_ones() -> None:
    message = refused(lambda: parse(Example, {"nam": 1}, "x"))
    assert all(f.name.rstrip("_") in message for f in dataclasses.fields(Example))


def test_the_top_level_has_no_prefix() -> None:
    assert refused(lambda: parse(Example, {"size": 1}, "")).startswith("name must be set")


# Ranges: a value on each side of every limit.

BENCHMARK: Node = {
    "name": "b",
    "kind": "k",
    "dataset": "d",
    "num_tasks": 2,
    "default_scenario": "class",
    "default_epochs": 1,
    "seed": 0,
}
BASES: dict[type, Node] = {
    schema.Benchmark: BENCHMARK,
    benchmarks.Split: BENCHMARK,
    benchmarks.Permuted: BENCHMARK,
    benchmarks.Rotated: BENCHMARK,
    benchmarks.Files: BENCHMARK,
    benchmarks.Table: BENCHMARK | {"label": "y", "slice": "month"},
    schema.MLP: {"name": "mlp"},
    schema.CNN: {"name": "cnn"},
    schema.StridedCNN: {"name": "strided_cnn"},
    schema.ResNet: {"name": "resnet18", "width": 8, "init": "default"},
    schema.Optimizer: {"name": "sgd", "lr": 0.1},
    schema.SGD: {"name": "sgd", "lr": 0.1},
    schema.Adam: {"name": "adam", "lr": 0.1},
    schema.Training: {},
    schema.Guard: {},
    schema.Energy: {},
    EWC: {"name": "ewc"},
    L2: {"name": "l2"},
    ER: {"name": "er"},
}
NAN = float("nan")
WRONG: list[tuple[type, Node, str]] = [
    *(
        (schema, keys, key)
        for schema in (benchmarks.Split, benchmarks.Permuted, benchmarks.Rotated)
        for keys, key in (
            ({"default_scenario": "classes"}, "benchmark.default_scenario"),
            ({"num_tasks": 0}, "benchmark.num_tasks"),
            ({"train_fraction": 0.0}, "benchmark.train_fraction"),
            ({"train_fraction": 1.1}, "benchmark.train_fraction"),
            ({"train_fraction": NAN}, "benchmark.train_fraction"),
            ({"train_samples": 0}, "benchmark.train_samples"),
            ({"train_samples": 10, "train_fraction": 0.5}, "benchmark.train_samples"),
            ({"validation_fraction": -0.1}, "benchmark.validation_fraction"),
            ({"validation_fraction": 1.0}, "benchmark.validation_fraction"),
            ({"mean": [0.5]}, "benchmark.std"),
            ({"std": [0.5]}, "benchmark.mean"),
            ({"mean": [0.5], "std": [0.0]}, "benchmark.std"),
            ({"mean": [0.5, 0.5], "std": [1.0, -1.0]}, "benchmark.std"),
        )
    ),
    (benchmarks.Split, {"class_order": "random"}, "benchmark.class_order"),
    (benchmarks.Split, {"classes": []}, "benchmark.classes must be one or more different numbers"),
    (benchmarks.Split, {"classes": [1, 1]}, "benchmark.classes"),
    (benchmarks.Split, {"classes": [-1, 2]}, "benchmark.classes"),
    (benchmarks.Rotated, {"angle_spacing": "odd"}, "benchmark.angle_spacing"),
    (benchmarks.Rotated, {"angles": [1.0]}, "benchmark.angles"),
    (benchmarks.Rotated, {"angles": []}, "benchmark.angles"),
    (benchmarks.Rotated, {"angles": [1.0, 2.0, 3.0]}, "benchmark.angles"),
    *(
        (schema, keys, key)
        for schema in (benchmarks.Files, benchmarks.Table)
        for keys, key in (
            ({"num_tasks": 0}, "benchmark.num_tasks"),
            ({"test_fraction": 0.0}, "benchmark.test_fraction"),
            ({"test_fraction": 1.0}, "benchmark.test_fraction"),
            ({"test_fraction": NAN}, "benchmark.test_fraction"),
            ({"text_features": 0}, "benchmark.text_features"),
            ({"text_features": 2**20 + 1}, "benchmark.text_features"),
            ({"clip": 0.0}, "benchmark.clip must be positive, or null, got 0.0"),
            ({"clip": NAN}, "benchmark.clip"),
            (
                {"label": "y", "drop": ["y"]},
                "benchmark.label and benchmark.drop both",
            ),
            ({"text": ["a"], "drop": ["a"]}, "benchmark.text and benchmark.drop both name"),
            ({"text": ["a", "a"]}, "benchmark.text and benchmark.text both name column a"),
        )
    ),
    (benchmarks.Table, {"label": None}, "benchmark.label must name the column"),
    (benchmarks.Table, {"slice": None, "num_tasks": None}, "benchmark.slice=COLUMN (a task for"),
    (benchmarks.Table, {"slice_by": "week"}, "benchmark.slice_by must be one of"),
    (benchmarks.Table, {"slice": None, "slice_by": "day"}, "needs benchmark.slice=COLUMN"),
    (benchmarks.Table, {"slice": "y"}, "benchmark.label and benchmark.slice both name column y"),
    (schema.MLP, {"init": "he"}, "model.init"),
    (schema.MLP, {"hidden_sizes": [10, 0]}, "model.hidden_sizes"),
    (schema.MLP, {"dropout": 1.0}, "model.dropout"),
    (schema.MLP, {"dropout": -0.1}, "model.dropout"),
    (schema.CNN, {"channels": []}, "model.channels"),
    (schema.CNN, {"channels": [4, 0]}, "model.channels"),
    (schema.CNN, {"hidden_size": 0}, "model.hidden_size"),
    (schema.StridedCNN, {"channels": []}, "model.channels"),
    (schema.StridedCNN, {"channels": [4, 0]}, "model.channels"),
    (schema.StridedCNN, {"hidden_sizes": [0]}, "model.hidden_sizes"),
    (schema.ResNet, {"width": 0}, "model.width"),
    *(
        (schema, keys, key)
        for schema in (schema.SGD, schema.Adam)
        for keys, key in (
            ({"schedule": "linear"}, "optimizer.schedule"),
            ({"lr": 0.0}, "optimizer.lr"),
            ({"lr": -0.1}, "optimizer.lr"),
            ({"lr": NAN}, "optimizer.lr"),
            ({"weight_decay": -0.1}, "optimizer.weight_decay"),
            ({"milestones": [0.0], "schedule": "step"}, "optimizer.milestones"),
            ({"milestones": [0.5, 1.0], "schedule": "step"}, "optimizer.milestones"),
            ({"milestones": [0.5]}, "optimizer.milestones"),
            ({"schedule": "step"}, "optimizer.milestones"),
            ({"milestones": [0.5], "schedule": "cosine"}, "optimizer.milestones"),
            ({"decay": 0.0, "milestones": [0.5], "schedule": "step"}, "optimizer.decay"),
            ({"decay": -0.5, "milestones": [0.5], "schedule": "step"}, "optimizer.decay"),
        )
    ),
    (schema.SGD, {"momentum": 1.0}, "optimizer.momentum"),
    (schema.SGD, {"momentum": -0.1}, "optimizer.momentum"),
    (schema.SGD, {"nesterov": True}, "optimizer.nesterov"),
    (schema.Adam, {"betas": [0.9]}, "optimizer.betas"),
    (schema.Adam, {"betas": [0.9, 0.99, 0.999]}, "optimizer.betas"),
    (schema.Adam, {"betas": [0.9, 1.0]}, "optimizer.betas"),
    (schema.Adam, {"betas": [-0.1, 0.9]}, "optimizer.betas"),
    (schema.Adam, {"eps": 0.0}, "optimizer.eps"),
    (schema.Training, {"active_classes": "none"}, "training.active_classes"),
    (schema.Training, {"augment": "mixup"}, "training.augment"),
    (schema.Training, {"epochs": 0}, "training.epochs"),
    (schema.Training, {"iterations": 0}, "training.iterations"),
    (schema.Training, {"batch_size": 0}, "training.batch_size"),
    (schema.Training, {"passes": 0}, "training.passes"),
    (schema.Training, {"passes": 2, "boundaries": "detected"}, "training.passes"),
    (schema.Guard, {"drop": -0.01}, "guard.drop"),
    (schema.Guard, {"drop": 1.0}, "guard.drop"),
    (schema.Guard, {"every": 0}, "guard.every"),
    (schema.Guard, {"action": "halt"}, "guard.action"),
    (schema.Energy, {"watts": 0.0}, "energy.watts"),
    (EWC, {"lambda_": -1.0}, "strategy.lambda"),
    (EWC, {"lambda_": NAN}, "strategy.lambda"),
    (EWC, {"mode": "both"}, "strategy.mode"),
    (EWC, {"gamma": 0.0}, "strategy.gamma"),
    (EWC, {"gamma": 1.5}, "strategy.gamma"),
    (EWC, {"fisher_labels": "empirical"}, "strategy.fisher_labels"),
    (EWC, {"fisher_samples": 0}, "strategy.fisher_samples"),
    (EWC, {"penalty": "hard"}, "strategy.penalty"),
    (L2, {"lambda_": -1.0}, "strategy.lambda"),
    (ER, {"buffer_size": 0}, "strategy.buffer_size"),
    (ER, {"replay_batch_size": 0}, "strategy.replay_batch_size"),
    (ER, {"policy": "fifo"}, "strategy.policy"),
    (ER, {"weighting": "half"}, "strategy.weighting"),
]
RIGHT: list[tuple[type, Node]] = [
    *((schema, {}) for schema in BASES),
    (schema.Benchmark, {"num_tasks": 1, "train_fraction": 0.001, "validation_fraction": 0.999}),
    (schema.Benchmark, {"train_samples": 1, "mean": [0.0], "std": [1e-9]}),
    (benchmarks.Rotated, {"angles": [-90.0, 400.0], "angle_spacing": "random"}),
    (benchmarks.Files, {"num_tasks": None, "test_fraction": 1e-9, "text_features": 1}),
    (benchmarks.Table, {"slice": None, "num_tasks": 1}),
    (benchmarks.Table, {"slice_by": "day", "categories": ["a"], "text": ["b"], "drop": ["c"]}),
    (schema.MLP, {"hidden_sizes": [], "dropout": 0.999, "init": "xavier"}),
    (schema.CNN, {"channels": [1], "hidden_size": 1}),
    (schema.StridedCNN, {"channels": [1], "hidden_sizes": []}),
    (benchmarks.Split, {"classes": [7, 0]}),
    (schema.Optimizer, {"milestones": [0.001, 0.999], "schedule": "step"}),
    (schema.SGD, {"momentum": 0.999, "nesterov": True}),
    (schema.Adam, {"betas": [0.0, 0.0], "schedule": "cosine"}),
    (schema.Training, {"iterations": 1, "batch_size": 1, "active_classes": "current"}),
    (schema.Training, {"passes": 1, "boundaries": "detected"}),
    (EWC, {"lambda_": 0.0, "mode": "online", "gamma": 1e-9, "fisher_samples": 1}),
    (ER, {"buffer_size": 1, "replay_batch_size": 1, "policy": "ring"}),
]


@pytest.mark.parametrize(("schema", "keys", "key"), WRONG)
def test_a_value_out_of_range_is_refused_with_its_key(schema: type, keys: Node, key: str) -> None:
    assert key in refused(lambda: schema(**{**BASES[schema], **keys}))
    written = {name.rstrip("_"): value for name, value in {**BASES[schema], **keys}.items()}
    section = key.partition(".")[0]
    assert key in refused(lambda: parse(schema, written, section))


@pytest.mark.parametrize(("schema", "keys"), RIGHT)
def test_the_limits_themselves_are_accepted(schema: type, keys: Node) -> None:
    made = schema(**{**BASES[schema], **keys})
    assert all(getattr(made, key) == value for key, value in keys.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"


# Whole configurations.


@pytest.fixture
def node(configure: Callable[..., Config]) -> Node:
    """The default configuration as plain values."""
    return OmegaConf.to_container(OmegaConf.create(dict(configure().resolved)))  # a copy


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("seed", -1, "seed"),
        ("seed", "x", "seed"),
        ("seed", None, "seed"),
        ("scenario", "klass", "scenario"),
        ("device", "tpu", "device"),
        ("threads", 0, "threads"),
        ("verbose", "loud", "verbose"),
        ("plots", "all", "plots"),
        ("sede", 1, "sede"),
        ("benchmark", None, "benchmark"),
        ("strategy", "ewc", "strategy"),
        ("benchmark.kind", "merged", "benchmark.kind"),
        ("benchmark.kind", None, "benchmark.kind"),
        ("benchmark.class_order", "natural", "benchmark.class_order"),  # the default is permuted
        ("benchmark.num_tasks", "ten", "benchmark.num_tasks"),
        ("model.name", "vit", "model.name"),
        ("model.width", 3, "model.width"),
        ("optimizer.name", "lion", "optimizer.name"),
        ("optimizer.betas", [0.9, 0.99], "optimizer.betas"),
        ("optimizer.lr", -1, "optimizer.lr"),
        ("training.epoch", 3, "training.epoch"),
        ("data.path", [1], "data.path"),
        ("scenario", "${nowhere}", "nowhere"),
        ("model.hidden_sizes", [[5]], "model.hidden_sizes must be a list of int, got [[5]]"),
        ("benchmark.mean", [[0.1]], "benchmark.mean must be a list of float, or null, got [[0.1]]"),
        ("benchmark.std", [{"a": 1}], "benchmark.std must be a list of float, or null"),
        ("model.hidden_sizes", [10**21], "model.hidden_sizes must be less than 2^63"),
        ("seed", 2**63, "seed must be less than 2^63"),
        ("optimizer.weight_decay", 1e308, "optimizer.weight_decay must lie within 3.4e+38 of 0"),
        ("optimizer.lr", 10**400, "optimizer.lr must be float"),
        ("optimizer.lr", "nan", "optimizer.lr must be finite"),
        ("benchmark.mean", ["inf"], "benchmark.mean must be finite"),
        ("seeds", {}, "seeds must be a list of int, or null, got {}"),
        ("plots", {"a": 1}, "plots must be bool, got {'a': 1}"),
        ("fail_fast", {"a": 1}, "fail_fast must be bool, got {'a': 1}"),
        ("plugins", {"a": 1}, "plugins must be a list of str"),
    ],
)
def test_validate_refuses_and_names_the_key(
    node: Node, path: str, value: object, named: str
) -> None:
    *outer, last = path.split(".")
    inner = node[outer[0]] if outer else node
    inner[last] = value
    assert named in refused(lambda: validate(OmegaConf.create(node)))


def test_a_strategys_number_must_fit_float32(configure: Callable[..., Config]) -> None:
    node = configure("strategy=ewc", "strategy.lambda=1e300").strategy
    with pytest.raises(UserError, match=r"strategy\.lambda must lie within 3\.4e\+38 of 0"):
        strategies.build(node)
    assert strategies.build({**node, "lambda": 3.4e38}).lambda_ == 3.4e38


@pytest.mark.parametrize("section", ["data", "benchmark", "model", "optimizer", "training"])
def test_a_missing_section_is_named(node: Node, section: str) -> None:
    del node[section]
    assert section in refused(lambda: validate(OmegaConf.create(node)))


def test_the_default_configuration(configure: Callable[..., Config]) -> None:
    cfg = configure()
    assert (cfg.benchmark.name, cfg.model.name, cfg.optimizer.name) == (
        "permuted_digits",
        "mlp",
        "sgd",
    )
    assert cfg.scenario == cfg.benchmark.default_scenario == "domain"
    assert cfg.strategy["name"] == "ewc"
    assert not {"detector", "ssl"} & cfg.resolved.keys()  # validated again, as a run that goes on
    assert validate(OmegaConf.create(dict(cfg.resolved))).detector == cfg.detector
    assert cfg.resolved["benchmark"]["num_tasks"] == cfg.benchmark.num_tasks
    assert type(strategies.build(cfg.strategy)) is EWC


def test_a_benchmarks_defaults_yield_to_the_user(configure: Callable[..., Config]) -> None:
    cfg = configure("benchmark=split_cifar100", "seed=7")
    assert (cfg.scenario, cfg.training.epochs, cfg.benchmark.seed) == ("class", 5, 7)
    own = ("scenario=task", "training.epochs=2", "benchmark.seed=1")
    cfg = configure("benchmark=split_cifar100", "seed=7", *own)
    assert (cfg.scenario, cfg.training.epochs, cfg.benchmark.seed) == ("task", 2, 1)


def test_strategies_are_built_from_their_section() -> None:
    assert strategies.build({"name": "l2", "lambda": 3}) == L2(name="l2", lambda_=3.0)
    assert "strategy.name" in refused(lambda: strategies.build({}))
    assert "strategy.name" in refused(lambda: strategies.build({"name": "base"}))
    assert "strategy.name" in refused(lambda: strategies.build({"name": "no_such"}))
    assert "strategy.buffer_size" in refused(
        lambda: strategies.build({"name": "naive", "buffer_size": 3})
    )


# The YAML files.


def schema_of(group: str, node: Mapping[str, Any]) -> type:
    return {
        "benchmark": lambda: KINDS[node["kind"]][0],
        "model": lambda: MODELS[node["name"]][0],
        "adapter": lambda: schema.ADAPTERS[node["name"]],
        "optimizer": lambda: schema.OPTIMIZERS[node["name"]],
        "training": lambda: schema.Training,
        "strategy": lambda: strategies.find(node["name"]),
    }[group]()


NEEDED = {  # what has no default; what is left out of a run that does not use it
    "table": ("benchmark.label=y", "benchmark.slice=month"),
    "default": ("training.ssl=masked",),
}
GROUPS = ("benchmark", "model", "adapter", "optimizer", "training", "strategy")
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").rglob("*.yaml")
)


@pytest.mark.parametrize(("group", "name"), FILES)
def test_a_yaml_file_holds_exactly_its_schema(
    configure: Callable[..., Config], group: str, name: str
) -> None:
    cfg = configure(f"{group}={name}", *NEEDED.get(name, ()))
    node = cfg.resolved.get(group, {"name": "none"})  # an adapter that is none is left out
    file = OmegaConf.load(CONF / group / f"{name}.yaml")
    node = {k: file[k] for section, k in UNSET_WITHIN if section == group and k in file} | node
    schema = schema_of(group, node)
    assert set(node) == {f.name.rstrip("_") for f in dataclasses.fields(schema)}
    assert group == "training" or node["name"] == name
    parsed = strategies.build(node) if group == "strategy" else getattr(cfg, group)
    assert type(parsed) is schema
    assert {f.name.rstrip("_"): getattr(parsed, f.name) for f in dataclasses.fields(schema)} == node


@pytest.mark.parametrize(
    ("group", "name"), [f for f in FILES if f[0] in ("model", "adapter", "strategy")]
)
def test_a_yaml_file_repeats_the_defaults_of_its_schema(group: str, name: str) -> None:
    # A default lives in the class; the file shows it to the user.
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    for f in dataclasses.fields(schema_of(group, node)):
        default = f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        if default is not dataclasses.MISSING:
            assert node[f.name.rstrip("_")] == default


def test_there_is_a_file_for_each_name_and_a_name_for_each_file() -> None:
    names = {group: {name for g, name in FILES if g == group} for group in GROUPS}
    assert names["model"] == set(MODELS)
    assert names["adapter"] == set(schema.ADAPTERS)
    assert names["optimizer"] == set(schema.OPTIMIZERS)
    assert names["strategy"] == set(strategies.available())
    files = [OmegaConf.load(CONF / "benchmark" / f"{name}.yaml") for name in names["benchmark"]]
    assert {file.kind for file in files} == set(KINDS)


@pytest.mark.parametrize("name", strategies.available())
def test_a_strategys_module_defines_one_strategy(name: str) -> None:
    assert strategies.find(name).__module__ == f"cl_runner.strategies.{name}"
    assert importlib.import_module(f"cl_runner.strategies.{name}").__doc__


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=ewc", "strategy.lambda=30", "benchmark=split_digits", "scenario=task"),
        ("model.hidden_sizes=[24,12]", "strategy.fisher_samples=null", "model.dropout=0.5"),
        (
            *("+experiment=vandeven2022/icarl_split_class", "seed=5"),
            *("benchmark.mean=[0.1]", "benchmark.std=[1e-2]"),
        ),
        ("model=cnn", "optimizer=adam", "optimizer.lr=1e-3", "~training.augment", "+training.x=1"),
        ("strategy.alpha=1", "strategy=derpp", "seed=1", "benchmark=rotated_digits", "seed=2"),
        ("strategy=si", "+experiment=hsu2018/ewc_split_task"),
    ],
    ids=" ".join,
)
def test_tests_configure_as_the_command_line_does(composed_in_parts, overrides) -> None:
    """The fixture `configure` composes in parts, which is fifty times faster."""
    node = composed_in_parts(*overrides)
    with initialize_config_module("cl_runner.conf", **BASE):
        assert node == compose("config", list(overrides))


@cache
def read(path: Path) -> DictConfig:
    """A YAML file, parsed once for all tests; not to be changed."""
    return OmegaConf.load(path)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.usefixtures("_pretrained")
@pytest.mark.slow
def test_every_experiment_composes_and_validates(
    configure: Callable[..., Config], name: str
) -> None:
    cfg = configure(f"+experiment={name}")
    strategy = strategies.build(cfg.strategy)
    assert cfg.scenario in strategy.scenarios
    # What the files set arrives, the nearest winning, and the user's overrides win over it.
    files = [f"experiment/{name}", *choices.bases(f"experiment/{name}")]
    layers = [read(CONF / f"{path}.yaml") for path in files]
    merged = OmegaConf.to_container(OmegaConf.merge(*reversed(layers)))
    del merged["defaults"]
    assert merged.pop("scenario") == cfg.scenario
    begins = merged["model"].pop("weights", None)
    assert (begins is None) == (cfg.model.weights is None)
    assert {"benchmark", "model", "optimizer", "training"} <= set(merged)
    for section, keys in merged.items():
        assert keys.items() <= cfg.resolved[section].items()
    chosen = dict(choices.chosen(f"experiment/{name}"))
    del chosen["training"]
    assert {group: cfg.resolved[group]["name"] for group in chosen} == chosen
    # What a protocol cannot pin, for not every optimizer has it.
    if chosen["optimizer"] == "adam":
        assert cfg.resolved["optimizer"]["betas"] == [0.9, 0.999]
    else:
        pinned = merged["optimizer"].get("momentum", 0)
        assert cfg.resolved["optimizer"]["momentum"] == pinned
    other = configure(f"+experiment={name}", "training.batch_size=77", "seed=5", "scenario=domain")
    assert (other.training.batch_size, other.seed, other.scenario) == (77, 5, "domain")
    assert other.benchmark.seed == 5


MISSING = object()


def plain(node: Any) -> dict[str, Any]:
    """A section as it is written, references to other keys included."""
    return OmegaConf.to_container(node, resolve=False)


def repeated(path: str, conf: Path = CONF) -> list[str]:
    """The keys of an experiment or a protocol that one of those below it sets to the same."""
    own, *below = (read(conf / f"{p}.yaml") for p in (path, *choices.bases(path)))
    base = OmegaConf.merge(*reversed(below)) if below else {}
    chosen = {k: v for p in reversed([*choices.bases(path)]) for k, v in choices.chosen(p).items()}
    found = [
        f"{section}.{key}"
        for section in own
        if section not in ("defaults", "scenario")
        for key, value in plain(own[section]).items()
        if section in base and plain(base[section]).get(key, MISSING) == value
    ]
    if "scenario" in own and own.scenario == base.get("scenario"):
        found.append("scenario")
    overridden = [d for d in own.defaults if not isinstance(d, str)]
    options = [(key.rpartition("/")[2], option) for d in overridden for key, option in d.items()]
    return [*found, *(group for group, option in options if chosen.get(group) == option)]


PROTOCOLS = choices.options("protocol")


@pytest.mark.parametrize(
    "path", [*(f"experiment/{n}" for n in EXPERIMENTS), *(f"protocol/{n}" for n in PROTOCOLS)]
)
def test_what_a_protocol_says_is_said_once(path: str) -> None:
    assert repeated(path) == []
    if path.startswith("experiment/"):
        assert any(base.startswith("protocol/") for base in choices.bases(path))


def test_a_repeated_key_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = {
        "defaults": [
            "/protocol/split_mnist_class",
            {"override /strategy": "er"},
            {"override /optimizer": "adam"},
        ],
        "scenario": "class",
        "optimizer": {"lr": 0.001, "reset": True},
        "training": {"batch_size": 10},
        "strategy": {"buffer_size": 500},
    }
    shutil.copytree(CONF / "protocol", tmp_path / "protocol")
    OmegaConf.save(preset, tmp_path / "protocol" / "preset.yaml")
    monkeypatch.setattr(choices, "files", lambda _: tmp_path)
    monkeypatch.setattr(choices, "text", choices.text.__wrapped__)
    monkeypatch.setattr(choices, "chosen", choices.chosen.__wrapped__)
    monkeypatch.setattr(choices, "defaults", choices.defaults.__wrapped__)
    assert repeated("protocol/preset", tmp_path) == ["optimizer.lr", "scenario", "optimizer"]


def test_no_two_protocols_have_one_body() -> None:
    bodies = [str(read(CONF / f"protocol/{name}.yaml")) for name in PROTOCOLS]
    assert len(set(bodies)) == len(bodies)


def test_a_protocol_leaves_no_trace_in_the_configuration(configure: Callable[..., Config]) -> None:
    preset, plain = configure("+experiment=preset/split_mnist_class/er"), configure()
    assert preset.resolved.keys() == plain.resolved.keys()


def test_a_word_may_be_true(configure):
    """The Fisher's label rule `true`, which YAML takes for a boolean."""
    config = configure("strategy=ewc", "strategy.fisher_labels=true")
    assert strategies.build(config.strategy).fisher_labels == "true"
