"""A checkpoint gives back what was saved, to the bit, or is refused in one line."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import cl_runner
from cl_runner.config.schema import Eval
from cl_runner.core import TrainState
from cl_runner.errors import UserError
from cl_runner.results.columns import task_costs
from cl_runner.results.names import CHECKPOINT
from cl_runner.running import checkpoint
from cl_runner.running.checkpoint import Saved, check_same, load, remove, save
from cl_runner.running.frame import Frame, frame_of, named
from cl_runner.running.guard import ROW, Backtest
from cl_runner.running.tasks import initial_state, restored
from cl_runner.training import online
from cl_runner.training.fit import Progress
from cl_runner.training.meter import Meter

COSTS = ("after_task", *task_costs())
CONFIG = {"seed": 3, "strategy": {"name": "ewc", "lambda": 5.0}, "data": {"root": "a"}}
DTYPES = (torch.bool, torch.int16, torch.int64, torch.float32, torch.float64, torch.bfloat16)


def a_state(**memory: Tensor) -> TrainState:
    return TrainState(
        theta=torch.randn(7, requires_grad=True),
        buffers={"bn.running_mean": torch.randn(3), "bn.num_batches_tracked": torch.tensor(4)},
        opt={"lr": torch.tensor(0.1), "m": torch.randn(7)},
        memory=memory,
        t=torch.tensor(1),
    )


CURVES = {("test", "class"): [[0, 5, 0.25, 1 / 3], [1, 5, 0.5, 1.0]]}


def a_run(progress: Progress | None = None, **memory: Tensor) -> Saved:
    R = np.array([[0.1, 1.0], [1 / 3, 0.0], [np.nan, np.nan]])
    costs = [{**dict.fromkeys(COSTS, 1 / 3), "after_task": i, "memory_bytes": None} for i in (0, 1)]
    return Saved(
        a_state(**memory),
        {("test", "class"): R},
        {**Meter().state(), "steps": 9, "seconds": 1.25, "members": 1},
        {"costs": costs},
        CURVES,
        1,
        progress,
    )


def frame(saved: Saved, **changes: object) -> Frame:
    """What a run of two tasks, with these tensors, holds its checkpoint against."""
    usual = Frame(
        saved.state,
        keys=(("test", "class"),),
        y=torch.tensor([0, 1, 2, 1, 2, 0, 2, 2, 2]),
        label=torch.tensor([[0, 1, -1], [-1, -1, 2]]),
        steps=lambda _, samples: 3 * samples,
        idle=lambda task: task == 0,
        budget=(),
        evaluation=Eval(every=5),
        guard=None if saved.backtest is None else "rollback",
    )
    return usual._replace(**changes)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a: Saved, b: Saved) -> None:
    mine, other = named(a.state), named(b.state)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        loaded = other[name]
        assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape), name
        assert bits(loaded) == bits(value), name
    assert a.matrices.keys() == b.matrices.keys()
    assert all(R.tobytes() == b.matrices[key].tobytes() for key, R in a.matrices.items())
    assert (a.counts, a.tables, a.curves, a.task) == (b.counts, b.tables, b.curves, b.task)
    assert (a.backtest is None) == (b.backtest is None)
    if a.backtest is not None:
        assert a.backtest._replace(state=None) == b.backtest._replace(state=None)
        mine, other = named(a.backtest.state), named(b.backtest.state)
        assert mine.keys() == other.keys()
        assert all(bits(v) == bits(other[name]) for name, v in mine.items())


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=3),
    content=st.binary(min_size=512, max_size=512),
)
def test_any_tensor_comes_back_to_the_bit(tmp_path_factory, dtype, shape, content):
    """NaN payloads, infinities and denormal numbers among the floats, empty and 0-d tensors too."""
    n = int(np.prod(shape))
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    flat = (raw[:n] % 2).bool() if dtype is torch.bool else raw.view(dtype)[:n].clone()
    out = tmp_path_factory.mktemp("checkpoint")
    saved = a_run(any=flat.reshape(shape), other=torch.tensor(1))
    save(out, saved, CONFIG)
    loaded = load(out, CONFIG, frame(saved))
    assert loaded is not None
    assert_same(saved, loaded)


def test_views_and_tensors_that_share_memory_come_back_as_they_were(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    saved = a_run(transposed=whole.T, row=whole[1], every_other=whole[:, ::2], whole=whole)
    save(tmp_path, saved, CONFIG)
    loaded = load(tmp_path, CONFIG, frame(saved))
    assert_same(saved, loaded)
    for tensor in named(loaded.state).values():
        assert tensor.data_ptr() % 64 == 0  # as torch's own: libraries may depend on it


@pytest.mark.parametrize(
    ("index", "label"),
    [(torch.tensor([4, 2, 8]), 1), (torch.tensor([5, 2, 8]), torch.tensor([0, 1, 1]))],
    ids=["one task", "several"],
)
@pytest.mark.parametrize("losses", [(), (torch.tensor(0.5), torch.tensor(float("inf")))])
def test_the_position_within_a_task_comes_back(tmp_path, index, label, losses):
    progress = Progress((index, label), 7, losses)
    saved = a_run(progress)
    save(tmp_path, saved, CONFIG)
    found = load(tmp_path, CONFIG, frame(saved)).progress
    assert torch.equal(found.samples[0], progress.samples[0])
    assert type(found.samples[1]) is type(label)
    assert torch.equal(torch.as_tensor(found.samples[1]), torch.as_tensor(label))
    assert (found.step, list(found.losses)) == (7, list(losses))


def test_a_state_is_put_back_into_the_live_storage(prepared):
    """BatchNorm's statistics included, which the module itself moves."""
    toy = ("benchmark=split_digits", "model=reduced_resnet18", "model.width=2")
    _, strategy, env = prepared(*toy, "strategy=ewc", "optimizer=adam")
    s = initial_state(strategy, env)
    moved = TrainState(
        theta=s.theta.detach() + 1,
        buffers={k: v + 1 for k, v in s.buffers.items()},
        opt={k: v + 1 for k, v in s.opt.items()},
        memory={k: v + 1 for k, v in s.memory.items()},
        t=s.t + 1,
    )
    back = restored(moved, env)
    assert back.theta is env.flat.theta
    assert torch.equal(next(env.flat.module.parameters()).flatten()[:3], moved.theta[:3])
    for name, live in env.flat.module.named_buffers():
        assert back.buffers[name] is live and torch.equal(live, moved.buffers[name])
    assert all(torch.equal(v, named(moved)[k]) for k, v in named(back).items())


