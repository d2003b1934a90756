"""scripts/check_gpu.py: rows, deadlines, processes that break; and a rehearsal of all its parts."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import check_gpu
import gpu_cells
import gpu_courses
import gpu_exact
import gpu_speed
import gpu_tests
import numpy as np
import pandas as pd
import pytest
import reproduce
import torch
from check_gpu import LATE, last_line, main, perform
from gpu_report import Context, Piece, Report, Settings, in_a_line, poisoned, run_pieces

from cl_runner.results.files import read_rows, write_rows


def here(order, take) -> str:
    """An order carried out in this process."""
    check_gpu.work(order, take)
    return ""


def told_of(out: Path) -> list[dict]:
    return json.loads((out / "gpu.json").read_text())["rows"]


@pytest.fixture
def parts(monkeypatch):
    """parts(exact=[Piece(...), ...]) -> these instead of what there is to check."""

    def function(**pieces) -> None:
        modules = {
            name: SimpleNamespace(pieces=lambda _, own=own: own) for name, own in pieces.items()
        }
        monkeypatch.setattr(check_gpu, "PARTS", {name: name for name in pieces})
        monkeypatch.setattr(check_gpu, "TURNS", tuple((name, 0) for name in pieces))
        monkeypatch.setattr(check_gpu, "import_module", modules.__getitem__)

    return function


def checked(out: Path, *more: str, way=here) -> int:
    return main(["--out", str(out), "--device", "cpu", *more], way)


def test_a_row_has_all_that_is_told_of_it(parts, tmp_path, capsys):
    def run(context):
        context.emit("slow", 3.5, "us", bar="at most 2", met=False, message="of 3")
        context.emit("nothing", state="missing", message="no data")

    parts(exact=[Piece("a", 0, run)])
    assert checked(tmp_path) == 0
    slow, nothing = told_of(tmp_path)
    assert slow | {"second": 0} == {
        "part": "exact",
        "name": "slow",
        "value": 3.5,
        "unit": "us",
        "bar": "at most 2",
        "met": "no",
        "state": "measured",
        "message": "of 3",
        "second": 0,
    }
    assert (nothing["value"], nothing["met"], nothing["state"]) == (None, "", "missing")
    table = read_rows(tmp_path / "gpu.csv")
    assert [row["value"] for row in table] == ["3.5", ""]
    assert {row["torch"] for row in table} == {torch.__version__}
    about = json.loads((tmp_path / "gpu.json").read_text())["about"]
    assert set(about) >= {"card", "driver", "torch", "date", "command"}
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("2 rows, 0 failed, 0 of 1 bars met")


def test_what_fails_is_a_row_and_the_exit_code_and_the_rest_goes_on(parts, tmp_path, capsys):
    def fail(_):
        raise ValueError("three\nwords here")

    parts(exact=[Piece("bad", 0, fail), Piece("good", 0, lambda c: c.emit("good", 1))])
    assert checked(tmp_path) == 1
    bad, good = told_of(tmp_path)
    assert (bad["state"], bad["message"]) == ("failed", "ValueError: three words here")
    assert good["state"] == "measured"
    assert "FAILED  ValueError: three words here" in capsys.readouterr().out


def test_what_takes_longer_than_is_left_is_left_out(parts, tmp_path, capsys):
    parts(
        exact=[
            Piece("long", 100, lambda c: c.emit("long", 1)),
            Piece("short", 0, lambda c: c.emit("s", 1)),
        ],
        speed=[Piece("later", 1000, lambda c: c.emit("later", 1))],
    )
    assert checked(tmp_path, "--minutes", "0.5") == 0
    states = {row["name"]: row["state"] for row in told_of(tmp_path)}
    assert states == {"long": "left out", "s": "measured", "later": "left out"}
    assert "left out of speed: later" in capsys.readouterr().out


def test_the_files_are_written_after_each_row(parts, tmp_path):
    seen = []

    def run(context):
        context.emit("first", 1)
        seen.extend(row["name"] for row in told_of(tmp_path))

    parts(exact=[Piece("a", 0, run)])
    checked(tmp_path)
    assert seen == ["first"]


def ways(*told):
    """A way to carry out orders that tells what is given, one after another."""
    answers, orders = list(told), []

    def way(order, take) -> str:
        orders.append(order)
        lines, why = answers.pop(0)
        for line in lines:
            take(line)
        return why

    return way, orders


def row(name: str) -> dict:
    return {"row": {"part": "speed", "name": name, "value": 1, "state": "measured"}}


def performed(tmp_path, way, seconds: float = 60):
    report = Report(tmp_path, {})
    settings = Settings(tmp_path, tmp_path, "cpu", tiny=True)
    perform("speed", 0, settings, report, time.monotonic() + seconds, way)
    return {r["name"]: (r["state"], r["message"]) for r in report.rows}


def test_a_process_that_breaks_is_a_row_and_another_goes_on_behind_it(tmp_path):
    pieces, a, b = {"pieces": ["a", "b"]}, {"begin": "a"}, {"begin": "b"}
    broken = ([pieces, a], "its process ended with -11: Segmentation fault")
    way, orders = ways(broken, ([{"pieces": ["b"]}, b, row("b"), {"end": 0}], ""))
    found = performed(tmp_path, way)
    assert found == {"a": ("failed", broken[1]), "b": ("measured", "")}
    assert [order["done"] for order in orders] == [[], ["a"]]


def test_a_gpu_that_takes_no_more_orders_is_left_for_another_process(tmp_path):
    first = [{"pieces": ["a", "b"]}, {"begin": "a"}, row("a"), {"end": 3}]
    way, orders = ways((first, ""), ([{"pieces": ["b"]}, {"begin": "b"}, row("b"), {"end": 0}], ""))
    assert set(performed(tmp_path, way)) == {"a", "b"}
    assert len(orders) == 2


def test_at_the_deadline_all_that_is_left_is_told(tmp_path):
    way, _ = ways(([{"pieces": ["a", "b", "c"]}, {"begin": "a"}, row("a"), {"begin": "b"}], LATE))
    states = {name: state for name, (state, _) in performed(tmp_path, way).items()}
    assert states == {"a": "measured", "b": "left out", "c": "left out"}
    assert performed(tmp_path, way, seconds=-1) == {"all of speed": ("left out", LATE)}


def test_a_process_that_never_works_is_tried_once(tmp_path):
    way, orders = ways(([], "its process ended with 1: no module"))
    found = performed(tmp_path, way)
    assert found == {"all of speed": ("failed", "its process ended with 1: no module")}
    assert len(orders) == 1


@pytest.mark.unix
def test_orders_are_carried_out_in_a_process_that_is_stopped_in_time(tmp_path, monkeypatch):
    """The real one: a child that tells a row, hangs, and has a child of its own."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, subprocess, sys, time\n"
        "order, number = json.loads(sys.argv[2]), int(sys.argv[4])\n"
        "pipe = os.fdopen(number, 'w')\n"
        "print('printed')\n"
        "def tell(line): pipe.write(json.dumps(line) + '\\n'); pipe.flush()\n"
        "tell({'begin': 'a', 'longest': order['longest']})\n"
        "if order['how'] == 'breaks': sys.exit('broken')\n"
        "if order['how'] == 'ends': tell({'end': 0}); sys.exit()\n"
        "own = subprocess.Popen(['sleep', '60'])\n"
        "tell({'begin': str(own.pid), 'longest': order['longest']})\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(check_gpu, "__file__", str(script))
    common = {"part": "speed", "settings": {"out": str(tmp_path)}}
    told: list = []

    def carried_out(how: str, seconds: float, longest: float) -> str:
        order = {"how": how, "seconds": seconds, "longest": longest, **common}
        return check_gpu.in_child(order, told.append)

    assert carried_out("ends", 60, 60) == ""
    assert carried_out("breaks", 60, 60) == "its process ended with 1: broken"
    told.clear()
    assert carried_out("hangs", 1.5, 60) == LATE
    status = Path(f"/proc/{told[-1]['begin']}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    assert carried_out("hangs", 60, 0.1) == "it hung, and was stopped"
    assert last_line(tmp_path / "speed.log") in {"printed", "broken"}


def test_errors_that_cost_the_gpu(tmp_path):
    def fail(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    rows: list = []
    settings = Settings(tmp_path, tmp_path, "cpu", tiny=True)
    context = Context(settings, "speed", time.monotonic() + 60, rows.append)
    assert run_pieces([Piece("a", 0, fail), Piece("b", 0, fail)], context) == 3
    assert [line["begin"] for line in rows if "begin" in line] == ["a"]
    assert not poisoned(RuntimeError("CUDA out of memory"))
    assert len(in_a_line(ValueError("x" * 900))) == 300


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "cpu"), "--out"),
        (("--out", "OUT", "--minutes", "0"), "--minutes must lie in"),
        (("--out", "OUT", "--part", "all"), "invalid choice"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([a.replace("OUT", str(tmp_path)) for a in arguments])
    assert stop.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 2
    assert "torch finds no usable CUDA GPU" in capsys.readouterr().err


def test_what_pytest_prints_is_read():
    text = """
tests/test_cuda.py::test_a[naive] PASSED                    [  1%]
[gw0] [  2%] PASSED tests/test_cuda.py::test_a[er]
[gw1] [  3%] FAILED tests/test_cuda.py::test_b[gem]
tests/test_cuda.py::test_c SKIPPED (no GPU)                 [  4%]
tests/test_cuda.py::test_d[x y] FAILED                      [  5%]
=== short test summary info ===
SKIPPED [1] tests/test_cuda.py:4: there is no CUDA GPU here
FAILED tests/test_cuda.py::test_b[gem] - AssertionError: 1 - 2
FAILED tests/test_cuda.py::test_d[x y] - UserWarning: it may be slow
"""
    found, messages = gpu_tests.read(text)
    name = "tests/test_cuda.py::test_"
    assert found == {
        f"{name}a[naive]": "PASSED",
        f"{name}a[er]": "PASSED",
        f"{name}b[gem]": "FAILED",
        f"{name}c": "SKIPPED",
        f"{name}d[x y]": "FAILED",
    }
    assert messages[f"{name}b[gem]"] == "AssertionError: 1 - 2"
    assert messages[f"{name}d[x y]"] == "UserWarning: it may be slow"


def test_tests_that_fail_are_rows(tmp_path, monkeypatch):
    """Of real tests, of which one fails for a warning only."""
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    options = 'addopts = "-ra"\nfilterwarnings = ["error"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{options}")
    (tmp_path / "test_these.py").write_text(
        "import warnings\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_warned(): warnings.warn('slow')\n"
    )
    rows: list = []
    settings = Settings(tmp_path, tmp_path, "cpu", tiny=True)
    context = Context(settings, "tests", time.monotonic() + 60, rows.append)
    gpu_tests.tests(context, ["test_these.py"])
    gpu_tests.again(context)
    found = {line["row"]["name"].rpartition("::")[2]: line["row"] for line in rows}
    assert [found[f"tests {state}"]["value"] for state in ("passed", "failed")] == [1, 2]
    assert found["test_bad"]["state"] == found["test_warned"]["state"] == "failed"
    assert "UserWarning: slow" in found["test_warned"]["message"]
    assert found["failed tests that pass with warnings allowed"]["value"] == 1


def test_waits_of_the_host_are_counted_by_what_cuda_says(monkeypatch):
    modes: list = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    found: list = []
    with gpu_courses.host_waits(torch.device("cuda"), found):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("it does not yet detect all synchronizing operations", stacklevel=1)
    assert modes == ["warn", "default"]
    assert len(found) == 1 and "test_check_gpu" in found[0]


def test_a_steps_products_are_counted_and_taken_again():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with gpu_courses.Products() as products:
        torch.relu(a @ b)
    assert products.flops == 2 * 3 * 4 * 5
    assert products.bytes == 4 * (12 + 20 + 15)
    assert len(products.calls) == 1
    products.again()


@pytest.mark.slow
def test_a_rehearsal_of_speed_and_exactness(tmp_path, monkeypatch, capsys):
    """All but compiled steps and whole runs; without data, of random images."""
    monkeypatch.setattr(gpu_speed, "commanded", lambda *_: 1.0)
    monkeypatch.setattr(gpu_exact, "killed", lambda _: None)  # see below
    monkeypatch.setattr(check_gpu, "TURNS", (("speed", 0), ("exact", 0)))
    nowhere = tmp_path / "nowhere"
    code = checked(tmp_path, "--data", str(nowhere), "--part", "speed", "--part", "exact")
    rows = {row["name"]: row for row in told_of(tmp_path)}
    assert code == 0, capsys.readouterr().out
    assert "random images" in rows["mnist: synthetic data"]["message"]
    for name in ("W1 naive eager step", "W1 derpp graph step", "resnet10 er graph step"):
        assert rows[name]["value"] > 0
    for bar in ("W1 naive graph / floor, card's rates", "W1 derpp eager / graph"):
        assert rows[bar]["met"] in {"yes", "no"}
    assert rows["W1 stack of 4, step / step of one run"]["value"] > 0
    assert rows["W1 naive graph host waits"]["state"] == "missing"
    assert rows["er, ResNet: twice the same bits"]["met"] == "yes"
    assert rows["derpp, MLP: 2 stacked against alone, theta"]["met"] == "yes"


@pytest.mark.parametrize("what", ["the same", "weights", "accuracy", "a file"])
def test_a_killed_run_is_held_against_one_that_was_not(tmp_path, monkeypatch, what):
    """As the command would leave them; the command itself is killed in tests/reliability."""
    rows: list = []
    settings = Settings(tmp_path, tmp_path, "cpu", tiny=True)
    context = Context(settings, "exact", time.monotonic() + 60, rows.append)

    def leave(name: str, ACC: float, weights: bytes) -> None:
        out = tmp_path / "exact" / name
        out.mkdir()
        write_rows(out / "summary.csv", [{"ACC": ACC, "seconds": time.perf_counter()}])
        if name == "whole" or what != "a file":
            write_rows(out / "accuracies.csv", [{"accuracy": 0.5}])
        (out / "weights.safetensors").write_bytes(weights)

    def command(_, *overrides: str) -> None:
        if overrides[-1].startswith("hydra.run.dir="):
            leave("whole", 0.5, b"weights")
        else:
            assert overrides == (f"resume={tmp_path / 'exact' / 'killed'}",)
            ends = {"weights": (0.5, b"others"), "accuracy": (0.4, b"weights")}
            leave("killed", *ends.get(what, (0.5, b"weights")))

    monkeypatch.setattr(gpu_exact, "command", command)
    monkeypatch.setattr(gpu_exact, "kill", lambda *_: None)
    gpu_exact.killed(context)
    (found,) = (line["row"] for line in rows)
    names = {
        "weights": "weights.safetensors",
        "accuracy": "summary.csv",
        "a file": "accuracies.csv",
    }
    if what == "the same":
        assert (found["value"], found["met"], found["state"]) == (0, "yes", "measured")
    else:
        assert (found["value"], found["met"], found["state"]) == (1, "no", "failed")
        assert found["message"] == f"differ: {names[what]}"


def test_runs_that_are_apart_are_told(tmp_path):
    rows: list = []
    settings = Settings(tmp_path, tmp_path, "cpu", tiny=True)
    context = Context(settings, "exact", time.monotonic() + 60, rows.append)
    a, b = (torch.tensor([1.0, 2.0]), [0.5]), (torch.tensor([1.0, 2.01]), [0.5])
    gpu_exact.same(context, "bits", a, b)
    gpu_exact.same(context, "bits", a, a)
    gpu_exact.differences(context, "far", [(a, a), (a, b)])
    found = [(line["row"]["met"], line["row"]["state"]) for line in rows]
    assert found == [("no", "failed"), ("yes", "measured"), ("no", "measured"), ("yes", "measured")]


def test_a_cell_is_told_by_all_that_is_published_of_its_runs(tmp_path, monkeypatch):
    experiment = "buzzega2020/naive_split_class"
    table = pd.DataFrame(
        {
            "experiment": [experiment, experiment, "hsu2018/naive_split_class"],
            "seed": [0, 1, 0],
            "ACC": [0.19, 0.2, 0.9],
            "task_ACC": [0.1, 0.2, 0.9],
            "seconds": [1.0, 1.0, 1.0],
        }
    )
    monkeypatch.setattr(reproduce, "read", lambda _: table)
    rows: list = []
    settings = Settings(tmp_path, tmp_path, "cuda", tiny=False)
    context = Context(settings, "cells", time.monotonic() + 60, rows.append)
    gpu_cells.told(context, experiment, tmp_path / "cells" / "x")
    found = {line["row"]["name"]: (line["row"]["value"], line["row"]["met"]) for line in rows}
    assert found == {
        f"{experiment}, ACC": (pytest.approx(0.195), "yes"),
        "buzzega2020/naive_split_task, task_ACC": (pytest.approx(0.15), "no"),
    }


@pytest.mark.slow
def test_cells_are_run_where_they_and_their_data_are_there(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    arrays = {}
    for split, n in (("train", 400), ("test", 100)):
        generator = np.random.default_rng(0)
        arrays[f"x_{split}"] = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 10
    np.savez(data / "mnist.npz", **arrays)
    there = "chaudhry2019/naive_permuted"
    cells = (
        gpu_cells.Cell(there, "mnist", 1, tiny=""),
        gpu_cells.Cell("chaudhry2019/no_such", "mnist", 1),
        gpu_cells.Cell("chaudhry2019/agem_permuted", "cifar100", 1),
    )
    monkeypatch.setattr(gpu_cells, "CELLS", cells)
    monkeypatch.setattr(check_gpu, "TURNS", (("cells", 0),))
    assert checked(tmp_path, "--data", str(data), "--part", "cells") == 0
    found = {row["name"]: row for row in told_of(tmp_path)}
    assert 0 <= found[f"{there}, ACC"]["value"] <= 1
    assert "n = 2" in found[f"{there}, ACC"]["message"]
    assert found["chaudhry2019/no_such"]["message"] == "there is no such experiment"
    assert found["chaudhry2019/agem_permuted"]["message"].startswith("data missing")
    assert (tmp_path / "cells" / "chaudhry2019.naive_permuted" / "seed=0").is_dir()


def test_the_checkout_is_importable_without_an_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(check_gpu, "PACKAGES", {"cl_runner": "elsewhere"})
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setenv("PYTHONPATH", "before")
    check_gpu.importable(tmp_path)
    assert os.environ["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}before"
    assert (tmp_path / "site" / "cl_runner" / "conf" / "config.yaml").exists()
    assert (tmp_path / "site" / "cl_runner" / "core.py").exists()
