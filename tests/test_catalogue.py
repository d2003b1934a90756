"""`cl-run list` and `cl-run explain`: everything there is, with what its files say of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cl_runner import strategies
from cl_runner.cli import catalogue
from cl_runner.errors import UserError

CONF = Path(__file__).parents[1] / "conf"


def told(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert catalogue.main(args[0], args[1:]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("plural", "group"), catalogue.GROUPS.items())
def test_every_option_is_listed_once_with_a_sentence(
    capsys: pytest.CaptureFixture[str], plural: str, group: str
) -> None:
    lines = told(capsys, "list", plural).splitlines()
    listed = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert sorted(name for name, _ in listed) == sorted(p.stem for p in (CONF / group).iterdir())
    assert all(len(sentence) > 8 for _, sentence in listed)
    assert told(capsys, "list", group).splitlines() == lines


def test_strategies_are_listed_by_family_with_paper_and_scenarios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    families = dict(
        block.split("\n", 1) for block in told(capsys, "list", "strategies").strip().split("\n\n")
    )
    assert re.search("^  ewc .*1612.00796", families["strategy=... regularisation"], re.MULTILINE)
    (packnet,) = (
        line
        for line in families["strategy=... architecture"].splitlines()
        if line.startswith("  packnet ")
    )
    assert packnet.endswith("Only scenario=task.")


def test_the_whole_list_has_all_groups_but_the_experiments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = told(capsys, "list")
    assert all(f"{group}=..." in text for group in ("strategy", "benchmark", "model", "optimizer"))
    assert text.endswith(" presets, see cl-run list experiments\n")
    assert "hsu-ewc-til" not in text


@pytest.mark.parametrize("name", strategies.available())
def test_a_strategy_is_explained_whole(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = told(capsys, "explain", name)
    cls = strategies.find(name)
    assert f"Scenarios: {', '.join(cls.scenarios)}" in text
    assert (cls.__doc__ or "").splitlines()[0].strip() in text
    for line in (CONF / "strategy" / f"{name}.yaml").read_text().splitlines():
        assert line.lstrip("# ") in text or line == f"name: {name}"
    presets = {
        path.stem
        for path in (CONF / "experiment").glob("*.yaml")
        if re.search(rf"override /strategy: {name}\b", path.read_text())
    }
    assert all(re.search(rf"^  {preset} ", text, re.MULTILINE) for preset in presets)


def test_the_published_cell_stands_beside_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "ewc")
    assert re.search(r"^  hsu-ewc-til +EWC on Split MNIST.*published 0\.9770", text, re.MULTILINE)
    inherited = told(capsys, "explain", "naive")  # der-sgd-til takes its strategy from another
    assert "  der-sgd-til " in inherited


@pytest.mark.parametrize("name", ["mlp", "split_digits", "adamw", "hsu-ewc-til"])
def test_other_options_are_explained_by_their_files(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (path,) = CONF.glob(f"*/{name}.yaml")
    text = told(capsys, "explain", name)
    assert text.startswith(f"{path.parent.name}={name}\n")
    for line in path.read_text().splitlines():
        assert line.lstrip("# ") in " ".join(text.split("\n")) or "@package" in line


def test_every_key_outside_the_groups_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "config")
    keys = set(OmegaConf.load(CONF / "config.yaml")) - {"defaults", "hydra"}
    assert all(re.search(rf"^  {key}:", text, re.MULTILINE) for key in keys)
    assert "hydra" not in text
    assert "within a task" in told(capsys, "explain", "checkpoint")
    assert "replaces epochs" in told(capsys, "explain", "training")


def test_a_key_is_explained_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "strategy.buffer_size")
    assert "strategy.buffer_size of strategy=agem\n  buffer_size: 500 " in text
    assert re.search(r"strategy=.*\bderpp, er\b", text)
    text = told(capsys, "explain", "milestones")
    assert "optimizer.milestones\n" in text  # all optimizers agree
    assert told(capsys, "explain", "budget.flops").startswith("budget.flops\n  flops: null")
    assert told(capsys, "explain", "seed").startswith("seed\n")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["explain", "EWCC"], "unknown name EWCC (did you mean ewc?); see cl-run list"),
        (["explain", "bufer_size"], "did you mean"),
        (["explain"], "takes one name"),
        (["list", "stratgies"], "unknown name stratgies (did you mean strategies?)"),
        (["list", "a", "b"], "takes one name"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(args: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        catalogue.main(args[0], args[1:])
    assert line in str(caught.value)


def test_a_new_strategy_is_listed_without_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FAMILIES", {"some": ("naive",)})
    sections = catalogue.strategies()
    assert list(sections["strategy=... some"]) == ["naive"]
    assert "ewc" in sections["strategy=... others"]


def test_every_family_is_of_strategies_there_are_and_has_them_once() -> None:
    members = [name for family in catalogue.FAMILIES.values() for name in family]
    assert len(members) == len(set(members))
    assert set(members) <= set(strategies.available())


def test_on_a_terminal_lines_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, catalogue.listed("strategies").splitlines())) <= 60


def test_names_that_begin_alike_are_one() -> None:
    names = ("seed", "data.root", "data.path", "eval.every")
    assert catalogue.braced(names, ".") == "seed, data.{root, path}, eval.every"


def test_completions_of_commands_that_are_no_run() -> None:
    assert "ewc" in (catalogue.completions("cl-run explain e") or [])
    assert "strategies" in (catalogue.completions("cl-run list ") or [])
    assert catalogue.completions("cl-run strategy=e") is None
