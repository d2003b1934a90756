"""model.weights: a run starts from trained weights, of another run or of a file, or is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import Question, compare_runs
from cl_runner.comparing.verify import verify_runs
from cl_runner.config.identity import config_hash
from cl_runner.config.parse import validate
from cl_runner.config.weights import WEIGHTS, pinned
from cl_runner.errors import UserError
from cl_runner.nn.networks import build, factory
from cl_runner.results.matrices import read_matrix
from cl_runner.running.loop import run
from cl_runner.running.tasks import initial_state
from cl_runner.testing import assert_same, snapshot

TOY = ("benchmark=split_digits", "strategy=naive", "training.epochs=1", "verbose=false")
SMALL = ("model.hidden_sizes=[24,12]",)
RESNET = ("model=reduced_resnet18", "model.width=2", "benchmark.train_samples=60")
HEAD = ("layers.2.weight", "layers.2.bias")

Pretrained = Callable[..., Path]


@pytest.fixture
def pretrained(configure, tmp_path: Path) -> Pretrained:
    """pretrained("seed=3", ...) -> the folder of a complete run that has left its weights."""

    def function(*overrides: str) -> Path:
        out = tmp_path / "pretrained"
        run(configure(*TOY, "seed=3", "checkpoint.keep=true", *overrides), out)
        return out

    return function


@pytest.fixture
def trained(prepared, tmp_path: Path) -> Path:
    """A file as torch's users write one: of an MLP like that of SMALL, for ten classes."""
    config, _, env = prepared(*TOY, *SMALL)
    make_net = factory(config.model, env.input_shape, env.num_classes)
    file = tmp_path / "mine.safetensors"
    save_file(build(make_net, 99).state_dict(), file)
    return file


def spoiled(file: Path, **changes: torch.Tensor | None) -> Path:
    """The file with some of its tensors changed; None: without it. Dots are written as `__`."""
    tensors = load_file(file)
    for key, value in changes.items():
        name = key.replace("__", ".")
        tensors = {k: v for k, v in tensors.items() if k != name or value is not None}
        tensors |= {} if value is None else {name: value}
    save_file(tensors, file)
    return file


# What a run starts from.


@pytest.mark.parametrize("model", [SMALL, RESNET], ids=["mlp", "BatchNorm"])
def test_a_run_begins_where_another_one_ended(prepared, configure, pretrained, tmp_path, model):
    """Row 0 of its matrix is the other's last row: weights and BatchNorm's statistics are there."""
    folder = pretrained(*model)
    first, second = (f"model.weights={folder}", f"model.weights={folder / WEIGHTS}")
    _, strategy, env = prepared(*TOY, *model, first)
    named = env.flat.module.state_dict()
    assert {k: v.tolist() for k, v in named.items()} == {
        k: v.tolist() for k, v in load_file(folder / WEIGHTS).items()
    }
    _, other, env_of_file = prepared(*TOY, *model, second)
    assert_same(snapshot(initial_state(strategy, env)), snapshot(initial_state(other, env_of_file)))
    run(configure(*TOY, *model, first, "benchmark.seed=3"), tmp_path / "on")
    ended = read_matrix(folder / "accuracy_matrix.csv")[-1]
    assert read_matrix(tmp_path / "on" / "accuracy_matrix.csv")[0].tolist() == ended.tolist()


def test_an_output_layer_that_does_not_fit_is_new_and_told(prepared, trained, capsys, caplog):
    caplog.set_level("INFO")
    overrides = (*TOY[1:3], *SMALL, "benchmark=rotated_digits", "scenario=task", "seed=5")
    _, _, env = prepared(*overrides, f"model.weights={trained}", "verbose=true")
    _, _, plain = prepared(*overrides)
    theirs, own = load_file(trained), env.flat.module.state_dict()
    for name, value in own.items():
        expected = plain.flat.module.state_dict()[name] if name in HEAD else theirs[name]
        assert torch.equal(value, expected), name
    line = (
        "model.weights: starts from 1,860 trained numbers; the output layer is new: "
        "layers.2.weight is float32 [10, 12] there and float32 [50, 12] here"
    )
    assert line in capsys.readouterr().out and line in caplog.text


def test_a_body_alone_gets_a_new_output_layer(prepared, trained):
    spoiled(trained, layers__2__weight=None, layers__2__bias=None)
    _, _, env = prepared(*TOY, *SMALL, f"model.weights={trained}")
    _, _, plain = prepared(*TOY, *SMALL)
    for name, value in env.flat.module.state_dict().items():
        same = torch.equal(value, plain.flat.module.state_dict()[name])
        assert same == (name in HEAD), name


