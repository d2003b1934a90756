"""Checkpoints: all that a run needs to go on bit for bit, in one safetensors file (no pickle).

The TrainState, the accuracy matrices and curves and, within a task, what it trains on are tensors,
named `theta`, `memory.fisher`, `R.test.class`, ...; position, counts, tables, configuration and
versions are JSON in the file's header, and a checksum covers everything. No state of a random
generator is in it: random numbers are derived from the seed and the position.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_runner.config.identity import IMMATERIAL, flatten
from cl_runner.core import TrainState
from cl_runner.errors import UserError, check
from cl_runner.machine.reading import regular, yaml_values
from cl_runner.machine.systems import replace, sync_folder
from cl_runner.results.files import remove_leftovers, write_bytes
from cl_runner.results.matrices import Curves, Matrices, Tables
from cl_runner.results.names import CHECKPOINT, CONFIG, PRETRAINED
from cl_runner.running.edits import Edits
from cl_runner.running.frame import (
    EDITS,
    GRAMS,
    GROUPS,
    KEPT,
    Frame,
    Unfit,
    check_content,
    check_keys,
    check_tensors,
    named,
    short,
)
from cl_runner.running.guard import Backtest
from cl_runner.running.representation import Grams
from cl_runner.training.fit import Progress
from cl_runner.version import __version__

NEXT = "checkpoint.next.safetensors"  # one that is about to take the place of CHECKPOINT
FORMAT = 4  # of the file; another number, another meaning


class Saved(NamedTuple):
    """A run at one moment."""

    state: TrainState
    matrices: Matrices
    counts: dict[str, Any]  # seconds so far, and the state of the meter
    tables: Tables
    curves: Curves
    task: int  # index of the task that comes next, or that is under way
    progress: Progress | None = None  # of the training on it; None: before its beginning
    watch: dict[str, Tensor] | None = None  # of the detector, where there is one
    backtest: Backtest | None = None  # what the guard has seen of the task under way
    edits: Edits | None = None  # where the model of the first task has chosen the others
    grams: Grams | None = None  # what the tasks looked like, with eval.features


def save(out: Path, saved: Saved, config: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `out`; the old one stays until the new one is on the disk.

    config: the resolved configuration, which `load` compares. Raises UserError for a full disk.
    """
    write_bytes(out / CHECKPOINT, serialised(saved, config))


def save_all(parts: Sequence[tuple[Path, Saved, Mapping[str, Any]]]) -> None:
    """`save` for runs that are trained together: all of them get their new checkpoint, or none.

    All are written beside the old ones, then all are renamed. What a kill leaves of that `settle`
    brings to one side or the other.
    """
    if len(parts) == 1:
        save(*parts[0])
        return
    for out, saved, config in parts:
        write_bytes(out / NEXT, serialised(saved, config))
    for out, _, _ in parts:
        replace(out / NEXT, out / CHECKPOINT)
        sync_folder(out)


def settle(folders: Sequence[Path]) -> None:
    """Complete, or take back, what a killed `save_all` left in these folders, in their order.

    They are written, and renamed, in that order: if the last one's is there, all had been written.
    What is no checkpoint takes the place of none.
    """
    there = [out for out in folders if (out / NEXT).exists()]
    written = there[-1:] == list(folders)[-1:] and all(position(out, NEXT) for out in there)
    for out in there:
        with suppress(OSError):  # a folder that cannot be written is told when the run begins
            if written:
                replace(out / NEXT, out / CHECKPOINT)
                sync_folder(out)
            else:
                (out / NEXT).unlink()


