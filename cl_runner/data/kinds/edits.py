"""A model is trained, then corrected: sample by sample, on what it gets wrong."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cl_runner.config.benchmarks import Edits
from cl_runner.core import Stream, generator_for
from cl_runner.data.datasets import Arrays
from cl_runner.data.streams import CPU, every_class, stream_of
from cl_runner.errors import check


def edits_stream(config: Edits, arrays: Arrays, scenario: str) -> Stream:
    """The first task is the data set without its pool; each further one, an edit, is of the pool.

    The pool is a share of the training samples, drawn by benchmark.seed, on which the first task
    does not train; that of an edit, `per_edit` samples which the first task's model gets wrong, are
    chosen when it is trained (`chosen`), and until then any samples of the pool stand for them. An
    edit is tested on its own samples, so what is said of it is whether they are right now; the
    first task has the data set's test samples, which nothing ever trains on. The pool's samples
    therefore lie after those of x_test as well.
    """
    T, each = config.num_tasks, config.per_edit
    stream = stream_of(config, arrays, scenario, every_class(config, arrays, scenario)[:1])
    (first,) = stream
    order = torch.randperm(len(first.train), generator=generator_for(CPU, config.seed, "pool"))
    size, needed = round(config.pool_fraction * len(order)), (T - 1) * each
    check(
        needed <= size,
        f"benchmark.num_tasks={T} with benchmark.per_edit={each} asks for {needed} samples to edit,"
        f" more than the {size} of the pool: raise benchmark.pool_fraction, or ask for fewer",
    )
    pool = first.train[order[:size]]
    first = replace(first, train=first.train[order[size:].sort().values])
    edit = replace(first, epochs=config.epochs_per_edit, lr_factor=config.lr_factor)
    stream = replace(
        stream,
        x_test=torch.cat([arrays.x_test, arrays.x_train[pool]]),
        y_test=torch.cat([arrays.y_test, arrays.y_train[pool]]),
        tasks=(first, *(replace(edit, index=t) for t in range(1, T))),
        tables={"label": stream.label.expand(T, -1).contiguous()},
        pool=pool,
    )
    return chosen(stream, torch.arange(needed).view(T - 1, each))


def chosen(stream: Stream, places: Tensor) -> Stream:
    """The stream whose edits are of these places [T - 1, per_edit] in the pool."""
    first, *edits = stream
    assert stream.pool is not None
    untouched = len(stream.x_test) - len(stream.pool)
    tasks = [
        replace(
            edit,
            train=stream.pool[own],
            validation=stream.pool[own] if len(first.validation) else first.validation,
            test=untouched + own,
        )
        for edit, own in zip(edits, places.to(stream.pool.device), strict=True)
    ]
    return replace(stream, tasks=(first, *tasks), cache={})
