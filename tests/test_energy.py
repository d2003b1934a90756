"""Energy is what counters say, by hand; unreadable is empty; declared is said to be."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cl_runner.comparing.verify import verify_runs
from cl_runner.machine import energy
from cl_runner.machine.energy import reader
from cl_runner.results.files import read_rows
from cl_runner.running import loop
from cl_runner.training import meter
from cl_runner.training.meter import Meter

NAMES = pytest.mark.unix  # Windows has no files with a colon in their names

CPU = torch.device("cpu")
TOY = (
    "benchmark=split_digits",
    "benchmark.num_tasks=2",
    "model.hidden_sizes=[8]",
    "training.iterations=3",
    "verbose=false",
    "strategy=naive",
)


def domain(root: Path, folder: str, name: str, count: int, most: int = 1_000_000) -> Path:
    """A folder as Linux has it; energies in microjoules."""
    own = root / folder
    own.mkdir(parents=True)
    (own / "name").write_text(f"{name}\n")
    (own / "max_energy_range_uj").write_text(f"{most}\n")
    (own / "energy_uj").write_text(f"{count}\n")
    return own / "energy_uj"


@pytest.fixture
def sysfs(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "powercap"
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


@NAMES
def test_packages_are_added_and_their_parts_are_not(sysfs):
    first = domain(sysfs, "intel-rapl:0", "package-0", 100)
    second = domain(sysfs, "intel-rapl:1", "package-1", 900_000)
    others = [
        domain(sysfs, folder, name, 0)
        for folder, name in (
            ("intel-rapl:0:0", "core"),  # is in its package
            ("intel-rapl:2", "psys"),  # has the packages in it
            ("intel-rapl-mmio:0", "package-0"),  # the same again
        )
    ]
    own = reader(CPU)
    assert own is not None and own.source == "rapl"
    first.write_text("400100\n")
    second.write_text("950000\n")
    for other in others:
        other.write_text("999999\n")
    assert own.spent(1.0) == pytest.approx(0.45)
    assert own.spent(1.0) == 0


@NAMES
def test_a_counter_that_begins_anew_is_counted_on(sysfs):
    counter = domain(sysfs, "intel-rapl:0", "package-0", 900_000)
    own = reader(CPU)
    counter.write_text("250000\n")
    assert own.spent(1.0) == pytest.approx(0.35)  # 0.1 to the range of 1 J, and 0.25


@NAMES
@pytest.mark.parametrize("case", ["no folder", "no package", "no counter", "no number"])
def test_what_cannot_be_read_is_nothing(sysfs, case):
    if case != "no folder":
        counter = domain(sysfs, "intel-rapl:0", "psys" if case == "no package" else "package-0", 5)
        if case == "no counter":  # as for all but root
            counter.unlink()
        elif case == "no number":
            counter.write_text("much\n")
    assert reader(CPU) is None


@NAMES
def test_a_second_package_that_cannot_be_read_leaves_nothing(sysfs):
    domain(sysfs, "intel-rapl:0", "package-0", 5)
    domain(sysfs, "intel-rapl:1", "package-1", 5).unlink()
    assert reader(CPU) is None


def test_nvml_counts_the_gpu_that_is_used(monkeypatch):
    counts = iter([5_000, 7_500])
    asked = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=lambda _: next(counts),
        __spec__=SimpleNamespace(),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="4f2a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    own = reader(torch.device("cuda"))
    assert own is not None and own.source == "nvml"
    assert asked == ["GPU-4f2a"]
    assert own.spent(1.0) == pytest.approx(2.5)  # of millijoules
    assert own.spent(1.0) is None  # here the driver fails


@pytest.mark.parametrize("broken", ["absent", "old"])
def test_without_nvml_there_is_nothing(monkeypatch, broken):
    def refuse() -> None:
        raise RuntimeError("Not Supported")

    nvml = SimpleNamespace(nvmlInit=refuse, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pynvml", nvml if broken == "old" else None)
    assert reader(torch.device("cuda")) is None


# In a run.


class Ticking:
    """Ten joules at every look."""

    source = "rapl"

    def spent(self, seconds: float) -> float:
        return 10.0


def test_only_training_counts_and_runs_together_share_it():
    own = Meter()
    own.count_energy(Ticking())
    own.share = 0.25
    for name in (None, "train_seconds", "evaluation_seconds", "train_seconds"):
        own.lap(name)
    assert (own.energy_joules, own.energy_source) == (5.0, "rapl")


def test_what_was_once_unknown_stays_so():
    own = Meter()
    own.count_energy(Ticking())
    own.lap("train_seconds")
    state = own.state()
    again = Meter()
    again.count_energy(Ticking())
    again.restore(state)
    again.lap("train_seconds")
    assert again.energy_joules == 20.0  # goes on adding
    for other in (None, SimpleNamespace(source="nvml", spent=lambda _: 1.0)):
        elsewhere = Meter()
        elsewhere.count_energy(other)
        elsewhere.restore(state)
        elsewhere.lap("train_seconds")
        assert (elsewhere.energy_joules, elsewhere.energy_source) == (None, None)
    again.energy = SimpleNamespace(source="rapl", spent=lambda _: None)
    again.lap()
    assert (again.energy_joules, again.energy_source) == (None, None)
    again.lap("train_seconds")
    assert again.energy_joules is None


@pytest.mark.usefixtures("sysfs")
def test_a_run_that_can_read_nothing_says_nothing(configure, tmp_path):
    loop.run(configure(*TOY), tmp_path / "run")
    (row,) = read_rows(tmp_path / "run" / "summary.csv")
    assert (row["energy_joules"], row["energy_source"]) == ("", "")
    assert [r["energy_joules"] for r in read_rows(tmp_path / "run" / "costs.csv")] == [""] * 3
    assert verify_runs([str(tmp_path / "run")]) == (1, [])


@pytest.mark.usefixtures("sysfs")
def test_a_declared_draw_is_watts_times_training_seconds(configure, tmp_path):
    loop.run(configure(*TOY, "energy.watts=65"), tmp_path / "run")
    (row,) = read_rows(tmp_path / "run" / "summary.csv")
    assert row["energy_source"] == "declared"
    assert float(row["energy_joules"]) == pytest.approx(65 * float(row["train_seconds"]))
    for cells in read_rows(tmp_path / "run" / "costs.csv"):
        joules, seconds = float(cells["energy_joules"]), float(cells["train_seconds"])
        assert joules == pytest.approx(65 * seconds)
    assert verify_runs([str(tmp_path / "run")]) == (1, [])


@NAMES
def test_the_tasks_energies_add_up_and_a_run_goes_on_adding(
    configure, tmp_path, sysfs, monkeypatch
):
    """The counter moves by 1 J at each lap, and begins anew at 5."""
    counter = domain(sysfs, "intel-rapl:0", "package-0", 0, 5_000_000)
    lap = Meter.lap

    def moved(self: Meter, name: str | None = None) -> None:
        counter.write_text(str((int(counter.read_text()) + 1_000_000) % 5_000_000))
        lap(self, name)

    monkeypatch.setattr(meter.Meter, "lap", moved)
    loop.run(configure(*TOY), tmp_path / "whole")
    (whole,) = read_rows(tmp_path / "whole" / "summary.csv")
    costs = read_rows(tmp_path / "whole" / "costs.csv")
    assert [float(r["energy_joules"]) for r in costs] == [0, 1, 1]
    assert (float(whole["energy_joules"]), whole["energy_source"]) == (2, "rapl")

    save, count = loop.checkpoint.save, iter(range(9))

    def killed(*args) -> None:
        save(*args)
        if next(count) == 0:  # after the first task
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            loop.run(configure(*TOY, "checkpoint.every=null"), out)
    loop.run(configure(*TOY, "checkpoint.every=null", "resume=true"), out)
    (row,) = read_rows(out / "summary.csv")
    assert (float(row["energy_joules"]), row["energy_source"]) == (2, "rapl")
    assert verify_runs([str(out)]) == (1, [])
