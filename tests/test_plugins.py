"""Strategies of the user's own packages; and what configuration files may not do."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cl_runner import strategies
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows

CL_RUN = Path(sys.executable).with_name("cl-run")
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


def call(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CL_RUN, *args],
        cwd=cwd,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def example(tmp_path: Path) -> list[str]:
    """docs/extending.md's example, written as its text says; the arguments of its command."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    text = page.partition("## Your own strategy")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"`(my_\w+/[\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    assert set(blocks) == {"my_strategies/halfway.py", "my_conf/strategy/halfway.yaml"}
    for name, content in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    command = re.search(r"^PYTHONPATH=\. cl-run (.*)$", text, re.MULTILINE)
    assert command is not None
    return shlex.split(command[1])


def accuracies(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "accuracies.csv")


@pytest.mark.slow
def test_the_documents_example_trains_sweeps_and_resumes(example, data_root, tmp_path):
    root = f"data.root={data_root}"
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
    assert rows[0.0]["plugins"] == '["my_strategies"]'

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
    again = call("plugins=[my_strategies]", "resume=alone", cwd=tmp_path, PYTHONPATH=".")
    assert again.stderr == ""
    assert "goes on in task 3" in again.stdout
    assert accuracies(tmp_path / "alone") == before


@pytest.mark.slow
def test_a_package_that_is_not_there_is_one_line(example, tmp_path):
    result = call(*example, *QUICK, cwd=tmp_path, PYTHONPATH="")
    assert result.returncode == 2
    hint = "install it, or put the folder that holds it on PYTHONPATH"
    assert result.stderr == f"cl-run: plugins: there is no package my_strategies; {hint}\n"
    assert not (tmp_path / "outputs").exists()


CLASS = """
from dataclasses import dataclass
from cl_runner.strategies.base import Strategy
@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    x: {type} = {default}
"""
PLAIN = CLASS.format(type="int", default="1")


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
            r"^plugins: a.mine cannot be imported \(OSError: no such thing\)$",
        ),
        ({"a/mine.py": PLAIN, "b/mine.py": PLAIN}, "two of the packages have a strategy mine"),
        (
            {"a/mine.py": CLASS.format(type="complex", default="1j")},
            "^the fields of Mine cannot be read from YAML: Unexpected type annotation: complex$",
        ),
        ({"a/other.py": PLAIN}, "strategy.name must be one of .*, other, got 'mine'"),
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
    with pytest.raises(UserError, match=r"^strategy\.name must be one of agem, cls_er, .+, xdg$"):
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
    """No pickle, no eval; arrays only with allow_pickle=False, YAML only by safe loaders."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            # outline.py runs parts of cl_runner's own modules, as an import would.
            allowed = {"compile", "exec"} if path.name == "outline.py" else set()
            assert name not in FORBIDDEN - allowed, f"{path}:{node.lineno}"
            if name.endswith("read_array"):
                assert "allow_pickle=False" in ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert not FORBIDDEN & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in FORBIDDEN
