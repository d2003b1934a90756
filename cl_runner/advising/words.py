"""Advice as text: a table within 80 columns, a verdict, and what is not known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from textwrap import fill

from cl_runner.advising.advice import Advice, Line
from cl_runner.advising.facts import KEEPS
from cl_runner.advising.tables import Row

WIDTH = 80
NEAR = 0.02  # of ACC: as good as the first
HEAD = (
    f"{'strategy':<10} {'ACC':>4}  {'80 %':<12} {'gain':>5} {'forgets':>7}  "
    f"{'keeps':<10} {'bytes':>7} {'FLOPs':>6} {'told':<4} {'on':>3}"
)
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
CHANGING = {
    "classes": "new classes",
    "inputs": "other inputs",
    "labels": "other labels",
    "drift": "drifting data",
}


def text(advice: Advice, changed: Sequence[str] = ()) -> str:
    """All of it. changed: the keys that differ from the defaults with which the table was made."""
    parts = [
        paragraph(about(advice.stream)),
        paragraph(resting(advice)),
        "",
        HEAD,
        *(row(line, advice) for line in advice.lines),
        *(row(line, advice) for line in advice.bounds),
        "",
        paragraph(verdict(advice)),
        *(paragraph(said) for said in (omitted(advice), unknown(advice, changed)) if said),
        paragraph(legend()),
    ]
    return "\n".join(parts)


def paragraph(words: str) -> str:
    """Within the width."""
    return fill(words, WIDTH, break_on_hyphens=False, break_long_words=False)


def about(stream: Row) -> str:
    """A stream in a line."""
    size = f"{stream['samples_per_task']:,.0f} training samples each"
    classes = f"{stream['classes_per_task']:g} of {stream['classes']} classes a task"
    return (
        f"scenario={stream['scenario']}, {stream['kind']}: {stream['num_tasks']} tasks, {size}, "
        f"{classes}, {stream['input_size']} numbers an input; {CHANGING[stream['change']]} in each."
    )


def resting(advice: Advice) -> str:
    """What the numbers rest on."""
    if advice.measured is not None:
        return f"The table has this stream, {advice.measured['stream']}: measured, not predicted."
    near = ", ".join(f"{s['stream']} ({d:.1f})" for s, d in advice.near)
    if not advice.unlike:
        return f"The nearest streams of the table, and how far they are: {near}."
    far = f"{advice.near[0][1]:.2f}" if advice.near else "no stream has this scenario"
    return (
        f"Nothing like this stream is in the table: the nearest is {far} away, and no prediction "
        f"was tested beyond {advice.farthest:.2f}. So no accuracies; the order is that of the mean "
        "rank on all streams of the scenario."
    )


def row(line: Line, advice: Advice) -> str:
    """A line of the table."""
    ends = "" if line.low is None else f"{line.low:.2f} .. {line.high:.2f}"
    naive = advice.asked.naive_bytes
    kept = times(line.kept) if naive is None or line.kept is None else short(line.kept * naive)
    return (
        f"{line.strategy:<10} {number(line.acc):>4}  {ends:<12} {number(line.gain):>5} "
        f"{number(line.forgetting):>7}  {KEEPS[line.strategy]:<10} {kept:>7} "
        f"{times(line.flops):>6} {'yes' if line.borders else 'no':<4} {line.streams:>3}"
    ).rstrip()


def number(value: float | None) -> str:
    """With two digits; "" if it is not known."""
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}"


def times(value: float | None) -> str:
    """As many times naive's."""
    if value is None:
        return ""
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def short(value: float) -> str:
    """Bytes with a prefix."""
    size, prefix = next(((s, p) for s, p in PREFIXES if value >= s), (1.0, ""))
    return f"{value / size:.3g}{prefix}B"


def verdict(advice: Advice) -> str:
    """What to take, and how much that is worth."""
    if not advice.lines:
        return "No strategy of the table is left."
    best = advice.lines[0]
    if advice.unlike:
        return f"On other streams {best.strategy} comes first; whether it does here is not known."
    others = [n.strategy for n in advice.lines[1:] if (n.acc or 0) >= (best.acc or 0) - NEAR]
    said = f"Take {best.strategy}: ACC {number(best.acc)}"
    said += "" if best.low is None else f" ({number(best.low)} to {number(best.high)})"
    said += f"; {', '.join(others)} within {NEAR} of it." if others else "."
    if advice.lost:
        said += (
            f" On {len(advice.lost)} streams that were left out of the table the first of such an "
            f"order had {mean(advice.lost):.2f} less than the best on average, "
            f"{max(advice.lost):.2f} at most."
        )
    return said


def omitted(advice: Advice) -> str:
    """What was asked to be left out."""
    said = [f"Left out: {', '.join(names)} {why}." for why, names in advice.left.items()]
    if advice.asked.privacy:
        kinds = {KEEPS[line.strategy] for line in advice.lines}
        if "generator" in kinds:
            said.append("A generator stores no sample, but draws what looks like those it saw.")
        if "statistics" in kinds:
            said.append("Statistics are means and covariances of classes, no samples.")
    return " ".join(said)


def unknown(advice: Advice, changed: Sequence[str]) -> str:
    """What the table does not tell."""
    return "Not known: " + "; ".join(gaps(advice, changed)) + "."


def gaps(advice: Advice, changed: Sequence[str]) -> Iterator[str]:
    """One thing after another."""
    yield "what tuning would change, for all ran with their defaults (MLP 256-256, SGD 0.1)"
    if advice.shares == "nothing":
        yield "how hard your data are, which no stream of the table has"
    if changed:
        yield f"what your settings change ({', '.join(changed)})"
    broken = [f"{n.strategy} ({n.diverged} of {n.streams})" for n in advice.lines if n.diverged]
    if broken:
        yield f"the accuracy where training diverges, as on similar streams for {', '.join(broken)}"
    asked = advice.asked
    if asked.boundaries != "known":
        yield "what borders that are not told cost those that are left: all were told them"
    if asked.naive_bytes is None and (asked.most_bytes or asked.most_flops):
        yield "bytes and FLOPs of a network that is no MLP: the budget has left nothing out"


def legend() -> str:
    """What the columns are."""
    return (
        "gain: 0 is naive, 1 joint. bytes are kept between tasks, network and all; FLOPs are times "
        "naive's. told: must be told where tasks begin. on: streams that a line rests on. The last "
        "lines, with all data, are bounds."
    )