def test_the_old_checkpoint_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    old = a_run(a=torch.zeros(3))
    save(tmp_path, old, CONFIG)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(
            UserError, match=r"cannot write .*checkpoint.*: No space left on device"
        ):
            save(tmp_path, a_run(a=torch.ones(3)), CONFIG)
    assert_same(load(tmp_path, CONFIG, frame(old)), old)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_what_a_killed_process_had_half_written_is_removed(tmp_path):
    save(tmp_path, a_run(), CONFIG)
    (tmp_path / f".{CHECKPOINT}.123.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"kept")
    remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.part"]
    remove(tmp_path)  # and with nothing there


# What is refused


def refusal(out: Path, config: dict = CONFIG, own: Frame | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(out, config, own or frame(a_run()))
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewritten(out: Path, **header: str) -> None:
    """The checkpoint with another header."""
    path = out / CHECKPOINT
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() | header
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)


def test_no_checkpoint_is_none(tmp_path):
    assert load(tmp_path, CONFIG, frame(a_run())) is None


def test_a_truncated_checkpoint_is_refused_at_every_length(tmp_path):
    save(tmp_path, a_run(fisher=torch.randn(5)), CONFIG)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 41), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(tmp_path).startswith(f"{path} is damaged; remove it to start"), length


def test_a_changed_byte_is_never_accepted(tmp_path):
    """Wherever it is: in a tensor, in the header's content, in the checksum, in the format."""
    saved = a_run(Progress((torch.arange(9), 1), 7), fisher=torch.randn(50))
    save(tmp_path, saved, CONFIG)
    path, draw = tmp_path / CHECKPOINT, random.Random(0)
    whole = path.read_bytes()
    for at in (*draw.sample(range(len(whole)), 200), len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with suppress(UserError):  # or, where the byte is padding, the same as before
            assert_same(load(tmp_path, CONFIG, frame(saved)), saved)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01.", bytes(1000)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    assert "is damaged" in refusal(tmp_path)
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / CHECKPOINT)
    assert "is no checkpoint of cl-run" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "1", "was written by another version: format 1 there, 4 here"),
        ("cl_runner", "99.0", "was written by another version: cl_runner 99.0 there"),
    ],
)
def test_another_version_is_refused(tmp_path, key, value, said):
    save(tmp_path, a_run(), CONFIG)
    rewritten(tmp_path, **{key: value})
    assert said in refusal(tmp_path)


