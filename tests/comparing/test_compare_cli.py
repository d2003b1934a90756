"""cl-compare as its users see it: output, files and exit codes; the last test trains."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cl_runner.comparing import cli
from cl_runner.errors import UserError
from cl_runner.results.files import read_rows
from cl_runner.sweeping import merge

COMMANDS = Path(sys.executable).parent


def run(*arguments: str | Path) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def here(run_folder, tmp_path: Path, monkeypatch) -> Path:
    """A working directory beside the folder `runs` with two strategies of two seeds."""
    for strategy, acc in {"er": 0.6, "naive": 0.4}.items():
        for seed in (0, 1):
            run_folder(acc + seed / 20 * acc, strategy=strategy, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_the_table_and_comparison_csv(capsys) -> None:
    assert run("runs") == 0
    assert "\n\ntoy, 3 tasks, domain-IL\n" in capsys.readouterr().out
    with Path("comparison.csv").open(newline="") as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == ["er", "naive"]
    assert run("runs", "--format", "csv", "--where", "strategy=er") == 0  # overwrites its own
    assert capsys.readouterr().out == Path("comparison.csv").read_text()
    assert Path("comparison.csv").read_text().count("\n") == 2
    assert run(".") == 0  # the folder that now holds comparison.csv, too


@pytest.mark.usefixtures("here")
def test_chosen_columns_are_printed_and_the_file_has_all(capsys) -> None:
    assert run("runs", "--format", "csv", "--columns", "samples,forgetting") == 0
    header = next(csv.reader(capsys.readouterr().out.splitlines()))
    assert "ACC" not in header
    assert [name for name in header if name in {"samples", "forgetting"}] == [
        "samples",
        "forgetting",
    ]
    assert {"ACC", "BWT", "samples", "position"} <= set(read_rows(Path("comparison.csv"))[0])


@pytest.mark.parametrize("name", ["markdown", "latex", "json", "csv", "table"])
@pytest.mark.usefixtures("here")
def test_every_format_prints(capsys, name: str) -> None:
    assert run("runs", "--format", name, "--baseline", "naive", "--out", "x.csv") == 0
    out = capsys.readouterr().out
    assert "er" in out.lower() and "naive" in out
    assert Path("x.csv").exists() and not Path("comparison.csv").exists()


@pytest.mark.usefixtures("here")
def test_a_file_that_is_not_ours_is_never_overwritten() -> None:
    Path("comparison.csv").write_text("my,own,table\n1,2,3\n")
    with pytest.raises(UserError, match="exists and is no comparison of cl-compare"):
        run("runs")
    assert Path("comparison.csv").read_text() == "my,own,table\n1,2,3\n"
    with pytest.raises(UserError, match="is a folder"):
        run("runs", "--out", "runs")
    with pytest.raises(UserError, match="there is no folder nowhere"):
        run("runs", "--out", "nowhere/x.csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: PATH; see cl-compare --help"),
        (("runs", "--format", "html"), "invalid choice: 'html'"),
        (("runs", "--metrik", "ACC"), "unrecognized arguments"),
        (("nothing",), "there is no file or folder nothing"),
        (("verify",), "required: PATH"),
        (("runs", "--columns", "AC"), "--columns AC: no run has it; did you mean ACC"),
    ],
)
@pytest.mark.usefixtures("here")
def test_mistakes_are_one_line(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_verify_says_what_is_wrong_and_exits_with_1(here: Path, capsys) -> None:
    assert run("verify", "runs") == 0
    path = here / "runs" / "toy-domain-er-0" / "summary.csv"
    path.write_text(path.read_text().replace(",1.5,", ",-1.5,"), encoding="utf-8")
    assert run("verify", "runs") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{path.parent}: seconds is -1.5, no number of at least 0"]


@pytest.mark.usefixtures("here")
def test_a_terminal_gets_the_best_in_bold() -> None:
    from rich.console import Console

    from cl_runner.comparing import render
    from cl_runner.comparing.runs import read_runs
    from cl_runner.comparing.table import Question, compare_runs

    found = compare_runs(read_runs(["runs"])[0], Question())
    console = Console(force_terminal=True, width=70, color_system="standard")
    with console.capture() as capture:
        render.print_terminal(found, console)
    lines = capture.get().splitlines()
    (best,) = [line for line in lines if "ER" in line and "0.615" in line]
    (other,) = [line for line in lines if "naive" in line and "0.410" in line]
    assert "\x1b[1mER\x1b[0m" in best and "\x1b[1m" not in other
    assert all(len(line) < 400 for line in lines)


def command(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / name, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_commands_on_a_real_sweep(cl_run, tmp_path: Path) -> None:
    common = ("benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=4")
    quick = ("model.hidden_sizes=[8]", "threads=1", "device=cpu", "verbose=false")
    many = ("-m", "strategy=naive,joint,er", "seed=0,1", "hydra.sweep.dir=sweep")
    done = cl_run(*many, *common, *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, said, _ = done.stdout.splitlines()
    assert said.startswith("compared in sweep/comparison.csv; tests and pictures: cl-compare sweep")
    more = ("strategy=ewc", "seeds=[0,1]", "hydra.run.dir=ewc", "eval.every=3")
    more += ("eval.calibration=true",)
    assert cl_run(*more, *common, *quick, cwd=tmp_path).returncode == 0
    verified = command("cl-compare", "verify", "sweep", "ewc", cwd=tmp_path)
    assert (verified.returncode, verified.stdout) == (0, "")
    assert verified.stderr == "8 runs verified: all in order\n"
    compared = command("cl-compare", "sweep", "ewc", "--reading", "task", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "\nsplit_digits, 2 tasks, class-IL read as task-IL\n" in compared.stdout
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = {row["strategy"]: row for row in csv.DictReader(file)}
    assert {name: row["n"] for name, row in rows.items()} == dict.fromkeys(
        ("naive", "joint", "er", "ewc"), "2"
    )
    accs = [
        float(row["task_ACC"])
        for path in (tmp_path / "ewc").glob("seed=*/summary.csv")
        for row in read_rows(path)
    ]
    assert float(rows["ewc"]["ACC"]) == pytest.approx(sum(accs) / 2)
    assert rows["ewc"]["min_ACC"] and rows["ewc"]["NLL"] and not rows["er"]["min_ACC"]
    own = read_rows(tmp_path / "sweep" / "comparison.csv")
    assert {(row["strategy"], row["n"]) for row in own} == {
        ("naive", "2"),
        ("joint", "2"),
        ("er", "2"),
    }
    broken = command("cl-compare", "nowhere", cwd=tmp_path)
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr == "cl-compare: there is no file or folder nowhere\n"


@pytest.mark.usefixtures("here")
def test_what_a_terminal_gets_cannot_steer_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    cli.print_result("a\x1b[2J\tb\nc\n")
    cli.print_note("d\x1b]0;title\x07")
    out, err = capsys.readouterr()
    assert (out, err) == ("a\\x1b[2J\\tb\nc\n", "d\\x1b]0;title\\x07\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    cli.print_result("a\tb\n")  # a file gets what is there
    assert capsys.readouterr().out == "a\tb\n"


def test_the_module_is_the_command(here: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cl_runner.comparing",
        "runs",
        "--columns",
        "forgetting,samples",
    ]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert re.search(r"strategy +n +forgetting +samples\n", done.stdout)
    assert done.stderr == "written to comparison.csv\n"


def test_it_never_loads_torch(here: Path) -> None:
    code = (
        "import sys; from cl_runner.comparing.cli import run; "
        "run(['runs']); run(['verify', 'runs']); "
        "print(*{'torch', 'pandas'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == ""


def test_a_sweep_ends_with_its_comparison(run_folder, tmp_path: Path, capsys) -> None:
    """Failed jobs are counted, not averaged in."""
    for seed in (0, 1):
        run_folder(0.6 + seed / 10, seed=seed)
    run_folder(0.1, seed=2, status="failed")
    run_folder(0.4, strategy="naive")
    merge.compared(tmp_path / "runs", verbose=True)
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[2] == ["strategy", "n", "incomplete", "ACC", "forgetting"]
    assert lines[3][:4] == ["ER", "2", "1", "0.650"] and lines[4][:3] == ["naive", "1", "0.400"]
    rows = {row["strategy"]: row for row in read_rows(tmp_path / "runs" / "comparison.csv")}
    assert (rows["er"]["n"], rows["er"]["incomplete"]) == ("2", "1")
    assert float(rows["er"]["ACC"]) == pytest.approx(0.65)
    assert out.splitlines()[-1].endswith(f"cl-compare {tmp_path / 'runs'} --html report.html")
    assert err == ""


def test_a_comparison_that_fails_is_one_line(run_folder, tmp_path: Path, capsys) -> None:
    run_folder(0.5, status="failed")
    merge.compared(tmp_path / "runs", verbose=True)
    out, err = capsys.readouterr()
    assert (out, err) == ("no comparison: none of the 1 runs is complete: failed\n", "")


def test_few_runs_are_compared_without_slow_imports(run_folder, tmp_path: Path) -> None:
    """One seed per setting needs no statistics; several need Student's t only."""
    for strategy in ("er", "naive"):
        run_folder(0.5, strategy=strategy)
    code = (
        "import sys; from pathlib import Path; from cl_runner.sweeping.merge import compared; "
        "compared(Path('runs'), verbose=True); "
        "print(*sorted({'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)), '!')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "!"


@pytest.mark.slow
def test_a_run_draws_its_own_pictures(cl_run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    toy = ("benchmark=split_digits", "benchmark.num_tasks=2", "training.iterations=2", "device=cpu")
    quick = ("model.hidden_sizes=[4]", "plots=true", "hydra.run.dir=a", "threads=1")
    within = ("eval.every=1", "eval.calibration=true")
    done = cl_run(*toy, *quick, *within, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("15 pictures in ")
    kinds = {path.stem.rpartition("-")[2] for path in (tmp_path / "a" / "pictures").iterdir()}
    # One run has nothing to be beside.
    assert kinds == {"matrices", "tasks", "average_accuracy", "steps", "confusion"}
    # Without matplotlib it is refused before the run has a folder.
    without = (
        "import sys; from importlib import util; found = util.find_spec; "
        "util.find_spec = lambda name: None if name == 'matplotlib' else found(name); "
        "sys.argv = ['cl-run', 'plots=true', 'hydra.run.dir=b']; "
        "from cl_runner.cli.app import main; main()"
    )
    command_ = [sys.executable, "-c", without]
    done = subprocess.run(command_, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = "plots=true needs matplotlib: pip install 'cl_runner[plots]', or plots=false"
    assert done.stderr == f"cl-run: {said}\n"
    assert not (tmp_path / "b").exists()
