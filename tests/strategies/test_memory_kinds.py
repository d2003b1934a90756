"""What strategies remember: on the run's device, and numbers of the kind that they stand for."""

from __future__ import annotations

import pytest
import torch

from cl_runner.running.tasks import initial_state
from cl_runner.strategies import available

TASK_IL = (
    *("adam_nscl", "den", "gpm", "hat", "packnet", "piggyback", "pnn"),
    *("separate", "soft_sharing", "supsup"),
    "xdg",
)
BUFFERED = (
    *("agem", "cls_er", "der", "derpp", "er", "er_ace", "er_ewc", "gdumb", "gem", "icarl", "mer"),
    *("bic", "er_aml", "fromp", "la_maml", "lucir", "mir", "scr", "wa"),
)
# Whatever has no other kind is float32.
KINDS = {
    "bias": torch.bool,
    "buffer_index": torch.int64,
    "buffer_task": torch.int64,
    "buffer_validation": torch.bool,
    "free": torch.bool,
    "hidden": torch.bool,
    "masked": torch.bool,
    "masks": torch.bool,
    "output": torch.bool,
    "own": torch.bool,
    "owner": torch.int16,
    "period": torch.int64,
    "remaining": torch.int64,
    "seen": torch.int64,
    "stamp": torch.int64,
    "steps": torch.int64,
    "trainable": torch.bool,
    "trained": torch.bool,
}
MOMENTS = dict.fromkeys(("count", "sum", "gram"), torch.float64)
OTHERS = {
    "adam_nscl": {"gram.layers.0": torch.float64},
    "expandable_head": {"seen": torch.bool},
    "hat": {"free": torch.float32},
    **dict.fromkeys(("ncm", "ridge", "slda"), MOMENTS),
}
COMPUTED = ("latent_replay", "packnet")  # from what stays on the network's device


def toy(name: str) -> list[str]:
    """What makes a small run of it."""
    overrides = [f"strategy={name}", "benchmark=split_digits", "model.hidden_sizes=[8]"]
    overrides += ["scenario=task"] if name in TASK_IL else []
    return overrides + (["strategy.buffer_size=20"] if name in BUFFERED else [])


@pytest.mark.parametrize("name", [n for n in available() if n not in COMPUTED])
def test_the_memory_is_on_the_device_and_of_its_kinds(prepared, name: str) -> None:
    _, strategy, env = prepared(*toy(name))
    env.device = torch.device("meta")
    memory = strategy.init(env.flat.theta.detach().to("meta"), env)
    assert {value.device for value in memory.values()} <= {env.device}
    kinds = KINDS | OTHERS.get(name, {})
    assert {key: v.dtype for key, v in memory.items()} == {
        key: kinds.get(key, torch.float32) for key in memory
    }


@pytest.mark.parametrize("name", available())
def test_the_first_task_adds_nothing_to_the_memory(prepared, name: str) -> None:
    """What `init` makes has the names, shapes and kinds of what a task begins and ends with."""
    _, strategy, env = prepared(*toy(name))
    s = initial_state(strategy, env)
    begun = strategy.begin_task(s, env.stream[0], env)
    ended = strategy.end_task(begun, env.stream[0], env)
    first, second, third = (
        {key: (value.shape, value.dtype) for key, value in state.memory.items()}
        for state in (s, begun, ended)
    )
    assert first == second == third
    assert bool((s.memory.get("buffer_index", torch.tensor(-1)) == -1).all())  # nothing is held