def test_another_configuration_is_refused_and_the_keys_are_named(tmp_path):
    save(tmp_path, a_run(), CONFIG)
    other = {"seed": 4, "strategy": {"name": "ewc", "lambda": 6.0, "mode": "online"}}
    assert refusal(tmp_path, other).endswith(
        "is of another configuration: seed is 3 there and 4 here; strategy.lambda is 5.0 there "
        "and 6.0 here; strategy.mode is not set there and online here"
    )
    many = {f"k{i}": i for i in range(9)}
    assert refusal(tmp_path, CONFIG | many).endswith("k2 is not set there and 2 here and 6 more")


def test_what_changes_no_result_may_differ(tmp_path):
    assert {"data.root", "threads", "device", "verbose"} < checkpoint.IMMATERIAL
    saved = a_run()
    save(tmp_path, saved, CONFIG | {"threads": 1, "checkpoint": {"every": 60}})
    changed = {"data": {"root": "b"}, "threads": 2, "checkpoint": {"every": None}}
    assert load(tmp_path, CONFIG | changed, frame(saved)) is not None
    check_same(tmp_path, json.loads(json.dumps(CONFIG)), CONFIG)


# What somebody else has made, with a right checksum


def forged(out: Path, tensors: dict[str, Tensor], content: dict) -> None:
    """A checkpoint that holds these, and a checksum that is right."""
    text = json.dumps(content)
    header = {"format": str(checkpoint.FORMAT), "cl_runner": cl_runner.__version__}
    header |= {"content": text, "checksum": checkpoint.checksum(text, tensors)}
    safetensors.torch.save_file(tensors, out / CHECKPOINT, header)


def honest(out: Path, saved: Saved) -> tuple[dict[str, Tensor], dict]:
    """What a checkpoint of ours holds."""
    save(out, saved, CONFIG)
    with safetensors.safe_open(out / CHECKPOINT, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["content"])


def within_a_task() -> Saved:
    """With everything that a checkpoint may hold."""
    progress = Progress((torch.tensor([5, 2, 8]), torch.tensor([0, 1, 1])), 7, (torch.tensor(0.5),))
    held = {"buffer_index": torch.tensor([-1, 8]), "buffer_task": torch.tensor([0, 1])}
    whole = a_run(progress, **held, seen=torch.tensor([3]))
    tables = whole.tables | {
        "guard": [{**dict.fromkeys(ROW), "task": 2, "looks": 1, "kept_step": 9}]
    }
    backtest = Backtest(9, 16, 1, 0, 0.5, 0.4, None, 0.7, 4, a_state(**whole.state.memory))
    return whole._replace(tables=tables, backtest=backtest)


ELSEWHERE = ("../../pwn", "/tmp/pwn", "costs.csv", "summary", "")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_table_that_the_program_does_not_write_is_refused(tmp_path, name):
    """`costs` and, with eval.calibration, two more; each would become the file NAME.csv."""
    saved = a_run()
    tensors, content = honest(tmp_path, saved)
    forged(tmp_path, tensors, content)
    assert_same(load(tmp_path, CONFIG, frame(saved)), saved)
    content["tables"][name] = [{"a": 1}]
    forged(tmp_path, tensors, content)
    assert "does not fit this run: tables must be costs; remove it" in refusal(tmp_path)


