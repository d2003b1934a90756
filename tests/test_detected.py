"""training.boundaries=detected: what a detector finds, and what a run makes of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cl_runner import strategies
from cl_runner.config.identity import config_hash
from cl_runner.config.schema import Detector
from cl_runner.errors import UserError
from cl_runner.functional import detectors
from cl_runner.functional.detectors import judged
from cl_runner.results.columns import reproducible
from cl_runner.results.files import read_rows
from cl_runner.running import checkpoint, loop
from cl_runner.running.boundaries import Detecting
from cl_runner.running.checkpoint import checksum
from cl_runner.running.stacked import obstacle
from cl_runner.running.tasks import Member, initial_state, train_task
from cl_runner.testing import assert_same, leaves, snapshot
from cl_runner.training.env import Env
from cl_runner.training.watch import EVERY, Watch

DETECTED = "training.boundaries=detected"
SMALL = (
    *("benchmark=split_digits", "benchmark.num_tasks=3", "benchmark.train_samples=150"),
    *("model.hidden_sizes=[20]", "training.batch_size=8", "training.iterations=30"),
    *("verbose=false", "strategy=naive"),
)
EAGER = ("benchmark=permuted_digits", "detector.threshold=0.5", "detector.delta=0")  # calls soon
PERMUTED = (
    *("benchmark=permuted_digits", "benchmark.num_tasks=3", "training.iterations=240"),
    *("model.hidden_sizes=[64]", "strategy=naive", "verbose=false", DETECTED),
)


def row(out: Path) -> dict[str, str]:
    return read_rows(out / "summary.csv")[0]


def called_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let the detector call after these steps, and no other."""

    def alarm(self: Watch) -> bool:
        self.losses = []
        self.mark()
        if self.step in steps:
            self.alarms.append(self.step)
        return self.step in steps

    monkeypatch.setattr(Watch, "alarm", alarm)


def trained(prepared, *overrides: str):
    """The states after each task, copied, and the environment."""
    _, strategy, env = prepared(*overrides)
    s, states = initial_state(strategy, env), []
    for task in env.stream:
        s = train_task(strategy, s, task, env)
        states.append(snapshot(s))
    return states, env


# What is found.


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["page_hinkley", "adwin"])
def test_every_border_of_permuted_digits_is_found_and_no_other(
    configure, tmp_path, optimizer, name
) -> None:
    loop.run(configure(*PERMUTED, f"optimizer={optimizer}", f"detector.name={name}"), tmp_path)
    found = read_rows(tmp_path / "boundaries.csv")
    assert [(r["border"], r["kind"]) for r in found] == [("240", "found"), ("480", "found")]
    assert all(int(r["alarm"]) - int(r["border"]) == int(r["delay"]) <= 50 for r in found)
    summary = row(tmp_path)
    assert (summary["borders_missed"], summary["false_alarms"]) == ("0", "0")
    assert float(summary["mean_delay"]) == sum(int(r["delay"]) for r in found) / 2


def watched(prepared, monkeypatch, *overrides: str) -> tuple[Env, Watch]:
    """A run's environment, whose detector is the default, and the other on the same losses.

    Naive fine-tuning goes the same way whatever is found.
    """
    steps = []
    take = Watch.take

    def taken(self: Watch, *step) -> None:
        steps.append(step)
        take(self, *step)

    monkeypatch.setattr(Watch, "take", taken)
    _, env = trained(prepared, *overrides)
    other = Watch(Detector(name="adwin"), env.stream)
    for step in steps:
        take(other, *step)
        if other.due:
            other.alarm()
    assert other.step == env.watch.step == len(steps)
    return env, other


