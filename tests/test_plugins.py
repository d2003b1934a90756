"""What packages of the user's own bring, and do wrong; and what no configuration may do."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cl_runner import strategies
from cl_runner.cli.search_path import with_yaml_of_plugins
from cl_runner.config.plugins import defined
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.running.stacked import StackedStep
from cl_runner.running.tasks import Member, initial_state
from cl_runner.running.tasks import train_task as alone
from cl_runner.running.together import train_task
from cl_runner.strategies.base import Strategy
from cl_runner.testing import composer

REPOSITORY = Path(__file__).parents[1]
QUICK = (
    "benchmark=split_digits",
    "benchmark.num_tasks=2",
    "benchmark.train_samples=60",
    "training.iterations=3",
    "training.batch_size=8",
    "model.hidden_sizes=[8]",
    "device=cpu",
    "threads=1",
)


@pytest.fixture
def call(cl_run) -> Callable[..., subprocess.CompletedProcess[str]]:
    """call(arg, ..., cwd=..., PYTHONPATH="."): what the command does that finds packages there."""

    def function(*args: str, cwd: Path, PYTHONPATH: str = "") -> subprocess.CompletedProcess[str]:
        found = f"import sys; sys.path.insert(0, {str(cwd)!r})" if PYTHONPATH else ""
        return cl_run(*args, cwd=cwd, before=found, PYTHONPATH=PYTHONPATH)

    return function


PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {
    *("my_lib/halfway.py", "my_lib/conf/strategy/halfway.yaml", "test_halfway.py"),
    *("my_lib/light.py", "my_lib/conf/benchmark/light_digits.yaml"),
    *("my_lib/bottleneck.py", "my_lib/conf/model/bottleneck.yaml"),
}


@pytest.fixture
def page(tmp_path: Path) -> dict[str, list[str]]:
    """docs/extending.md's examples, written as its text says; the arguments of its commands."""
    blocks = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
    assert set(blocks) == FILES
    for name, content in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = re.findall(r"^PYTHONPATH=\. cl-run (.*)$", PAGE, re.MULTILINE)
    return dict(zip(("strategy", "benchmark", "model"), map(shlex.split, commands), strict=True))