FORGERIES = [
    ("task", 99), ("task", -1), ("task", "x"), ("task", 2), ("task", True), ("task", 0),
    ("step", 99), ("step", 10), ("step", -1), ("step", "7"), ("step", 0.5), ("step", None),
    ("label", 2), ("label", "a"), ("counts", {}), ("counts", None), ("counts.steps", -1),
    ("counts.step", 1), ("counts.steps", 1.5), ("counts.seconds", float("nan")),
    ("counts.seconds", 10**400), ("counts.members", "3"), ("counts.train_seconds", "1"),
    ("counts.limits", {"flops": 1.0}),
    ("counts.began", []), ("counts.known", {"a": 1}), ("counts.known", {"1": "a"}),
    ("counts.energy_joules", 1.0), ("counts.energy_source", "rapl"),
    ("counts.stopped", [5]), ("counts.stopped", "abc"), ("counts.task", 7), ("tables", {}),
    ("tables", []), ("tables.costs", []), ("tables.costs", [[1]]),
    ("tables.costs", [{"=HYPERLINK(1)": 1}] * 2), ("tables.costs", "x"),
    ("tables.calibration", []), ("tables.confusion", [{}]), ("more", 1), ("config", None),
    ("config", []), ("config", "x"), ("guard", None), ("guard", []), ("guard.old_task", 1),
    ("guard.old_task", -1), ("guard.kept", 8), ("guard.fired", 8), ("guard.fired", 1),
    ("guard.looked", "x"), ("guard.reference", 1.5), ("guard.accuracy", None), ("guard.more", 1),
    ("tables.guard", [{}]), ("tables.guard", [{**dict.fromkeys(ROW), "task": "=1"}]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), FORGERIES, ids=lambda value: str(value)[:20])