def position(out: Path, name: str = CHECKPOINT) -> tuple[int, int | None] | None:
    """The task and step at which the checkpoint in `out` stands, if there is one.

    As its header says, which is checked when it is loaded; None also where it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = out / name
    try:
        with regular(path):  # not a pipe
            pass
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get("content", ""))
        task, step = content["task"], content["step"]
    except (OSError, SafetensorError, UserError, ValueError, TypeError, KeyError, RecursionError):
        return None
    known = type(task) is int and (step is None or type(step) is int)
    return (task, step) if known else None


def serialised(saved: Saved, config: Mapping[str, Any]) -> bytes:
    """A checkpoint as it lies in a file."""
    import safetensors.torch

    tensors = to_tensors(saved)
    progress = saved.progress
    content = {
        "task": saved.task,
        "step": None if progress is None else progress.step,
        "label": progress.samples[1] if progress and isinstance(progress.samples[1], int) else None,
        "guard": saved.backtest and without_state(saved.backtest),
        "counts": saved.counts,
        "tables": saved.tables,
        "config": dict(config),
    }
    text = json.dumps(content)  # keys in their order: that of the columns of tables
    header = {
        "format": str(FORMAT),
        "cl_runner": __version__,
        "content": text,
        "checksum": checksum(text, tensors),
    }
    return safetensors.torch.save(tensors, header)


def load(out: Path, config: Mapping[str, Any], frame: Frame) -> Saved | None:
    """The checkpoint in `out`, None if there is none.

    Raises UserError, which says what differs, if it is damaged, was written by another version,
    belongs to a run with another configuration, or holds what no run within this frame writes.
    """
    from safetensors import SafetensorError, safe_open

    path = out / CHECKPOINT
    if not path.exists():
        return None
    anew = "remove it to start this run from the beginning"
    damaged = f"{path} is damaged; {anew}"
    try:
        with regular(path) as file:
            longer = os.fstat(file.fileno()).st_size > frame.most_bytes()
        check(not longer, f"{path} is longer than any checkpoint of this run; {anew}")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Cloned, because a file's tensors lie anywhere in memory, torch's own at multiples of
            # 64 bytes, for which libraries may add up in another order.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise UserError(damaged) from None
    check("format" in header, f"{path} is no checkpoint of cl-run")
    for what, ours in (("format", str(FORMAT)), ("cl_runner", __version__)):
        theirs = header.get(what)
        message = (
            f"{path} was written by another version: {what} {short(theirs)} there, {ours} here"
        )
        check(theirs == ours, message)
    text = header.get("content", "")
    check(header.get("checksum") == checksum(text, tensors), damaged)
    try:
        content = json.loads(text)
        check_keys(content)
        check_same(path, content["config"], config)
        check_content(content, frame)
        check_tensors(tensors, content, frame)
    except (ValueError, RecursionError):
        raise UserError(damaged) from None
    except Unfit as error:
        raise UserError(f"{path} does not fit this run: {error}; {anew}") from None
    return from_tensors(tensors, content)


def remove(out: Path) -> None:
    """Remove the checkpoint in `out`, and what a process that was killed had half written."""
    for name in (CHECKPOINT, NEXT, PRETRAINED):
        with suppress(OSError):
            (out / name).unlink()
    remove_leftovers(out)


def check_run(out: Path, config: Mapping[str, Any]) -> None:
    """Raise UserError if `out` holds a run with another configuration than this one."""
    path = out / CONFIG
    if not path.exists():
        return
    theirs = yaml_values(path)
    check(isinstance(theirs, dict), f"{path} is not a configuration of cl-run")
    if "seeds" in theirs and "seeds" in config:
        theirs["seeds"] = config["seeds"]  # more may be added
    check_same(path, theirs, config)


def check_same(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise UserError naming the keys in which two configurations differ in substance."""
    there, here = flatten(theirs), flatten(ours)
    differing = [
        f"{short(key)} is {short(there.get(key, 'not set'))} there and "
        f"{short(here.get(key, 'not set'))} here"
        for key in sorted(there.keys() | here.keys())
        if key not in IMMATERIAL and there.get(key) != here.get(key)
    ]
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    message = f"{path} is of another configuration: {'; '.join(differing[:3])}{more}"
    check(not differing, message)


def without_state(backtest: Backtest) -> dict[str, Any]:
    """What the guard has seen, as JSON; the state is among the tensors."""
    return {k: v for k, v in backtest._asdict().items() if k != "state"}


def to_tensors(saved: Saved) -> dict[str, Tensor]:
    """What of a run is tensors: copies on the host, in the order of their names."""
    found = named(saved.state)
    for (split, reading), R in saved.matrices.items():
        found[f"R.{split}.{reading}"] = torch.from_numpy(R)
    for (split, reading), rows in saved.curves.items():
        found[f"curve.{split}.{reading}"] = torch.tensor(rows, dtype=torch.float64)
    if saved.backtest is not None and saved.backtest.state is not None:
        found |= {f"{KEPT}{name}": v for name, v in named(saved.backtest.state).items()}
    if saved.progress is not None:
        (index, label), _, losses, predictions = saved.progress
        found["samples.index"] = index
        found |= {"samples.task": label} if isinstance(label, Tensor) else {}
        found |= {"losses": torch.stack(list(losses))} if losses else {}
        found |= {"predictions": torch.cat(list(predictions))} if predictions else {}
    found |= {f"watch.{name}": v for name, v in (saved.watch or {}).items()}
    if saved.edits is not None:
        found |= {f"{EDITS}{name}": v for name, v in saved.edits._asdict().items()}
    found |= {f"{GRAMS}{name}": v for name, v in (saved.grams or {}).items()}
    return {k: found[k].detach().cpu().contiguous().clone() for k in sorted(found)}


def from_tensors(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Saved:
    """The inverse of `to_tensors`, with what the header tells."""

    def group(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    def state(prefix: str = "") -> TrainState:
        groups = {g: group(f"{prefix}{g}.") for g in GROUPS}
        return TrainState(theta=tensors[f"{prefix}theta"], t=tensors[f"{prefix}t"], **groups)

    matrices: Matrices = {}
    for name, R in group("R.").items():
        split, reading = name.split(".")
        matrices[split, reading] = R.numpy()
    curves: Curves = {}
    for name, rows in group("curve.").items():
        split, reading = name.split(".")
        curves[split, reading] = rows.tolist()
    progress = None
    if content["step"] is not None:
        label = content["label"] if content["label"] is not None else tensors["samples.task"]
        losses: Sequence[Tensor] = tensors["losses"].unbind() if "losses" in tensors else ()
        predictions = (tensors["predictions"],) if "predictions" in tensors else ()
        samples = tensors["samples.index"], label
        progress = Progress(samples, content["step"], losses, predictions)
    backtest = None
    if content["guard"] is not None:
        held = state(KEPT) if f"{KEPT}theta" in tensors else None
        backtest = Backtest(**content["guard"], state=held)
    known = group(EDITS)
    edits = Edits(**known) if known else None
    at = content["task"], progress, group("watch.") or None, backtest, edits, group(GRAMS) or None
    return Saved(state(), matrices, content["counts"], content["tables"], curves, *at)


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of the header's content and of every tensor's name, type, shape and bits."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        v = tensors[name]
        digest.update(f"\0{name} {v.dtype} {tuple(v.shape)}\0".encode())
        digest.update(v.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