@pytest.mark.parametrize(
    "strategy",
    ["pnn", "soft_sharing", "den", "hat", "xdg", "generative_replay", "bir", "separate"],
)
def test_what_a_strategy_makes_of_the_network_starts_from_them(prepared, trained, strategy):
    """Columns, copies, reserves, gates: the file is read into what they are made of."""
    begin = f"model.weights={trained}"
    overrides = (*TOY, *SMALL, f"strategy={strategy}", "scenario=task", begin)
    more = ("strategy.initial=network",) if strategy == "xdg" else ()  # else it scales them
    _, own, env = prepared(*overrides, *more)
    theta = set(initial_state(own, env).theta.tolist())
    theirs = load_file(trained)
    assert all(set(theirs[f"layers.{i}.weight"].flatten().tolist()) <= theta for i in (0, 1))


def test_from_scratch_starts_each_task_from_them(prepared, trained):
    _, own, env = prepared(*TOY, *SMALL, "strategy=from_scratch", f"model.weights={trained}")
    s = initial_state(own, env)
    changed = s._replace(theta=s.theta.detach() + 1)
    assert torch.equal(own.begin_task(changed, env.stream[1], env).theta, s.theta)


def test_half_precision_is_read_as_float32(prepared, trained):
    half = {name: v.half() for name, v in load_file(trained).items()}
    save_file(half, trained)
    _, _, env = prepared(*TOY, *SMALL, f"model.weights={trained}")
    own = env.flat.module.state_dict()
    assert all(v.dtype == torch.float32 and torch.equal(v, half[k].float()) for k, v in own.items())


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers__0__weight": torch.zeros(24, 63)},
            r"layers.0.weight is float32 \[24, 63\] there, and float32 \[24, 64\] in the network",
        ),
        (
            {"layers__1__weight": torch.zeros(12, 24, dtype=torch.int64)},
            r"layers.1.weight is int64 \[12, 24\] there, and float32 \[12, 24\] in the network",
        ),
        ({"layers__1__bias": None}, r"layers.1.bias is missing; the network has it, float32 \[12"),
        (
            {"fc__weight": torch.zeros(2)},
            "the network has no fc.weight; those of the network are layers.0.weight, layers",
        ),
        ({"layers__1__bias": torch.full((12,), torch.nan)}, "layers.1.bias in .* is not finite"),
    ],
)
def test_what_does_not_fit_is_named_with_both_shapes(prepared, trained, change, message):
    spoiled(trained, **change)
    with pytest.raises(UserError, match=message):
        prepared(*TOY, *SMALL, f"model.weights={trained}")


