"""From the columns of a table to numbers: standardised, one-hot, hashed; and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cl_runner.config.benchmarks import Files
from cl_runner.data.arrays import check_free
from cl_runner.data.cutting import Numbered, Where, dates, is_number, numbered
from cl_runner.errors import UserError, check

if TYPE_CHECKING:
    from pandas import DataFrame, Series

FEW = 256  # different words: categories; more are text
MOST_CATEGORIES = 10_000
MOST_QUANTITIES = 20  # different labels with decimals
FAR = 100.0  # standard deviations: more are told
Floats = NDArray[np.float32]


def labels(values: Series, where: Where) -> Numbered:
    """The class of each row. Raises UserError for columns that hold quantities, or one value."""
    found = numbered(values)
    N, K = len(values), len(found.names)
    name = f"benchmark.label={values.name}"
    decimals = is_number(values) and bool((values % 1 != 0).any())
    check(
        K <= N / 2 and not (decimals and K > MOST_QUANTITIES),
        f"{name}: {K} different values in {N} rows are no classes (such as {str(values.iloc[0])!r} "
        f"in {where(0)}); regression is not offered: put the values into classes",
    )
    check(K > 1, f"{name}: all {N} rows are of class {found.names[0]}: there is nothing to learn")
    return found


def features(
    frame: DataFrame,
    config: Files,
    first: NDArray[np.bool],
    where: Where,
    tell: Callable[[str], None],
) -> Floats:
    """The rows of a table as vectors [N, D], column by column in the order of the table.

    Numbers are standardised (see there) by the rows `first`, and cut at benchmark.clip; categories
    are one-hot over all rows' values; text is hashed. Raises UserError for columns that are none of
    these.
    """
    check(len(frame.columns) > 0, f"{where(0)}: no column is left beside the label and the slice")
    kinds = {str(name): kind(frame[name], config, where) for name in frame}
    codes = {name: numbered(frame[name]) for name, k in kinds.items() if k == "category"}
    for name, code in codes.items():
        number = len(code.names)
        message = f"column {name} has {number} different values: hash it, benchmark.text=[{name}]"
        check(number <= MOST_CATEGORIES, message)
    constant = [
        name for name, k in kinds.items() if k == "number" and is_constant(frame[name][first])
    ]
    if constant:
        tell(f"of one value in the first task, and so 0 in all: column {', '.join(constant)}")
    each = {"number": 1, "text": config.text_features}
    widths = [each[k] if k in each else len(codes[name].names) for name, k in kinds.items()]
    N, D = len(frame), sum(widths)
    check_free(f"{N} rows of {D} features", 4 * N * D)
    x = np.zeros((N, D), np.float32)
    parts = np.split(x, np.cumsum(widths)[:-1], axis=1)
    for part, (name, k) in zip(parts, kinds.items(), strict=True):
        if k == "category":
            part[np.arange(N), codes[name].place] = 1
        elif k == "text":
            part[:] = hashed(frame[name], config.text_features)
        else:
            part[:, 0] = standardised(frame[name], first, where)
            if config.clip is not None:
                part.clip(-config.clip, config.clip, out=part)
            elif (far := far_off(part[:, 0], frame[name], where)) is not None:
                tell(far)
    return x


def kind(values: Series, config: Files, where: Where) -> str:
    """What a column is: number, category or text. Raises UserError."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype

    name = str(values.name)
    if name in config.categories:
        return "category"
    if name in config.text:
        return "text"
    if is_number(values) or is_bool_dtype(values):
        return "number"
    wrong = pd.to_numeric(values, errors="coerce").isna().to_numpy()
    how = f"benchmark.categories=[{name}] or benchmark.drop=[{name}]"
    if not wrong.any():  # whole numbers too long for a machine's, or of several files
        return "number"
    if wrong.mean() < 0.5:
        row = int(wrong.argmax())
        message = f"{where(row)}: {values.iloc[row]!r} in column {name} is no number"
        raise UserError(f"{message}, as most of the column's values are: correct it, or {how}")
    check(
        dates(values, where) is None,
        f"column {name} holds dates, such as {values.iloc[0]} in {where(0)}: cut by it "
        f"(benchmark.slice={name}), or {how}",
    )
    number = values.nunique()
    return "category" if number <= min(FEW, len(values) / 2) else "text"


def is_constant(values: Series) -> bool:
    """Whether a column has the same value in all rows."""
    return bool((values == values.iloc[0]).all())


def standardised(values: Series, first: NDArray[np.bool], where: Where) -> Floats:
    """Numbers, less the mean of the rows `first`, in units of their standard deviation, [N].

    Where these are all the same, so are all: 0. The deviation is that of the rows (divided by n).
    Raises UserError for infinite numbers.
    """
    x = values.to_numpy().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = 0.0 if is_constant(values[first]) else x[first].std()
        unit: Floats = ((x - x[first].mean()) / scale if scale else 0 * x).astype(np.float32)
    wrong = ~np.isfinite(unit) if np.isfinite(x).all() else ~np.isfinite(x)
    if wrong.any():
        row = int(wrong.argmax())
        message = f"{where(row)}: {values.iloc[row]} in column {values.name} is too large"
        raise UserError(f"{message} for float32: correct it, or benchmark.drop=[{values.name}]")
    return unit


def far_off(unit: Floats, values: Series, where: Where) -> str | None:
    """What is said of a standardised column [N] that has values beyond FAR, if it has."""
    row = int(np.abs(unit).argmax())
    if abs(unit[row]) <= FAR:
        return None
    return (
        f"column {values.name} has {values.iloc[row]} in {where(row)}, {abs(unit[row]):.0f} "
        "standard deviations from its mean in the first task: if that is a code for a missing "
        "value, correct it, or cut such values by benchmark.clip=20"
    )


def hashed(values: Series, size: int) -> Floats:
    """The groups of one to three characters of each text, hashed to `size` numbers, [N, size].

    scikit-learn's HashingVectorizer: lower case, signed counts, each row of length 1.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=size)
    counts = vectorizer.transform(values.map(str))
    return np.asarray(counts.astype(np.float32).toarray())