def test_a_header_that_no_run_writes_is_one_line(tmp_path, key, value):
    saved = within_a_task()
    tensors, content = honest(tmp_path, saved)
    inner = content
    *outer, last = key.split(".")
    for name in outer:
        inner = inner[name]
    inner[last] = value
    forged(tmp_path, tensors, content)
    message = refusal(tmp_path, own=frame(saved))
    assert f"{tmp_path / CHECKPOINT} does not fit this run: " in message
    assert message.endswith("remove it to start this run from the beginning")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("memory.buffer_index", torch.tensor([0, 9]), "memory.buffer_index must lie in -1 .. 8"),
        ("memory.buffer_index", torch.tensor([-2, 0]), "memory.buffer_index must lie in -1 .. 8"),
        ("memory.buffer_index", torch.tensor([0.0, 1]), "is float32 [2] there and int64 [2] here"),
        ("memory.buffer_index", torch.zeros(3, dtype=torch.int64), "is int64 [3] there"),
        ("memory.buffer_index", None, "memory.buffer_index is missing there and int64 [2] here"),
        ("memory.buffer_index", torch.tensor([0, 0]), "holds a row whose class is not in its task"),
        ("memory.buffer_task", torch.tensor([1, 0]), "holds a row whose class is not in its task"),
        ("memory.seen", torch.tensor([-1]), "memory.seen must lie in 0 .."),
        ("memory.other", torch.zeros(1), "memory.other is float32 [1] there and missing here"),
        ("memory.\x1b[31m\n", torch.zeros(1), "memory.?[31m? is float32 [1] there and missing"),
        ("guard.memory.buffer_index", torch.tensor([0, 9]), "buffer_index must lie in -1 .. 8"),
        ("guard.theta", None, "theta is missing there and float32 [7] here"),
        ("guard.theta", torch.zeros(8), "theta is float32 [8] there and float32 [7] here"),
        ("guard.t", torch.tensor(9), "t must lie in 0 .. 1"),
        ("guard.memory.other", torch.zeros(1), "memory.other is float32 [1] there and missing"),
        ("theta", None, "theta is missing there and float32 [7] here"),
        ("t", torch.tensor(9), "t must lie in 0 .. 1"),
        ("samples.index", torch.tensor([0, 1, 9]), "samples.index must lie in 0 .. 8"),
        ("samples.index", torch.tensor([0, 1, -1]), "samples.index must lie in 0 .. 8"),
        ("samples.index", torch.tensor([0, 1, 3]), "samples.index holds a row whose class is not"),
        ("samples.task", torch.tensor([0, 0, 1]), "samples.index holds a row whose class is not"),
        ("samples.index", torch.tensor([0]), "samples.task must be as long as the index"),
        ("samples.index", torch.tensor(0), "samples.index must be int64 [n]"),
        ("samples.index", None, "samples.index must be int64 [n]"),
        ("samples.task", torch.tensor([0, 1, 2]), "samples.task must lie in 0 .. 1"),
        ("samples.task", None, "samples.task must be int64 [n]"),
        ("losses", torch.zeros(2**20, 0), "losses must be of at most 7 steps"),
        ("losses", torch.zeros(8), "losses must be of at most 7 steps"),
        ("R.test.class", torch.zeros(2, 2).double(), "R.test.class must be float64 [3, 2]"),
        ("R.test.class", torch.zeros(3, 2), "R.test.class must be float64 [3, 2]"),
        ("R.test.class", torch.zeros(3, 2).double(), "must hold fractions up to row 1, and none"),
        ("R.test.class", torch.full((3, 2), torch.nan).double(), "must hold fractions up to row 1"),
        ("R.x", torch.zeros(3, 2).double(), "R.x is no tensor of such a run"),
        ("R.../../pwn.class", torch.zeros(3, 2).double(), "R.../../pwn.class is no tensor of such"),
        ("curve.test.class", torch.zeros(1, 3).double(), "curve.test.class must be float64 [n, 4]"),
        ("curve.test.class", torch.full((1, 4), 0.5).double(), "step must lie in 1 .."),
        ("curve.x.class", torch.zeros(1, 4).double(), "curve.x.class is no tensor of such a run"),
        ("else", torch.zeros(1), "else is no tensor of such a run"),
    ],
    ids=str,
)
def test_tensors_that_no_run_has_are_one_line(tmp_path, name, value, said):
    saved = within_a_task()
    tensors, content = honest(tmp_path, saved)
    forged(tmp_path, {k: v for k, v in (tensors | {name: value}).items() if v is not None}, content)
    assert said in refusal(tmp_path, own=frame(saved))


def test_all_that_a_guard_has_seen_comes_back(tmp_path):
    saved = within_a_task()
    save(tmp_path, saved, CONFIG)
    assert_same(load(tmp_path, CONFIG, frame(saved)), saved)
    assert "guard is {'began': 9" in refusal(tmp_path, own=frame(saved, guard=None))
    said = "guard.buffers.bn.num_batches_tracked is no tensor of such a run"
    assert said in refusal(tmp_path, own=frame(saved, guard="warn"))


def test_only_a_task_without_samples_of_its_own_may_train_on_none(tmp_path):
    none = torch.empty(0, dtype=torch.int64)
    saved = a_run(Progress((none, 1)))
    tensors, content = honest(tmp_path, saved)
    assert_same(load(tmp_path, CONFIG, frame(saved, idle=lambda task: task == 1)), saved)
    assert "samples.index is empty in task 2" in refusal(tmp_path, own=frame(saved))
    content["step"] = 1
    forged(tmp_path, tensors, content)
    said = refusal(tmp_path, own=frame(saved, idle=lambda task: task == 1))
    assert "step must lie in 0 .. 0, got 1" in said