def test_what_is_no_weights_is_refused_in_one_line(configure, tmp_path):
    lost, noise, other = (tmp_path / n for n in ("b.safetensors", "c.safetensors", "d.npz"))
    noise.write_bytes(b"no header")
    other.write_bytes(b"")
    for path, message in (
        (other, "the folder of a run or a .safetensors, .pt, .pth file"),
        (lost, "it does not exist"),
        (tmp_path, f"there is no {WEIGHTS} in that folder; a run leaves one with checkpoint.keep"),
    ):
        with pytest.raises(UserError, match=message) as error:
            configure(*TOY, f"model.weights={path}")
        assert "\n" not in str(error.value)
    config = configure(*TOY, f"model.weights={noise}")
    with pytest.raises(UserError, match="is no file of safetensors"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Files of torch.


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_a_file_of_torch_save_is_read(prepared, trained, tmp_path, wrapped):
    """As training scripts leave it: below a key or not, of a DataParallel or not."""
    theirs = load_file(trained)
    named = {f"module.{k}": v for k, v in theirs.items()} if wrapped else theirs
    file = tmp_path / "mine.pt"
    torch.save({"epoch": 3, wrapped: named} if wrapped else named, file)
    _, _, env = prepared(*TOY, *SMALL, f"model.weights={file}")
    own = env.flat.module.state_dict()
    assert {k: v.tolist() for k, v in own.items()} == {k: v.tolist() for k, v in theirs.items()}


class Bomb:
    """What a pickle executes when it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_would_execute_is_refused_and_executes_nothing(configure, tmp_path):
    mark, file, old = tmp_path / "executed", tmp_path / "bomb.pt", tmp_path / "old.pth"
    torch.save({"weight": Bomb(mark)}, file)
    old.write_bytes(pickle.dumps(Bomb(mark)))
    for path in (file, old):
        config = configure(*TOY, f"model.weights={path}")
        with pytest.raises(UserError, match=r"cannot read .*: it must hold tensors alone") as error:
            run(config, tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not mark.exists() and not (tmp_path / "run").exists()
    torch.load(file, weights_only=False)  # it is a bomb
    assert mark.exists()


@pytest.mark.parametrize("content", ["cut", "noise", "a number", "numbers", "a network"])
def test_a_file_of_torch_without_named_tensors_is_refused(prepared, trained, tmp_path, content):
    file = tmp_path / "mine.pth"
    whole = {"cut": load_file(trained), "a number": 3, "numbers": {"lr": 0.1}}
    torch.save(whole.get(content, torch.nn.Linear(2, 2)), file)
    if content in ("cut", "noise"):
        file.write_bytes(file.read_bytes()[:300] if content == "cut" else b"noise")
    with pytest.raises(UserError, match=r"cannot read|holds no named tensors") as error:
        prepared(*TOY, *SMALL, f"model.weights={file}")
    assert "\n" not in str(error.value)


def test_old_names_are_told(cl_run, tmp_path):
    for old, new in (("init_from", "model.weights"), ("init_only", "model.weights_for")):
        done = cl_run(f"{old}=x", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.strip().endswith(f"{old} is now {new}: write that in its place")


# Which run it is.


def test_a_run_is_known_by_what_the_file_holds(composed_in_parts, trained):
    def resolved() -> dict:
        return validate(composed_in_parts(*TOY, *SMALL, f"model.weights={trained}")).resolved

    first, own = resolved(), hashlib.sha256(trained.read_bytes()).hexdigest()[:16]
    assert (
        first["model"]["weights"] == f"{trained}#sha256={own}" == pinned(first["model"]["weights"])
    )
    assert config_hash(first) == config_hash(resolved())
    spoiled(trained, layers__0__bias=torch.ones(24))
    assert config_hash(first) != config_hash(resolved())
    with pytest.raises(UserError, match=f"is not what it was: its SHA-256 begins with .* {own}"):
        pinned(first["model"]["weights"])


def test_a_changed_file_resumes_no_run(cl_run, data_root, trained, tmp_path):
    """Under the same name: told by the same command again, and from the folder alone."""
    begin = f"model.weights={trained}"
    overrides = (*TOY, *SMALL, begin, f"data.root={data_root}", "device=cpu")
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    again = (*overrides, folder, "resume=true")
    for args in ((*overrides, folder), again, (f"resume={tmp_path / 'run'}",)):
        done = cl_run(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    spoiled(trained, layers__0__bias=torch.ones(24))
    done = cl_run(*again, cwd=tmp_path)
    assert done.returncode == 2
    assert "config.yaml is of another configuration: model.weights is" in done.stderr
    done = cl_run(f"resume={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 2 and "is not what it was" in done.stderr


def test_without_it_a_run_is_what_it_was(configure):
    assert configure(*TOY).resolved["model"].keys() & {"weights", "weights_for"} == set()
    assert configure(*TOY).resolved == configure(*TOY, "model.weights=null").resolved


@pytest.mark.slow
def test_seeds_in_one_stack_start_from_the_same_weights(cl_run, data_root, trained, tmp_path):
    """And end as each does alone; cl-compare tells them from runs that start from nothing."""
    short = ("benchmark.num_tasks=2", "training.batch_size=16", "threads=1")
    common = (*TOY, *SMALL, *short, f"data.root={data_root}", "device=cpu")
    warm = (*common, f"model.weights={trained}")
    for args in (
        (*warm, "seeds=[0,1]", "hydra.run.dir=warm"),
        (*warm, "seed=1", "hydra.run.dir=alone"),
        (*common, "seeds=[0,1]", "hydra.run.dir=cold"),
    ):
        done = cl_run(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    log = (tmp_path / "warm" / "seed=1" / "cl-run.log").read_text()
    assert "trained as one of 2 in a stacked state" in log
    together, alone = (
        read_matrix(tmp_path / path / "accuracy_matrix.csv") for path in ("warm/seed=1", "alone")
    )
    assert together == pytest.approx(alone, abs=0.01)
    runs, _ = read_runs([str(tmp_path / "warm"), str(tmp_path / "cold")])
    groups = compare_runs(runs, Question()).streams[0].groups
    found = sorted(g.settings["model.weights"].partition("#")[0] for g in groups)
    assert found == ["", str(trained)]
    assert verify_runs([str(tmp_path)])[1] == []


@pytest.mark.slow
def test_what_was_learnt_on_rotated_digits_helps_to_learn_from_few(cl_run, data_root, tmp_path):
    """Ten classes before, five in each task now: after the first task, against new weights."""
    common = ("model.hidden_sizes=[64]", "threads=1", "device=cpu", f"data.root={data_root}")
    before = ("benchmark=rotated_digits", "strategy=joint", "training.epochs=4", "optimizer=adam")
    few = (
        *("benchmark=split_digits", "benchmark.num_tasks=2", "scenario=domain", "strategy=naive"),
        *("benchmark.train_samples=100", "training.batch_size=10", "training.epochs=4"),
    )
    commands = {
        "before": (*before, "checkpoint.keep=true"),
        "cold": (*few, "seeds=[0,1,2]"),
        "warm": (*few, "seeds=[0,1,2]", "model.weights=before"),
    }
    for folder, args in commands.items():
        done = cl_run(*common, *args, f"hydra.run.dir={folder}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the output layer is new: layers.1.weight is float32 [10, 64]") == 1
    cold, warm = (
        sum(
            read_matrix(tmp_path / way / f"seed={s}" / "accuracy_matrix.csv")[1][0]
            for s in range(3)
        )
        for way in ("cold", "warm")
    )
    assert warm / 3 > cold / 3 + 0.1