@pytest.mark.parametrize("iterations", [600, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stream_that_stays_the_same_is_no_alarm(
    prepared, monkeypatch, iterations, optimizer
) -> None:
    one_task = ("benchmark.num_tasks=1", f"training.iterations={iterations}")
    env, other = watched(prepared, monkeypatch, *PERMUTED, *one_task, f"optimizer={optimizer}")
    assert env.watch.step == iterations and env.watch.alarms == other.alarms == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("seed", [3, 4])
def test_every_border_of_the_whole_stream_is_found(prepared, monkeypatch, seed, optimizer) -> None:
    """As it is by default; these seeds had no part in the choice of the detectors' numbers."""
    case = ("benchmark=permuted_digits", "strategy=naive", f"seed={seed}")
    env, other = watched(prepared, monkeypatch, *case, DETECTED, f"optimizer={optimizer}")
    borders = [end for end in env.watch.ends if end < env.watch.step]
    for watch in (env.watch, other):
        rows = judged(borders, watch.alarms)
        assert [r["kind"] for r in rows] == ["found"] * 4 and all(r["delay"] <= 200 for r in rows)


def test_borders_and_alarms_are_judged_one_against_the_other() -> None:
    rows = judged([100, 200, 300], [40, 110, 150, 320])
    table = [tuple(r.values()) for r in rows]
    assert table == [
        (None, 40, None, "false"),
        (100, 110, 10, "found"),
        (None, 150, None, "false"),
        (200, None, None, "missed"),
        (300, 320, 20, "found"),
    ]
    assert judged([], []) == [] and judged([], [7])[0]["kind"] == "false"


def test_a_fuzzy_border_begins_where_tasks_begin_to_mix(configure, tmp_path) -> None:
    case = ("benchmark.boundaries=fuzzy", "benchmark.fuzzy_width=0.5", "training.iterations=40")
    loop.run(configure(*SMALL, DETECTED, *case, "detector.threshold=1e6"), tmp_path)
    rows = read_rows(tmp_path / "boundaries.csv")
    assert [(r["border"], r["kind"]) for r in rows] == [("30", "missed"), ("70", "missed")]
    assert row(tmp_path)["borders_missed"] == "2" and row(tmp_path)["mean_delay"] == ""


# What is made of it.


def settings(name: str, scenario: str) -> tuple[str, ...]:
    quick = {
        "gdumb": ("strategy.epochs=1",),
        "generative_replay": ("strategy.hidden_sizes=[10]", "strategy.latent_size=3"),
        "bir": ("strategy.hidden_sizes=[10]", "strategy.latent_size=3"),
        "den": ("strategy.phase_epochs=1",),
        "la_maml": ("strategy.inner_steps=2",),
        # A step of it has one of its own for each sample.
        "mer": ("training.batch_size=2", "benchmark.train_samples=16"),
        "ridge": ("strategy.features=50",),
    }
    tasks = ("benchmark.num_tasks=2",) if scenario == "domain" else ()
    steps = ("training.iterations=10", "training.batch_size=16")  # more than an epoch each task
    return (
        *SMALL,
        *steps,
        f"strategy={name}",
        f"scenario={scenario}",
        *tasks,
        *quick.get(name, ()),
    )


POLICIES = [
    *(
        ("er", f"strategy.policy={p} strategy.buffer_size=40")
        for p in ("class_balanced", "herding")
    ),
    ("der", "strategy.policy=class_balanced strategy.buffer_size=40"),
    ("er", "strategy.weighting=task_share"),
]
CASES = [
    *((name, "", scenario) for name in strategies.available() for scenario in ("class", "domain")),
    *((name, more, "class") for name, more in POLICIES),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more", "scenario"), CASES)
def test_found_at_once_a_border_is_what_a_known_one_is(
    prepared, monkeypatch, name, more, scenario
) -> None:
    """Bit for bit, for each strategy that takes detected borders; the others say why not."""
    found = strategies.find(name)
    if scenario not in found.scenarios:
        pytest.skip(f"{name} is not for scenario={scenario}")
    case = (*settings(name, scenario), *more.split())
    _, strategy, _ = prepared(*case)
    if reason := strategy.needs_tasks(scenario):
        with pytest.raises(UserError) as refused:
            prepared(*case, DETECTED)
        assert reason in str(refused.value) and "\n" not in str(refused.value)
        return
    known, _ = trained(prepared, *case)
    called_at(monkeypatch, 10, 20)
    detected, env = trained(prepared, *case, DETECTED)
    assert env.watch.alarms and env.watch.alarms[0] == 10
    assert_same(detected[-1], known[-1])


REFUSED = {"joint", "cumulative", "gdumb", "icarl", "agem", "gem", "expandable_head"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_who_needs_the_streams_tasks_is_refused(prepared, name) -> None:
    with pytest.raises(
        UserError, match=f"training.boundaries=detected .* strategy={name}: it needs"
    ):
        prepared(*settings(name, "class"), DETECTED)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("strategy=lwf", "strategy=lwf: it needs the tasks"),
        ("strategy=er strategy.policy=ring scenario=domain benchmark.num_tasks=2", "ring balances"),
        ("scenario=task", "no meaning for scenario=task"),
        ("optimizer.schedule=cosine", "needs optimizer.schedule=constant"),
        ("training.active_classes=current", "needs training.active_classes=all"),
        ("detector.name=kswin", "detector.name must be one of"),
        ("detector.confidence=0.1", "has no meaning with detector.name=page_hinkley"),
        ("detector.name=adwin detector.window=9", "has no meaning with detector.name=adwin"),
        ("detector.threshold=0", "detector.threshold must be positive"),
        ("detector.delta=-1", "detector.delta must be at least 0"),
        ("detector.window=1", "detector.window must be at least 2"),
        ("detector.name=adwin detector.confidence=1", "detector.confidence must lie in"),
        ("detector.name=adwin detector.rise=-1", "detector.rise must be at least 0"),
        ("detector.rise=1", "has no meaning with detector.name=page_hinkley"),
        ("training.boundaries=known detector.delta=1", "no meaning with training.boundaries=known"),
    ],
)
def test_what_cannot_be_is_one_line(prepared, more, named) -> None:
    with pytest.raises(UserError) as refused:
        prepared(*SMALL, DETECTED, *more.split())
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_what_ended_is_what_came_since_the_last_border(prepared, monkeypatch) -> None:
    """Samples of several tasks, if the border was found late, each with its own."""
    seen = []
    naive = strategies.find("ewc")
    end = naive.end_task

    def watched(self, s, task, env):
        seen.append((int(s.t), task))
        return end(self, s, task, env)

    monkeypatch.setattr(naive, "end_task", watched)
    called_at(monkeypatch, 40, 80)
    _, env = trained(prepared, *SMALL, "strategy=ewc", DETECTED)
    assert [(t, task.index, set(task.of.tolist())) for t, task in seen] == [
        (0, 0, {0, 1}),
        (1, 1, {1, 2}),
        (2, 2, {2}),
    ]
    first = seen[0][1]
    assert set(first.train[first.of == 0].tolist()) == set(env.stream[0].train.tolist())
    assert first.classes == tuple(sorted(set(env.stream.labels(first.train, first.of).tolist())))


def test_all_that_came_is_noted(prepared, monkeypatch) -> None:
    """Within an epoch and over its end, after a border and without one."""
    came: set[tuple[int, int]] = set()
    noted = []
    take, forget = Detecting.take, Watch.forget

    def taken(self, batch, epoch, i):
        take(self, batch, epoch, i)
        came.update(zip(batch.task.tolist(), batch.index.tolist(), strict=True))
        if self.watch.step in {1, 7, 8, 19, 20, 25, 31, 49, 50, 90}:
            noted.append({*map(tuple, self.watch.tensors()["seen"].nonzero().tolist())} == came)

    def forgotten(self):
        forget(self)
        came.clear()

    monkeypatch.setattr(Detecting, "take", taken)
    monkeypatch.setattr(Watch, "forget", forgotten)
    called_at(monkeypatch, 40)
    alarm = Watch.alarm
    monkeypatch.setattr(Watch, "alarm", lambda self: self.step == 40 and alarm(self))
    _, env = trained(prepared, *SMALL, DETECTED)
    assert noted == [True] * 10 and env.watch.alarms == [40]


def test_no_more_borders_than_the_stream_has_are_acted_upon(
    prepared, configure, monkeypatch, tmp_path
) -> None:
    called_at(monkeypatch, 10, 20, 40, 50, 70)
    states, env = trained(prepared, *SMALL, "strategy=ewc", DETECTED)
    assert [int(s.t) for s in states] == [2, 2, 2]
    assert env.watch.alarms == [10, 20, 40, 50, 70]
    loop.run(configure(*SMALL, DETECTED), tmp_path)
    assert (row(tmp_path)["false_alarms"], row(tmp_path)["borders_missed"]) == ("3", "0")


def test_a_border_after_the_last_step_ends_the_last_task(prepared, monkeypatch) -> None:
    """Nothing came after it, so that there is nothing to measure a second time."""
    called_at(monkeypatch, 30, 60)
    known, _ = trained(prepared, *SMALL, "strategy=ewc", DETECTED)
    called_at(monkeypatch, 30, 90)
    states, _ = trained(prepared, *SMALL, "strategy=ewc", DETECTED)
    assert int(states[-1].t) == 2 and int(known[-1].t) == 2
    assert not torch.equal(states[-1].memory["fisher"], known[-1].memory["fisher"])


def test_the_optimizer_is_reset_where_a_border_is_found(prepared, monkeypatch) -> None:
    called_at(monkeypatch, 30, 60)
    case = (*SMALL, "optimizer=adam", "optimizer.reset=true")
    known, _ = trained(prepared, *case)
    detected, _ = trained(prepared, *case, DETECTED)
    assert_same(detected[-1], known[-1])


def test_a_stack_is_told_why_it_cannot_be(prepared) -> None:
    members = [Member(*prepared(*SMALL, DETECTED, f"seed={seed}")[1:]) for seed in (0, 1)]
    assert "training.boundaries=detected" in obstacle(members)


def test_a_loss_that_is_not_finite_is_not_looked_at(prepared) -> None:
    _, _, env = prepared(*SMALL, DETECTED)
    watch = env.watch
    for loss in (1.0, math.nan, math.inf, 0.0):
        watch.losses.append(torch.tensor(loss))
    assert not watch.alarm()
    assert watch.state[0] == 2 and all(map(math.isfinite, watch.state))


def test_the_detector_is_no_part_of_other_runs(configure) -> None:
    plain, detected = configure(*SMALL).resolved, configure(*SMALL, DETECTED).resolved
    assert "detector" not in plain and detected["detector"]["name"] == "page_hinkley"
    assert config_hash(plain) != config_hash(detected)
    assert Detector() == configure().detector


# A killed run.


def outcome(out: Path) -> dict[str, object]:
    files: dict[str, object] = {}
    for path in sorted(out.glob("*.csv")):
        rows = read_rows(path)
        files[path.name] = [[(k, v) for k, v in r.items() if reproducible(k)] for r in rows]
    return files


class Killed(BaseException):
    """Stands for the end of the process."""


def resumed(config, monkeypatch, saves: int, out: Path) -> dict[str, object]:
    save, count = checkpoint.save, iter(range(1, 10**9))

    def counted(*args):
        save(*args)
        if next(count) == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", counted)
        with pytest.raises(Killed):
            loop.run(config, out)
    loop.run(dataclasses.replace(config, resume=True), out)
    return outcome(out)


@pytest.mark.parametrize(
    ("case", "moments_around"),
    [
        pytest.param("strategy=er strategy.buffer_size=30", (0,), id="er"),
        pytest.param(
            "strategy=er strategy.buffer_size=30",
            (-3, 0, 1, 4),
            id="longer",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "strategy=ewc detector.name=adwin", (-3, 0, 1), id="ewc adwin", marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    configure, monkeypatch, tmp_path, case, moments_around
) -> None:
    """Before, at and after the steps at which it looks, and at which it calls."""
    monkeypatch.setattr(detectors, "BURN_IN", 5)
    if "adwin" in case:
        called_at(monkeypatch, 40, 70)
        case = (*SMALL, DETECTED, *case.split())
    else:
        case = (*SMALL, DETECTED, *EAGER, *case.split())
    loop.run(configure(*case), tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    alarms = [int(r["alarm"]) for r in expected_rows(tmp_path / "whole") if r["alarm"]]
    assert alarms  # or nothing is tested
    config = configure(*case, "checkpoint.every=0")
    per_task = 1 + 30 + 1  # before the first step, after each, after the evaluation
    moments = {(a - 1) // 30 * per_task + 1 + (a - 1) % 30 + 1 for a in alarms}
    around = {m + k for m in moments for k in moments_around} | {32, 33}
    for saves in sorted(around) if len(moments_around) > 1 else [min(moments), 32]:
        assert resumed(config, monkeypatch, saves, tmp_path / str(saves)) == expected, saves


def expected_rows(out: Path) -> list[dict[str, str]]:
    return read_rows(out / "boundaries.csv")


DAMAGE = {
    "ends": lambda _: torch.tensor([1, 2]),
    "alarms": lambda _: torch.tensor([10**6]),
    "step": lambda _: torch.tensor(-1),
    "losses": lambda _: torch.zeros(EVERY + 1),
    "state": lambda v: v - 1,
    "seen": lambda v: v[:, 1:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_no_run_writes_is_refused(configure, monkeypatch, tmp_path, name) -> None:
    config = configure(*SMALL, DETECTED, "checkpoint.every=0")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_after(checkpoint.save, 40))
        with pytest.raises(Killed):
            loop.run(config, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = f"watch.{name}"
    tensors[key] = DAMAGE[name](tensors[key]).contiguous()
    header["checksum"] = checksum(header["content"], tensors)
    safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(UserError, match="watch"):
        loop.run(dataclasses.replace(config, resume=True), tmp_path)


def stop_after(save, number: int):
    count = iter(range(1, 10**9))

    def counted(*args):
        save(*args)
        if next(count) == number:
            raise Killed

    return counted


def test_adwins_state_is_checked_bucket_by_bucket() -> None:
    state = detectors.adwin_start()
    for x in range(50):
        state, _ = detectors.adwin(state, float(x % 3), confidence=0.002, rise=1.25, clock=32)
    assert detectors.adwin_whole(state)
    for at, value in ((1, 7.0), (4, 9.0), (4, 0.5), (3, -1.0), (2, math.nan)):
        assert not detectors.adwin_whole([*state[:at], value, *state[at + 1 :]])


def test_the_state_holds_tensors_only(prepared) -> None:
    states, env = trained(prepared, *SMALL, DETECTED)
    leaves(states[-1])
    assert all(isinstance(v, torch.Tensor) for v in env.watch.tensors().values())