def test_a_buffer_in_shares_holds_each_tasks_own_classes(tmp_path):
    """GEM's, which keeps no task beside a sample; another's without one means what it likes."""
    seen = torch.zeros(2, dtype=torch.int64)
    saved = a_run(buffer_index=torch.tensor([0, -1, 2, 4]), seen=seen)
    honest(tmp_path, saved)
    assert_same(load(tmp_path, CONFIG, frame(saved)), saved)
    saved = a_run(buffer_index=torch.tensor([0, 2, -1, 4]), seen=seen)
    honest(tmp_path, saved)
    said = "memory.buffer_index holds a row whose class is not in its task"
    assert said in refusal(tmp_path, own=frame(saved))
    saved = a_run(buffer_index=torch.tensor([0, 2, -1, 4]), seen=seen[:1])
    honest(tmp_path, saved)
    assert_same(load(tmp_path, CONFIG, frame(saved)), saved)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.sampled_from(["", "../x", "class", "test", "task", "\x1b[2J", "=1+1"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["steps", "flops", "1", "a", "costs"]), inner, max_size=3),
    ),
    max_leaves=5,
)


def paths(node: object, path: tuple = ()) -> list[tuple]:
    """Where a value of the header's JSON may be put in the place of another."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return [
        found
        for key, value in items
        for own in [(*path, key)]
        for found in ([own, *paths(value, own)] if isinstance(value, dict | list) else [own])
    ]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_forged_header_is_taken_as_a_run_of_ours_or_refused(tmp_path_factory, data):
    """Never another exception; and what is taken writes no file but the usual ones."""
    out, saved = tmp_path_factory.getbasetemp(), within_a_task()
    tensors, content = honest(out, saved)
    for _ in range(data.draw(st.integers(1, 2))):
        *outer, last = data.draw(st.sampled_from([p for p in paths(content) if p[0] != "config"]))
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = data.draw(JSON)
    forged(out, tensors, content)
    try:
        found = load(out, CONFIG, frame(saved))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most are refused, some are not
        return
    assert found.tables.keys() == {"costs", "guard"}
    assert all(row.keys() == set(COSTS) for row in found.tables["costs"])
    assert 0 <= found.task < 2
    assert found.progress is None or 0 <= found.progress.step <= 9


def test_a_file_that_is_longer_than_any_of_the_run_is_not_read(tmp_path, monkeypatch):
    saved = a_run()
    save(tmp_path, saved, CONFIG)
    with (tmp_path / CHECKPOINT).open("r+b") as file:
        file.truncate(frame(saved).most_bytes() + 1)  # takes no room on the disk

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read before its size was known")

    monkeypatch.setattr(safetensors, "safe_open", read)
    assert "is longer than any checkpoint of this run; remove it" in refusal(tmp_path)


@pytest.mark.parametrize("what", [pytest.param("pipe", marks=pytest.mark.unix), "folder"])
def test_what_is_no_regular_file_is_not_opened_for_ever(tmp_path, what):
    path = tmp_path / CHECKPOINT
    path.mkdir() if what == "folder" else os.mkfifo(path)
    assert "is no regular file" in refusal(tmp_path) or "is damaged" in refusal(tmp_path)


def test_the_frame_of_a_run_says_what_it_may_hold(prepared):
    options = ("eval.calibration=true", "eval.every=1", "benchmark.validation_fraction=0.2")
    budget = ("budget.flops=1e9", "training.iterations=3")
    config, strategy, env = prepared("benchmark=split_digits", "strategy=er", *options, *budget)
    own = frame_of(config, strategy, initial_state(strategy, env), env)
    assert own.keys == tuple((s, r) for s in ("test", "validation") for r in ("class", "task"))
    assert (own.tasks, own.rows, own.steps(0, 100)) == (5, len(env.stream.x), 3)
    assert not any(own.idle(t) for t in range(5))
    assert (list(own.budget), own.evaluation, own.classes) == (["flops"], config.eval, 10)
    assert torch.equal(own.label, env.stream.label)
    assert torch.equal(own.y, env.stream.y)
    assert own.guard is None
    for name, steps, idle in (("joint", 3 * 5, [1, 2, 3, 4]), ("gdumb", 3, [0, 1, 2, 3, 4])):
        config, strategy, env = prepared(
            "benchmark=split_digits", f"strategy={name}", "training.iterations=3"
        )
        own = frame_of(config, strategy, initial_state(strategy, env), env)
        assert (own.steps(0, 100), [t for t in range(5) if own.idle(t)]) == (steps, idle)


# With eval.tasks and eval.online


def test_cells_are_empty_exactly_where_eval_tasks_leaves_them(tmp_path):
    saved, last = a_run(), Eval(every=5, tasks="last:1")
    R = saved.matrices["test", "class"]
    assert honest(tmp_path, saved)
    where = " where eval.tasks=last:1 measures, up to row 1"
    assert where in refusal(tmp_path, own=frame(saved, evaluation=last))
    R[0, 1] = np.nan  # after no task only the first is looked at
    honest(tmp_path, saved)
    assert "must hold fractions up to row 1" in refusal(tmp_path, own=frame(saved))
    assert "curve.test.class must hold" in refusal(tmp_path, own=frame(saved, evaluation=last))
    curves = {("test", "class"): [[0, 5, 0.25, np.nan], [1, 5, 0.5, 1.0]]}
    honest(tmp_path, saved._replace(curves=curves))
    found = load(tmp_path, CONFIG, frame(saved, evaluation=last))
    np.testing.assert_equal(found.curves, curves)
    R[1, 0] = np.nan
    honest(tmp_path, saved._replace(curves=curves))
    assert where in refusal(tmp_path, own=frame(saved, evaluation=last))


def online_run(predictions: Sequence[Tensor]) -> Saved:
    """In the second task, of three samples in batches of two."""
    saved = a_run(Progress((torch.tensor([4, 2, 8]), 1), 2, (), predictions))
    return saved._replace(tables=saved.tables | {"online": [online.row(1, 3, 5, 2)]})


def online_frame(saved: Saved) -> Frame:
    return frame(saved, evaluation=Eval(every=5, online=True), classes=3, batch_size=lambda _: 2)


def test_what_the_steps_predicted_comes_back(tmp_path):
    saved = online_run([torch.tensor([2, 0]), torch.tensor([1])])
    save(tmp_path, saved, CONFIG)
    found = load(tmp_path, CONFIG, online_frame(saved))
    assert torch.cat(list(found.progress.predictions)).tolist() == [2, 0, 1]
    assert found.tables == saved.tables


@pytest.mark.parametrize(
    "predictions",
    [[], [torch.tensor([2, 0])], [torch.tensor([2, 0, 3])], [torch.tensor([2, 0, -1])],
     [torch.tensor([2.0, 0, 1])], [torch.tensor([[2, 0, 1]])]],
    ids=str,
)  # fmt: skip
def test_predictions_that_no_step_made_are_refused(tmp_path, predictions):
    saved = online_run(predictions)
    honest(tmp_path, saved)
    assert "predictions must" in refusal(tmp_path, own=online_frame(saved))


@pytest.mark.parametrize(
    "change",
    [{"task": 2}, {"task": 0}, {"hits": 6}, {"samples": -5}, {"accuracy": 0.5}, {"step": 1.5},
     {"more": 1}],
    ids=str,
)  # fmt: skip
def test_a_row_of_online_that_no_run_writes_is_refused(tmp_path, change):
    saved = online_run([torch.tensor([2, 0]), torch.tensor([1])])
    saved.tables["online"][0].update(change)
    honest(tmp_path, saved)
    assert "online" in refusal(tmp_path, own=online_frame(saved))


def test_predictions_and_rows_are_there_only_where_they_were_asked_for(tmp_path):
    saved = online_run([torch.tensor([2, 0]), torch.tensor([1])])
    honest(tmp_path, saved)
    assert "tables must be costs;" in refusal(tmp_path, own=frame(saved))
    saved.tables.pop("online")
    honest(tmp_path, saved)
    assert "predictions is no tensor of such a run" in refusal(tmp_path, own=frame(saved))
