"""`cl.compare` and `cl.sweep`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import cl_runner as cl
from cl_runner.api import sweeping
from cl_runner.comparing import cli
from cl_runner.errors import Bug


@pytest.fixture(scope="module")
def compared(four):
    return cl.compare(four, baseline="naive")


def test_a_comparison_is_what_the_command_finds(compared, four, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([str(four), "--baseline", "naive", "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(compared.verdict) and compared.verdict
    assert all(note in shown for note in compared.notes)
    table = compared.table
    assert table.strategy.tolist() == sorted(
        table.strategy, key=lambda s: -float(table.set_index("strategy").ACC[s])
    )
    assert table.n.tolist() == [2, 2] and "ACC_n" not in table and "NLL" not in table
    assert (table.ACC_low <= table.ACC).all() and "vs_best_p" not in table
    tests = compared.tests
    assert sorted(tests.against) == ["baseline", "best"] and tests.test.tolist() == ["paired t"] * 2
    assert repr(compared).startswith("split_digits, 2 tasks, class-IL")
    assert cli.run([str(four), "--baseline", "naive", "--format", "latex"]) == 0
    assert capsys.readouterr().out.strip() == compared.to_latex().strip()


def test_metrics_choose_the_columns_and_the_order(four):
    found = cl.compare(cl.load_runs(four), metrics=["forgetting", "flops"])
    assert "ACC" not in found.table
    assert {"forgetting", "flops"} <= set(found.table)
    assert found.table.forgetting.is_monotonic_increasing
    assert found.tests.difference.notna().all()


def test_runs_from_anywhere_count_once(four):
    runs = cl.load_runs(four)
    for source in (runs, list(runs), [runs[:2], str(four / "naive0"), runs[3]], [four, runs]):
        assert cl.compare(source).table.n.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"metrics": "AC"}, "metrics=AC: no run has it; did you mean ACC"),
        ({"metrics": ["ACC", "AC"]}, "metrics=AC: no run has it"),
        ({"metrics": []}, r"metrics=\[\] asks for nothing"),
        ({"baseline": "ewc"}, "baseline=ewc: no such run; there are er, naive"),
        ({"by": ["strategy.buffer"]}, "by=strategy.buffer: no run has such a setting"),
    ],
)
def test_a_question_without_an_answer_is_one_line(four, options, line):
    with pytest.raises(cl.UserError, match=f"^{line}"):
        cl.compare(four, **options)


def test_nothing_to_compare_is_told():
    with pytest.raises(cl.UserError, match="there are no runs to compare"):
        cl.compare([])


def test_the_page_and_what_a_notebook_shows(compared, tmp_path):
    page = compared.to_html(tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    compared.to_html(page)  # replaces its own
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(cl.UserError, match=r"path=.*mine.html exists and is no page"):
        compared.to_html(tmp_path / "mine.html")
    shown = compared._repr_html_()
    assert shown.count("<table>") >= 3 and "<b>naive</b>" in shown


def test_pictures_in_a_new_figure_or_in_axes_of_ones_own(compared):
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    backend = mpl.get_backend()
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    try:
        assert {"matrices", "tasks", "average_accuracy", "forgetting"} <= set(compared.figures)
        figure, (left, right) = plt.subplots(1, 2)
        assert compared.figure("average_accuracy", ax=left) is left
        assert len(left.containers) == 2 and left.get_title() == ""
        assert compared.figure("forgetting", ax=right) is right and right.patches
        assert figure.get_suptitle() == "" and not figure.legends
        alone = compared.figure("average_accuracy")
        assert alone.figure is not figure and alone.figure.number in plt.get_fignums()
        assert len(compared.figure("matrices")) == 2
        with pytest.raises(cl.UserError, match=r"matrices has 2 panels: leave ax"):
            compared.figure("matrices", ax=left)
        with pytest.raises(cl.UserError, match=r"there is no figure x; known are matrices, "):
            compared.figure("x")
    finally:
        plt.close("all")
        mpl.use(backend)


def test_a_picture_of_one_run_fits_any_axes(four):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    cl.compare(four / "er0").figure("matrices", ax=axis)
    assert axis.images and axis.get_xlabel() == "tested on task"


def test_of_several_streams_one_is_chosen(small, four, tmp_path):
    cl.run(*small, strategy="er", benchmark__num_tasks=3, out=tmp_path / "other")
    found = cl.compare([four / "er0", tmp_path])
    assert len(found.table) == 2 and found.verdict.count("\n\n") == 1
    with pytest.raises(cl.UserError, match=r"choose stream= one of .*2 tasks.*; .*3 tasks"):
        found.figure("matrices")
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    title = "split_digits, 3 tasks, class-IL"
    axis = found.figure("matrices", ax=Figure().subplots(), stream=title)
    assert axis.images[0].get_array().shape == (4, 3)


# Sweeps.


@pytest.mark.slow
def test_a_sweep_gives_all_its_runs_also_those_that_failed(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = [one for one in small if not one.startswith("verbose")]
    runs = cl.sweep(*args, "strategy=naive", optimizer__lr=[0.1, 1e30], out="sweep")
    assert [run.status for run in runs] == ["complete", "failed"]
    (failed,) = runs.failed
    assert "NaN or infinite" in failed.reason
    shown = capsys.readouterr().out
    assert "job 1 of 2" in shown and "2 runs · results in sweep/summary.csv" in shown
    assert (runs[0].folder / "weights.safetensors").exists()
    with pytest.raises(cl.UserError, match="already holds results; resume=true does what"):
        cl.sweep(*args, "strategy=naive", optimizer__lr=[0.1, 1e30], out="sweep")
    again = cl.sweep(*args, "strategy=naive", optimizer__lr=[0.1], out="sweep", resume=True)
    assert len(again) == 2


@pytest.mark.parametrize(
    ("args", "keys", "line"),
    [
        (["strategy=ewc,"], {}, "cannot read strategy=ewc,"),
        (["strategy=ewc", "strategy=er"], {}, r"strategy is given twice.*in Python: cl.sweep"),
        ([], {"resume": True}, "resume=True needs out=FOLDER"),
        (["hydra.sweep.dir=a"], {}, "write out=FOLDER instead"),
        (["--cfg"], {}, "--cfg is a flag of the command"),
    ],
)
def test_a_mistake_needs_no_process(args, keys, line, monkeypatch):
    monkeypatch.setattr(sweeping, "lines_of", lambda _: pytest.fail("a process was started"))
    with pytest.raises(cl.UserError, match=line):
        cl.sweep(*args, **keys)


@pytest.mark.usefixtures("heeded")
def test_ctrl_c_is_handed_on_once_and_waited_for():
    """The process prints what it does after the signal; it is in a session of its own."""
    code = (
        "import os, signal, sys, time\n"
        "def end(*_):\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "print('begun', os.getsid(0) == os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    done = threading.Event()

    def interrupt() -> None:
        while "begun" not in read[0] and not done.is_set():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    read = [""]
    own = sys.stdout

    class Seen:
        def write(self, text: str) -> int:
            read[0] += text
            return own.write(text)

        def flush(self) -> None:
            own.flush()

    thread = threading.Thread(target=interrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Seen())
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                sweeping.lines_of([sys.executable, "-c", code])
        finally:
            done.set()
            thread.join()
    assert read[0] == "begun True\nsaved\n"


def test_the_process_finds_the_packages_that_this_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_of_mine.py").write_text("here = 'found'\n")
    line = sweeping.lines_of([sys.executable, "-c", "import module_of_mine as m; print(m.here)"])
    assert line == ("found", 0) and capsys.readouterr().out == "found\n"
    assert Path.cwd().exists()


@pytest.mark.parametrize(
    ("last", "code", "error", "line"),
    [
        ("cl-run: no such thing; -m seed=0,1", 2, cl.UserError, "^no such thing.*cl.sweep"),
        ("cl-run: a bug in cl_runner", 1, Bug, "^a bug in cl_runner$"),
        ("job 1 of 2", -9, Bug, "ended with code -9; resume=True goes on in sweep$"),
    ],
)
def test_a_process_that_does_not_come_to_its_end(last, code, error, line, monkeypatch):
    monkeypatch.setattr(sweeping, "lines_of", lambda _: (last, code))
    with pytest.raises(error, match=line):
        cl.sweep(seed=[0, 1], out="sweep")
