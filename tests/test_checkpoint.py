"""A checkpoint gives back what was saved, to the bit, or is refused in one line."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cl_runner import checkpoint
from cl_runner.checkpoint import Saved, check_fits, check_same, load, named, remove, save
from cl_runner.core import TrainState
from cl_runner.engine import initial_state, restored
from cl_runner.errors import UserError
from cl_runner.fit import Begun

CONFIG = {"seed": 3, "strategy": {"name": "ewc", "lambda": 5.0}, "data": {"root": "a"}}
DTYPES = (torch.bool, torch.int16, torch.int64, torch.float32, torch.float64, torch.bfloat16)


def a_state(**memory: Tensor) -> TrainState:
    return TrainState(
        theta=torch.randn(7, requires_grad=True),
        buffers={"bn.running_mean": torch.randn(3), "bn.num_batches_tracked": torch.tensor(4)},
        opt={"lr": torch.tensor(0.1), "m": torch.randn(7)},
        memory=memory,
        t=torch.tensor(2),
    )


CURVES = {("test", "class"): [[0, 5, 0.25, 1 / 3], [1, 5, 0.5, 1.0]]}


def a_run(begun: Begun | None = None, **memory: Tensor) -> Saved:
    R = np.array([[0.1, np.nan], [1 / 3, 0.0], [np.nan, np.nan]])
    return Saved(
        a_state(**memory),
        {("test", "class"): R},
        {"steps": 9, "seconds": 1.25},
        {"costs": [{"flops": 8, "x": 1 / 3}]},
        CURVES,
        1,
        begun,
    )


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
    loaded = load(out, CONFIG)
    assert loaded is not None
    assert_same(saved, loaded)


def test_views_and_tensors_that_share_memory_come_back_as_they_were(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    saved = a_run(transposed=whole.T, row=whole[1], every_other=whole[:, ::2], whole=whole)
    save(tmp_path, saved, CONFIG)
    assert_same(saved, load(tmp_path, CONFIG))
    for tensor in named(load(tmp_path, CONFIG).state).values():
        assert tensor.data_ptr() % 64 == 0  # as torch's own: libraries may depend on it


@pytest.mark.parametrize("label", [1, torch.tensor([0, 1, 1])], ids=["one task", "several"])
@pytest.mark.parametrize("losses", [(), (torch.tensor(0.5), torch.tensor(float("inf")))])
def test_the_position_within_a_task_comes_back(tmp_path, label, losses):
    begun = Begun((torch.tensor([5, 2, 8]), label), 7, losses)
    save(tmp_path, a_run(begun), CONFIG)
    found = load(tmp_path, CONFIG).begun
    assert torch.equal(found.samples[0], begun.samples[0])
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
    assert_same(load(tmp_path, CONFIG), old)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_what_a_killed_process_had_half_written_is_removed(tmp_path):
    save(tmp_path, a_run(), CONFIG)
    (tmp_path / f".{checkpoint.NAME}.123.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"kept")
    remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.part"]
    remove(tmp_path)  # and with nothing there


# What is refused


def refusal(out: Path, config: dict = CONFIG) -> str:
    with pytest.raises(UserError) as caught:
        load(out, config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rewritten(out: Path, **header: str) -> None:
    """The checkpoint with another header."""
    path = out / checkpoint.NAME
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() | header
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)


def test_no_checkpoint_is_none(tmp_path):
    assert load(tmp_path, CONFIG) is None


def test_a_truncated_checkpoint_is_refused_at_every_length(tmp_path):
    save(tmp_path, a_run(fisher=torch.randn(5)), CONFIG)
    path = tmp_path / checkpoint.NAME
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 41), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(tmp_path).startswith(f"{path} is damaged; remove it to start"), length


def test_a_changed_byte_is_never_accepted(tmp_path):
    """Wherever it is: in a tensor, in the header's content, in the checksum, in the format."""
    saved = a_run(Begun((torch.arange(9), 1), 7), fisher=torch.randn(50))
    save(tmp_path, saved, CONFIG)
    path, draw = tmp_path / checkpoint.NAME, random.Random(0)
    whole = path.read_bytes()
    for at in (*draw.sample(range(len(whole)), 200), len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with suppress(UserError):  # or, where the byte is padding, the same as before
            assert_same(load(tmp_path, CONFIG), saved)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04K\x01.", bytes(1000)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / checkpoint.NAME).write_bytes(content)
    assert "is damaged" in refusal(tmp_path)
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / checkpoint.NAME)
    assert "is no checkpoint of cl-run" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "1", "was written by another version: format 1 there, 2 here"),
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
    save(tmp_path, a_run(), CONFIG | {"threads": 1, "checkpoint": {"every": 60}})
    changed = {"data": {"root": "b"}, "threads": 2, "checkpoint": {"every": None}}
    assert load(tmp_path, CONFIG | changed) is not None
    check_same(tmp_path, json.loads(json.dumps(CONFIG)), CONFIG)


def test_a_state_with_other_tensors_is_refused():
    s = a_state(fisher=torch.zeros(3))
    check_fits(s, a_state(fisher=torch.ones(3)))
    with pytest.raises(UserError) as caught:
        check_fits(s, a_state(fisher=torch.zeros(3, 2)))
    message = "the checkpoint does not fit: memory.fisher is float32 [3] there and float32 [3, 2]"
    assert str(caught.value) == f"{message} here"
    with pytest.raises(UserError, match=r"memory.anchor is missing there and float32 \[3\] here"):
        check_fits(s, a_state(fisher=torch.zeros(3), anchor=torch.zeros(3)))
