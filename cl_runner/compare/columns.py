"""Which metrics and costs the tables show: those asked for with `--columns`, or a sensible choice.

The first are the most important: where a table is too wide, columns leave from the right.
"""

from __future__ import annotations

from difflib import get_close_matches

from cl_runner.compare.runs import CALIBRATION, COSTS, is_metric
from cl_runner.compare.table import Comparison, column
from cl_runner.errors import UserError, check

POSITION = "position"  # (mean - naive) / (joint - naive): of a group, not of a run
# Without BWT, which is forgetting with the other sign for all that is forgotten from the diagonal
# on, and without worst_case_ACC, which is min_ACC and the last task's accuracy in one number.
QUALITY = (
    *("ACC", "forgetting", POSITION, "learning_accuracy", "intransigence"),
    *("average_anytime_accuracy", "min_ACC", *CALIBRATION, "FWT"),
)
PRICE = (
    *("flops", "memory_bytes", "buffer_bytes", "seconds", "peak_memory_bytes"),
    *("parameters", "samples", "evaluation_flops"),
)
PAPER = ("ACC", "forgetting", "flops", "memory_bytes")  # what fits into a page's width


def choose(text: str | None, comparison: Comparison) -> list[str] | None:
    """The names that `--columns` lists, their values filled in; None where it is not given.

    Raises UserError for a name that no run has.
    """
    if text is None:
        return None
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    check(bool(names), "--columns: write metrics or costs with commas between, as ACC,flops")
    groups = [(stream, g) for stream in comparison.streams for g in stream.groups]
    there = {key for _, g in groups for run in g.runs.values() for key in run.row}
    known = sorted({n for n in there if is_metric(n) or n in COSTS} | {"intransigence", POSITION})
    for name in names:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        if name not in known:
            raise UserError(f"--columns {name}: no run has it; {hint}")
    for stream, g in groups:
        for name in (n for n in names if n not in g.values):
            numbers = {s: run.number(column(name, stream)) for s, run in g.runs.items()}
            g.values[name] = {s: v for s, v in numbers.items() if v is not None}
    return names