def importable(folder: Path, monkeypatch: pytest.MonkeyPatch, *packages: str) -> Iterator[Path]:
    """Packages in a folder may be imported meanwhile, and are forgotten after."""
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [m for m in sys.modules if m.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture
def prepared_by_my_lib(page, data_root, tmp_path, monkeypatch):
    """prepared(...) with the package of these examples, which this process may import."""
    assert page
    for _ in importable(tmp_path, monkeypatch, "my_lib"):
        yield composer(str(data_root), ["my_lib"])


def accuracies(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "accuracies.csv")


@pytest.mark.slow
def test_the_documents_strategy_trains_sweeps_and_resumes(call, page, data_root, tmp_path):
    root, example = f"data.root={data_root}", page["strategy"]
    # share=0: nothing goes back, which is fine-tuning; share=1: all does, which learns nothing.
    shares = ("strategy.share=0.0,1.0", "hydra.sweep.dir=sweep")
    assert (
        call("-m", *example[:-1], *QUICK, root, *shares, cwd=tmp_path, PYTHONPATH=".").stderr == ""
    )
    naive = call(*QUICK, root, "strategy=naive", "hydra.run.dir=naive", cwd=tmp_path)
    assert naive.stderr == ""
    rows = {float(r["strategy.share"]): r for r in read_rows(tmp_path / "sweep/summary.csv")}
    zero, one = (accuracies(tmp_path / "sweep" / rows[share]["run"]) for share in (0.0, 1.0))
    assert zero == accuracies(tmp_path / "naive")
    cells = [r for r in one if (r["eval_task"], r["reading"]) == ("1", "class")]
    assert len({r["accuracy"] for r in cells}) == 1
    assert rows[0.0]["plugins"] == '["my_lib"]'

    # In worker processes (dropout keeps runs from being stacked), alone, and resumed.
    args = (*example, *QUICK, root, "model.dropout=0.2")
    several = call(*args, "seeds=[0,1]", "hydra.run.dir=seeds", cwd=tmp_path, PYTHONPATH=".")
    assert several.stderr == ""
    if (os.cpu_count() or 1) > 1:
        assert "2 runs in" in (tmp_path / "seeds/cl-run.log").read_text()
    alone = call(*args, "hydra.run.dir=alone", "checkpoint.keep=true", cwd=tmp_path, PYTHONPATH=".")
    assert alone.stderr == ""
    assert accuracies(tmp_path / "alone") == accuracies(tmp_path / "seeds/seed=0")
    before = accuracies(tmp_path / "alone")
    (tmp_path / "alone/summary.csv").unlink()  # as if it had been killed before the last line
    again = call("plugins=[my_lib]", "resume=alone", cwd=tmp_path, PYTHONPATH=".")
    assert again.stderr == ""
    assert "goes on in task 3" in again.stdout
    assert accuracies(tmp_path / "alone") == before


@pytest.mark.slow
def test_yaml_in_a_folder_apart_does_as_well(call, page, data_root, tmp_path):
    (tmp_path / "my_lib/conf").rename(tmp_path / "my_conf")
    args = (*page["strategy"], *QUICK, f"data.root={data_root}", "hydra.run.dir=out")
    apart = call("--config-dir", "my_conf", *args, cwd=tmp_path, PYTHONPATH=".")
    assert (apart.returncode, apart.stderr) == (0, "")


@pytest.mark.slow
def test_the_documents_benchmark_and_model_train_in_sweeps_and_resume(
    call, page, data_root, tmp_path
):
    def train(*args: str) -> None:
        own = ("training.iterations=4", f"data.root={data_root}", "device=cpu", "threads=1")
        done = call(*args, *own, cwd=tmp_path, PYTHONPATH=".")
        assert (done.returncode, done.stderr) == (0, "")

    assert page["benchmark"][0] == "-m"
    train(*page["benchmark"], "hydra.sweep.dir=light")
    assert len(read_rows(tmp_path / "light/summary.csv")) == 2
    both = [*page["model"], "benchmark=light_digits", "strategy=naive"]
    train(*both, "seeds=[0,1]", "hydra.run.dir=stacked")
    assert (
        "2 runs are trained as one stacked state" in (tmp_path / "stacked/cl-run.log").read_text()
    )
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/e.yaml").write_text("# @package _global_\nscenario: task\n")
    own = ("hydra.searchpath=[file://mine]", "+experiment=e", "seed=0,1")
    joblib = ["joblib"] if find_spec("hydra_plugins.hydra_joblib_launcher") else []
    for name in ("vectorized", *joblib):
        train("-m", *both, *own, f"hydra/launcher={name}", f"hydra.sweep.dir={name}")
        assert {r["scenario"] for r in read_rows(tmp_path / name / "summary.csv")} == {"task"}
    train(*both, "hydra.run.dir=alone", "checkpoint.keep=true")
    assert accuracies(tmp_path / "alone") == accuracies(tmp_path / "stacked/seed=0")
    before = accuracies(tmp_path / "alone")
    (tmp_path / "alone/summary.csv").unlink()
    unnamed = call("resume=alone", cwd=tmp_path, PYTHONPATH=".")
    assert (unnamed.returncode, unnamed.stdout) == (2, "")
    assert "would import my_lib: if you trust what is called that" in unnamed.stderr
    again = call("plugins=[my_lib]", "resume=alone", cwd=tmp_path, PYTHONPATH=".")
    assert (again.returncode, again.stderr) == (0, "")
    assert accuracies(tmp_path / "alone") == before
    export = ("export", "alone", "--to", "safetensors", "model")
    unnamed = call(*export, cwd=tmp_path, PYTHONPATH=".")
    assert (unnamed.returncode, unnamed.stdout) == (2, "")
    assert "name those that may be imported (--plugins my_lib)" in unnamed.stderr
    named = call(*export, "--plugins", "my_lib", cwd=tmp_path, PYTHONPATH=".")
    assert (named.returncode, named.stderr) == (0, "")
    shown = call(*both, "--cfg", "job", cwd=tmp_path, PYTHONPATH=".")
    assert "kind: light" in shown.stdout and "narrow: 8" in shown.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("page")
def test_the_documents_tests_pass(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "test_halfway.py", "-W", "error"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_a_transform_with_two_tables_is_stacked_and_equals_runs_alone(prepared_by_my_lib):
    light = ("benchmark=light_digits", "benchmark.num_tasks=2", "training.iterations=5")
    runs = [
        Member(
            *prepared_by_my_lib(*light, "strategy=er", "model.hidden_sizes=[9]", f"seed={seed}")[1:]
        )
        for seed in (0, 1)
    ]
    tables = [m.env.stream.tables for m in runs]
    assert set(tables[0]) == {"label", "gain", "offset"}
    assert not torch.equal(tables[0]["gain"], tables[1]["gain"])
    states = [initial_state(*m) for m in runs]
    begun = [s._replace(theta=s.theta.detach().clone()) for s in states]
    step = StackedStep(runs)
    for t in (0, 1):
        states = train_task(runs, states, t, step)
    for m, s, together in zip(runs, begun, states, strict=True):
        own = m.env.commit(s)
        for task in m.env.stream:
            own = alone(m.strategy, own, task, m.env)
        torch.testing.assert_close(together.theta, own.theta, rtol=1e-4, atol=1e-5)


def test_a_task_shows_the_images_in_its_own_light(prepared_by_my_lib):
    _, _, env = prepared_by_my_lib("benchmark=light_digits", "strategy=naive")
    stream, rows = env.stream, torch.tensor([0, 5, 7])
    gain, offset = stream.tables["gain"], stream.tables["offset"]
    expected = (stream.x[rows] * gain[2] + offset[2]).to(torch.uint8)
    assert torch.equal(stream.images(rows, 2), expected)
    assert torch.equal(stream.images(rows, torch.tensor([0, 2, 1]))[1], expected[1])
    assert len(set(gain.tolist())) == 4


# A plain nn.Module, which shows no activations between its layers
REFUSING = {"den", "pnn", "hat", "xdg", "icarl", "latent_replay", "bir"}
REFUSING |= {"wa", "bic", "lucir", "er_aml", "scr"}
REFUSING |= {"vcl", "er strategy.policy=herding", "expandable_head strategy.new_units=imprinted"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*strategies.available(), *sorted(c for c in REFUSING if " " in c)]
)
def test_a_strategy_trains_a_plain_module_or_refuses_it_in_a_line(prepared_by_my_lib, case):
    overrides = [
        *("model=bottleneck", "benchmark.num_tasks=2", "benchmark.train_samples=60"),
        *("training.iterations=2", "training.batch_size=8"),
    ]
    name, *more = case.split()
    more += {"gdumb": ["strategy.epochs=2"], "ridge": ["strategy.features=50"]}.get(name, [])
    supported = strategies.find(name).scenarios
    where = "domain" if "domain" in supported else supported[0]

    def train() -> None:
        prepared = prepared_by_my_lib(*overrides, f"strategy={name}", f"scenario={where}", *more)
        _, strategy, env = prepared
        s = initial_state(strategy, env)
        for task in env.stream:
            s = alone(strategy, s, task, env)

    if case not in REFUSING:
        train()
        return
    with pytest.raises(UserError) as caught:
        train()
    assert "\n" not in str(caught.value)


# The search path


class Pretender:
    """As `list[int]` on Python 3.10: inspect takes it for a class, issubclass does not."""

    __class__ = type


def test_a_name_of_a_type_in_a_plugin_is_no_class_of_its_own():
    module = ModuleType("mine")
    module.Mine = type("Mine", (Strategy,), {"__module__": "mine"})
    module.Names = Pretender()
    assert defined(module, Strategy) == [module.Mine]


def test_the_yaml_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    for name in ("a", "b/inner", "it's b"):
        (tmp_path / name / "conf").mkdir(parents=True)
    for file in ("a/__init__.py", "b/__init__.py", "c.py"):
        (tmp_path / file).write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    one, two = (f"'file://{tmp_path}/{name}/conf'" for name in ("a", "b/inner"))
    for args, expected in (
        (["plugins=[a]", "seed=1"], [f"hydra.searchpath=[{one}]", "plugins=[a]", "seed=1"]),
        (["-m", "plugins=[a],['b.inner']"], ["-m", f"hydra.searchpath=[{one},{two}]"]),
        (
            ["hydra.searchpath=[pkg://x]", "-m", "++plugins=[a,b]"],
            ["-m", f"hydra.searchpath=['pkg://x',{one}]", "++plugins=[a,b]"],
        ),
        (["plugins=[c]"], ["plugins=[c]"]),  # a module alone, which has no folder
        (["plugins=a"], ["plugins=a"]),  # told by the schema
        (["plugins=[]", "resume=a=b"], ["plugins=[]", "resume=a=b"]),
    ):
        assert with_yaml_of_plugins(args)[: len(expected)] == expected
    assert not {"a", "b", "c"} & set(sys.modules)


@pytest.mark.unix
def test_a_path_may_hold_any_characters(tmp_path, monkeypatch, data_root):
    odd = tmp_path / 'it\'s a "place", [really] = ${so}'
    for name, content in re.findall(r"`(my_lib/[\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        (odd / name).parent.mkdir(parents=True, exist_ok=True)
        (odd / name).write_text(content, encoding="utf-8")
    for _ in importable(odd, monkeypatch, "my_lib"):
        config, *_ = composer(str(data_root), ["my_lib"])("strategy=halfway", "model=bottleneck")
        assert (config.model.narrow, config.strategy["share"]) == (16, 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("group", ["strategy", "benchmark", "model"])
def test_an_unknown_name_asks_for_the_package(cl_run, group, tmp_path):
    result = cl_run(f"{group}=hebbian", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"cl-run: unknown option {group}=hebbian; known are ")
    assert result.stderr.endswith("; is it in a package of yours? plugins=[...]\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    result = cl_run(f"{group}=hebbian", "plugins=[my_lib]", cwd=tmp_path, before=path)
    assert result.returncode == 2
    assert result.stderr.endswith(f"; in a package of yours it is conf/{group}/hebbian.yaml\n")


@pytest.mark.slow
def test_a_package_that_is_not_there_is_one_line(call, page, tmp_path):
    result = call(*page["strategy"], *QUICK, cwd=tmp_path, PYTHONPATH="")
    assert result.returncode == 2
    hint = "install it, or put the folder that holds it on PYTHONPATH"
    assert result.stderr == f"cl-run: plugins: there is no package my_lib; {hint}\n"
    assert not (tmp_path / "outputs").exists()


# Errors in a file of the user's


BROKEN = """
from dataclasses import dataclass
import torch
from cl_runner.strategies.base import Strategy

@dataclass(frozen=True, kw_only=True)
class Broken(Strategy):
    def end_task(self, s, task, env):
        {statement}
"""
STATEMENTS = {
    "raise ValueError('no\\n idea')": "^{line}: ValueError: no idea; ",
    "torch.nn.functional.softmax(None)": "^{line}: AttributeError: ",
    "open('not there')": "^{line}: FileNotFoundError: ",
    "check": "^{line}: NameError: name 'check' is not defined; ",
    "env.update(s, s.theta[:3])": "^a bug in cl_runner, or in {line}, which calls it: Runtime",
}


@pytest.fixture
def broken(tmp_path):
    """broken(statement): a package with a strategy that does this at the end of a task."""

    def function(statement: str) -> None:
        for name, text in (
            ("my_broken/broken.py", BROKEN.format(statement=statement)),
            ("my_broken/conf/strategy/broken.yaml", "name: broken\n"),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")

    return function


@pytest.mark.slow
@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_error_in_a_file_of_the_users_is_told_as_theirs(
    cl_run, broken, statement, data_root, tmp_path
):
    broken(statement)
    args = ("plugins=[my_broken]", "strategy=broken", *QUICK, f"data.root={data_root}")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    result = cl_run(*args, "hydra.run.dir=out", cwd=tmp_path, before=path)
    assert result.returncode == 1
    line = "my_broken/broken.py line 9, in end_task"
    said = result.stderr.removeprefix("cl-run: ")
    assert re.match(STATEMENTS[statement].format(line=re.escape(line)), said), said
    assert said.count("\n") == 1 and "the traceback is in" in said
    assert f"{tmp_path}/my_broken/broken.py" in (tmp_path / "out/traceback.txt").read_text()
    assert json.loads((tmp_path / "out/status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_an_error_in_a_worker_process_or_a_sweep_is_told_as_theirs(
    call, broken, data_root, tmp_path
):
    broken("raise KeyError(3)")
    args = ("plugins=[my_broken]", "strategy=broken", *QUICK, f"data.root={data_root}")
    several = ("seeds=[0,1]", "model.dropout=0.2", "hydra.run.dir=seeds")
    line = "my_broken/broken.py line 9, in end_task: KeyError: 3; the traceback is in"
    result = call(*args, *several, cwd=tmp_path, PYTHONPATH=".")
    assert result.returncode == 1
    assert result.stderr.startswith(f"cl-run: {line}"), result.stderr
    result = call("-m", *args, "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path, PYTHONPATH=".")
    assert result.returncode == 1
    assert result.stderr.count(f"cl-run: {line}") == 2


CLASS = """
from dataclasses import dataclass
from cl_runner.strategies.base import Strategy
@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    x: {type} = {default}
"""
PLAIN = CLASS.format(type="int", default="1")
OTHER = """
from cl_runner.config.schema import {base}
class My{base}({base}): ...
"""
BENCHMARK, MODEL = (OTHER.format(base=base) for base in ("Benchmark", "Model"))
STREAM = "def stream(config, data, scenario): ...\n"
BUILD = "def build(config, input_shape, num_classes): ...\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/__init__.py": ""}, "a defines no strategy"),
        ({"a/ewc.py": PLAIN}, "a.ewc has the name of a strategy of cl_runner"),
        ({"a/mine.py": PLAIN + PLAIN.replace("Mine", "Other")}, "several strategies"),
        ({"a/mine.py": "import nothing_like_it"}, "a.mine cannot be imported .*nothing_like_it"),
        ({"a/mine.py": "1 +"}, "a.mine cannot be imported .SyntaxError"),
        (
            {"a/mine.py": "raise OSError('no\\n such\\tthing')"},
            r"^plugins: a.mine cannot be imported \(a/mine.py line 1: OSError: no such thing\)$",
        ),
        ({"a/mine.py": PLAIN, "b/mine.py": PLAIN}, "two of the packages have a strategy mine"),
        (
            {"a/mine.py": CLASS.format(type="complex", default="1j")},
            "^the fields of Mine cannot be read from YAML: Unexpected type annotation: complex$",
        ),
        ({"a/other.py": PLAIN}, "strategy.name must be one of .*, other, got 'mine'$"),
        ({"a/other.py": PLAIN, "a/mine.py": "x = 1"}, "a.mine defines no strategy: it needs a sub"),
        ({"a/mine.py": BENCHMARK}, "a.mine is no whole benchmark: .* stream.config, data, scen"),
        ({"a/mine.py": MODEL + "build = 1"}, "a.mine is no whole model: .* build.config, input_sh"),
        ({"a/mine.py": PLAIN + MODEL + BUILD}, "a.mine defines a strategy and a model; a file"),
        ({"a/split.py": BENCHMARK + STREAM}, "a.split has the name of a benchmark of cl_runner"),
        ({"a/mlp.py": MODEL + BUILD}, "a.mlp has the name of a model of cl_runner; rename"),
        ({"a/m.py": MODEL + MODEL.replace("My", "Your") + BUILD}, "a.m defines several models"),
    ],
)
def test_a_package_that_cannot_be_used_is_told(files, words, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    plugins = sorted({name[0] for name in files})
    try:
        with pytest.raises(UserError, match=words) as caught:
            strategies.build({"name": "mine", "x": 2}, plugins)
        assert "\n" not in str(caught.value)
    finally:
        for name in [m for m in sys.modules if re.fullmatch(r"[ab](\..+)?", m)]:
            del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["no_such_package", "no_such_package.inner.most", "cl_runner.none.inner", "cl_runner.c"]
)
def test_a_missing_package_is_told(name):
    hint = "install it, or put the folder that holds it on PYTHONPATH"
    with pytest.raises(UserError, match=f"^plugins: there is no package {name}; {hint}$"):
        strategies.find("mine", [name])


def test_a_missing_name_lists_all():
    with pytest.raises(
        UserError, match=r"^strategy\.name must be one of adam_nscl, agem, .+, xdg$"
    ):
        strategies.build({"lambda": 1})


def test_a_single_module_is_a_package_of_one_strategy(tmp_path, monkeypatch):
    (tmp_path / "my_single_one.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    found = strategies.build({"name": "my_single_one", "x": 5}, ["my_single_one"])
    assert (type(found).__name__, found.x) == ("Mine", 5)
    with pytest.raises(UserError, match=r"strategy\.x must be int, got 'a'"):
        strategies.build({"name": "my_single_one", "x": "a"}, ["my_single_one"])


# What executes


@pytest.mark.parametrize(
    "args",
    [
        ["strategy.name=os"],
        ["strategy.name=cl_runner.strategies.ewc"],
        ["strategy.name=../strategies/ewc"],
        ["strategy.name=base"],
        ["+strategy._target_=os.system"],
        ["model.name=torch.nn.Linear"],
        ["+model._target_=os.system"],
        ["benchmark.kind=os"],
        ["benchmark.dataset=os"],
        ["optimizer.name=torch.optim.SGD"],
        ["+training._target_=os.system"],
        ["plugins=os"],
    ],
    ids=" ".join,
)
def test_a_configuration_names_nothing_but_ours(args, prepared):
    with pytest.raises(UserError):
        prepared(*args)


FORBIDDEN = {
    *("pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "torch.load", "torch.save"),
    *("eval", "exec", "compile", "os.system", "np.load", "numpy.load", "__import__"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "hydra.utils.instantiate", "instantiate"),
}


@pytest.mark.parametrize(
    "path",
    [p for d in ("cl_runner", "hydra_plugins") for p in (REPOSITORY / d).rglob("*.py")],
    ids=lambda path: path.stem,
)
def test_nothing_in_the_package_reads_what_executes(path):
    """No eval, no pickle but of tensors alone; arrays only with allow_pickle=False, safe YAML."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            # without_torch.py runs parts of cl_runner's own modules, as an import would.
            allowed = {"compile", "exec"} if path.name == "without_torch.py" else set()
            if name == "torch.load":  # of tensors alone: model.weights
                allowed = {name} if "weights_only=True" in ast.unparse(node) else set()
            assert name not in FORBIDDEN - allowed, f"{path}:{node.lineno}"
            if name.endswith("read_array"):
                assert "allow_pickle=False" in ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert not FORBIDDEN & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN
