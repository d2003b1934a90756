"""`cl-run list` and `cl-run explain`: everything there is, with what its files say of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cl_runner import strategies
from cl_runner.cli import catalogue, choices
from cl_runner.errors import UserError

CONF = Path(__file__).parents[1] / "conf"


def told(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert catalogue.main(args[0], args[1:]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("plural", "group"), choices.GROUPS.items())
def test_every_option_is_listed_once_with_a_sentence(
    capsys: pytest.CaptureFixture[str], plural: str, group: str
) -> None:
    text = told(capsys, "list", plural)
    listed = {}
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        start = title.split()[0].removesuffix("...")  # strategy=, or experiment=hsu2018/
        listed |= {f"{start}{name}": about for name, about in (ln.split(None, 1) for ln in lines)}
    files = [path.relative_to(CONF / group) for path in (CONF / group).rglob("*.yaml")]
    assert sorted(listed) == sorted(f"{group}={file.with_suffix('')}" for file in files)
    assert text.count("\n  ") == len(files)
    assert all(len(sentence) > 8 for sentence in listed.values())
    assert told(capsys, "list", group) == text


def test_experiments_are_listed_below_their_papers_and_protocols(
    capsys: pytest.CaptureFixture[str],
) -> None:
    titles = re.findall("(?m)^experiment=.*", told(capsys, "list", "experiments"))
    papers = (
        *("arani2022", "buzzega2020", "chaudhry2019", "delange2023", "hsu2018", "kirkpatrick2017"),
        *("lee2020", "pan2020", "prabhu2020", "record", "soutif2023"),
        *("vandeven2022", "vandeven2025"),
    )
    presets = (
        *("flights", "permuted_mnist", "split_digits", "split_letter"),
        *("split_mnist_class", "split_mnist_task", "weather"),
    )
    folders = (*papers, *(f"preset/{name}" for name in presets))
    assert titles == [f"experiment={folder}/..." for folder in folders]


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
    assert "ewc_split_task" not in text


@pytest.mark.parametrize("name", strategies.available())
def test_a_strategy_is_explained_whole(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = told(capsys, "explain", name)
    cls = strategies.find(name)
    assert f"Scenarios: {', '.join(cls.scenarios)}" in text
    assert (cls.__doc__ or "").splitlines()[0].strip() in text
    for line in (CONF / "strategy" / f"{name}.yaml").read_text().splitlines():
        assert line.lstrip("# ") in text or line == f"name: {name}"
    presets = {
        path.relative_to(CONF / "experiment").with_suffix("")
        for path in (CONF / "experiment").rglob("*.yaml")
        if re.search(rf"override /strategy: {name}\b", path.read_text())
    }
    assert presets
    assert all(re.search(rf"^  {preset} ", text, re.MULTILINE) for preset in presets)


def test_the_published_cell_stands_beside_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "ewc")
    row = r"(?m)^  hsu2018/ewc_split_task +EWC on Split MNIST.*published 0\.9770"
    assert re.search(row, text)
    inherited = told(capsys, "explain", "naive")  # it takes its strategy from another
    assert "  buzzega2020/naive_split_task " in inherited


@pytest.mark.parametrize("name", ["mlp", "split_digits", "adamw"])
def test_other_options_are_explained_by_their_files(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (path,) = (p for p in CONF.glob(f"*/{name}.yaml") if p.parent.name != "protocol")
    text = told(capsys, "explain", name)
    assert text.startswith(f"{path.parent.name}={name}\n")
    for line in path.read_text().splitlines():
        assert line.lstrip("# ") in " ".join(text.split("\n")) or "@package" in line


def test_an_experiment_is_explained_with_its_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "preset/split_mnist_class/er")
    assert text.startswith("experiment=preset/split_mnist_class/er\n\nSplit MNIST, class-incr")
    own, above, below = (
        (CONF / f"{path}.yaml").read_text().splitlines()
        for path in (
            "experiment/preset/split_mnist_class/er",
            "protocol/split_mnist_class",
            "protocol/split_mnist",
        )
    )
    shown = text.splitlines()
    for lines in (own, above, below):
        assert all(f"  {line}" in shown for line in lines if not line.startswith("#"))
    assert "protocol/split_mnist: Split MNIST, as the presets of this project have it," in text


def test_an_old_name_is_explained_as_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main("explain", ["hsu-ewc-til"]) == 0
    out, err = capsys.readouterr()
    assert out == told(capsys, "explain", "hsu2018/ewc_split_task")
    assert err.startswith("experiment=hsu-ewc-til is now hsu2018/ewc_split_task; ")


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
        (["explain", "l2_split_task"], "(did you mean hsu2018/l2_split_task?)"),
        (
            ["explain", "ewc_split_clas"],
            "unknown name ewc_split_clas (did you mean hsu2018/ewc_split_class?)",
        ),
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
    monkeypatch.setenv("COLUMNS", "80")
    lines = catalogue.listed("experiments").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 1.5 * len(choices.options("experiment")), "most are one line"


def test_names_that_begin_alike_are_one() -> None:
    names = ("seed", "data.root", "data.path", "eval.every")
    assert catalogue.braced(names, ".") == "seed, data.{root, path}, eval.every"


def test_completions_of_commands_that_are_no_run() -> None:
    assert "ewc" in (catalogue.completions("cl-run explain e") or [])
    assert "strategies" in (catalogue.completions("cl-run list ") or [])
    assert catalogue.completions("cl-run strategy=e") is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cl-run exp", ["experiment="]),
        ("cl-run -m +exp", ["+experiment="]),
        ("cl-run seed=1 experiment=hsu2018/l2", ["experiment=hsu2018/l2_split_task"]),
        ("cl-run +experiment=vandeven2022/s", ["+experiment=vandeven2022/si_split_task"]),
        ("cl-run experiment=nothing", []),
        ("cl-run pr", ["precision="]),
        ("cl-run opt", ["optimizer=", "optimizer."]),
        ("cl-run ev", ["eval."]),
        ("cl-run strategy.", None),
        ("cl-run --config-dir my experiment=", None),
    ],
)
def test_completions_of_a_run_that_hydra_does_not_know(line: str, found: list[str] | None) -> None:
    assert catalogue.completions(line) == found


def test_every_first_word_may_be_typed() -> None:
    words = catalogue.completions("cl-run ") or []
    tops = {word.rstrip("=./") for word in words}
    keys = set(OmegaConf.load(CONF / "config.yaml")) - {"defaults"}
    assert tops == keys | {*choices.GROUPS.values(), "training"}
    assert len(words) == len(set(words))
