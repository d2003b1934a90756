"""Which task each row of a table belongs to, and which rows are test data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cl_runner.config.benchmarks import Table
from cl_runner.core import generator_for
from cl_runner.data.arrays import natural
from cl_runner.errors import UserError, check

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MOST_SLICES = 10_000
LENGTHS = {"year": 4, "month": 7, "day": 10}  # of what names a period in 2024-03-31
Where = Callable[[int], str]  # says the file and the row, counted from 1, of row 0, 1, ...


class Numbered(NamedTuple):
    """Which of several values each row has."""

    place: NDArray[np.int64]  # [N], 0 .. len(names) - 1
    names: tuple[str, ...]


def numbered(values: Series) -> Numbered:
    """The different values of a column in their order: numbers by size, words as people sort them.

    A whole number is called without its decimal point.
    """
    import pandas as pd

    if is_number(values):
        different, index = np.unique(values.to_numpy(), return_inverse=True)
        whole = bool((different % 1 == 0).all()) and float(np.abs(different).max()) < 2**53
        different = different.astype(np.int64) if whole else different
        return Numbered(index.reshape(-1), tuple(str(value) for value in different.tolist()))
    index, found = pd.factorize(values.map(str))
    names = [str(name) for name in found]
    order = sorted(range(len(names)), key=lambda i: natural(names[i]))
    return Numbered(np.argsort(order)[index], tuple(names[i] for i in order))


def is_number(values: Series) -> bool:
    """Whether a column holds numbers; True and False are none."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(values) and not is_bool_dtype(values))


def dates(values: Series, where: Where) -> Series | None:
    """The times that words of ISO 8601 such as 2024-03-31 stand for; None for other columns.

    Raises UserError if most of the words are dates and one is not.
    """
    import pandas as pd
    from pandas.api.types import is_bool_dtype

    if is_number(values) or is_bool_dtype(values):
        return None
    times = pd.to_datetime(values.map(str), format="ISO8601", errors="coerce", utc=True)
    wrong = times.isna().to_numpy()
    if wrong.mean() > 0.5:
        return None
    if wrong.any():
        row = int(wrong.argmax())
        message = f"{where(row)}: {values.iloc[row]!r} in column {values.name} is no date"
        raise UserError(f"{message} such as 2024-03-31; most of the column's values are")
    return times.dt.tz_localize(None)


def cut(frame: DataFrame, config: Table, where: Where) -> Numbered:
    """Which slice each row belongs to, the slices in the order of the tasks. Raises UserError."""
    N, T = len(frame), config.num_tasks
    if config.slice is None:
        assert T is not None
        check(T <= N // 2, f"benchmark.num_tasks={T} is too many for {N} rows: take at most half")
        index = np.arange(N) * T // N
        first = [*np.searchsorted(index, np.arange(T)).tolist(), N]
        return Numbered(index, tuple(f"rows {first[t] + 1}-{first[t + 1]}" for t in range(T)))
    values = frame[config.slice]
    times = dates(values, where)
    if times is None:
        wanted = f"benchmark.slice_by={config.slice_by} needs a column of dates such as 2024-03-31"
        got = f"column {config.slice} holds {values.iloc[0]!r}"
        check(config.slice_by is None, f"{wanted}; {got}")
        slices = numbered(values)
    else:
        slices = periods(times, config, where)
    T = len(slices.names)
    check(
        min(MOST_SLICES, N / 2) >= T,
        f"benchmark.slice={config.slice} has {T} different values in {N} rows, too many tasks: "
        "choose a column of fewer, cut dates by benchmark.slice_by=year, month or day, or take "
        "benchmark.slice=null with benchmark.num_tasks=N, equal parts",
    )
    return slices


def periods(times: Series, config: Table, where: Where) -> Numbered:
    """The different times, or their years, months or days. Raises UserError for unsorted rows."""
    back = np.flatnonzero(np.diff(times.to_numpy()) < np.timedelta64(0, "ns"))
    if len(back):
        row = int(back[0]) + 1
        message = f"{where(row)}: {times.iloc[row]} in column {config.slice} is out of order, after"
        raise UserError(f"{message} {times.iloc[row - 1]}: sort the rows by time")
    whole_days = bool((times == times.dt.normalize()).all())
    names = times.dt.strftime("%Y-%m-%d" if whole_days or config.slice_by else "%Y-%m-%d %H:%M:%S")
    return numbered(names.str[: LENGTHS.get(config.slice_by or "")])


def held_out(slices: Numbered, y: NDArray[np.int64], share: float, source: str) -> NDArray[np.bool]:
    """Which rows are test data [N]: of each slice so large a share, drawn at random.

    One row of each class in a slice is never drawn, so that no class is in the test data only. The
    others are drawn from all classes alike: sorted by class, in random order within each, every
    so-many-th is taken. The draw is the same for all seeds, for it is part of the data: runs with
    several seeds share them. Raises UserError for slices too small to be tested.
    """
    random = torch.randperm(len(y), generator=generator_for(torch.device("cpu"), 0, "held out"))
    order = random.numpy()
    order = order[np.lexsort((y[order], slices.place[order]))]
    part, label = slices.place[order], y[order]
    again = (part[1:] == part[:-1]) & (label[1:] == label[:-1])  # not the first of its class
    order, sizes = order[1:][again], np.bincount(part, minlength=len(slices.names))
    ends = np.searchsorted(slices.place[order], np.arange(len(sizes) + 1))
    test = np.zeros(len(y), dtype=bool)
    for t, size in enumerate(sizes):
        own = order[ends[t] : ends[t + 1]]
        number = min(max(1, round(share * size)), len(own))
        check(
            number > 0,
            f"{source}: slice {slices.names[t]} has {size} rows, too few for training and test: a "
            "slice needs two rows of a class; join it with others, or delete it",
        )
        test[own[(np.arange(number) * 2 + 1) * len(own) // (2 * number)]] = True
    return test
