"""Pictures of a comparison, PNG, SVG and PDF: one set per stream, legible without captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cl_runner.comparing.figures import settings, streams, tasks, tradeoffs
from cl_runner.comparing.figures.canvas import chosen, image, pyplot
from cl_runner.comparing.render import OVERALL
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import BOUNDS, Comparison, Question, StreamGroup, compare_runs
from cl_runner.errors import UserError, check
from cl_runner.results.files import write_bytes

SUFFIXES = ("png", "svg", "pdf")  # a PDF, for a paper, has no title: its caption says it


def draw_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all pictures that the runs have the files for; their paths."""
    with pyplot("--plots") as plt:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
        files = []
        for title, kind, figure in all_figures(comparison, plt):
            name = re.sub(r"[^A-Za-z0-9.=]+", "_", title).strip("_")
            for suffix in SUFFIXES:
                files.append(folder / f"{name}-{kind}.{suffix}")
                write_bytes(files[-1], image(figure, suffix, title=suffix != "pdf"))
    check(bool(files), "nothing to draw: no complete runs")
    return files


def of_folder(folder: Path) -> list[Path]:
    """Draw what the runs in a folder have the files for into its `pictures`. Raises UserError."""
    runs, _ = read_runs([str(folder)])
    return draw_pictures(compare_runs(runs, Question()), folder / "pictures")


def all_figures(comparison: Comparison, plt: Any) -> Iterator[tuple[str, str, Any]]:
    """Every figure: the stream that it shows, its kind, and itself; the next one closes it."""
    for stream in comparison.streams:
        for kind, figure in stream_figures(stream, plt):
            yield stream.title, kind, figure
            plt.close(figure)
    if comparison.overall is not None:
        for kind, drawn in (("ranks", streams.rank_diagram), ("profiles", streams.profiles)):
            figure = drawn(comparison, plt)
            yield OVERALL, kind, figure
            plt.close(figure)


def stream_figures(stream: StreamGroup, plt: Any) -> Iterator[tuple[str, Any]]:
    """The figures of one stream by their kind; those that need matrices only where they are."""
    shown = chosen(stream)
    matrices = [(g, found) for g in shown if (found := tasks.read_group(g, stream))]
    shapes = {R.shape for _, found in matrices for R in found}
    check(len(shapes) < 2, f"{stream.title}: the matrices differ in size; see cl-compare verify")
    if matrices:
        yield "matrices", tasks.heatmaps(stream, matrices, plt)
        yield "tasks", tasks.task_curves(stream, matrices, plt)
        yield "average_accuracy", tasks.average_curves(stream, matrices, plt)
    real = [g for g in shown if g.strategy not in BOUNDS]
    if courses := [(g, own) for g in real if (own := tasks.read_courses(g, stream))]:
        bounds = [(g, found) for g, found in matrices if g.strategy in BOUNDS]
        yield "steps", tasks.step_curves(stream, courses, bounds, plt)
    confusions = [(g, tasks.read_confusion(g, stream)) for g in shown]
    if confusions := [(g, found) for g, found in confusions if found.counts]:
        yield "confusion", tasks.confusion_matrices(stream, confusions[: tasks.CONFUSIONS], plt)
    for key, lines in settings.swept(stream).items():
        yield (
            f"sweep_{key.removeprefix('strategy.')}",
            settings.sweep_curve(stream, key, lines, plt),
        )
    # The bounds neither forget nor pay for the data that they keep.
    several = len(real) > 1  # one point compares nothing
    if several and any(g.values["forgetting"] for g in real):
        yield "forgetting", tradeoffs.bars(stream, real, plt)
        yield "stability_plasticity", tradeoffs.stability(stream, real, plt)
    if several and any(tradeoffs.memory(g) for g in real):
        yield "memory", tradeoffs.against_memory(stream, real, plt)
    if several and (measure := tradeoffs.computation(shown)) is not None:
        yield "compute", tradeoffs.against_compute(stream, shown, measure, plt)
    if overlaps := [(g, layers) for g in shown if (layers := settings.fisher_overlaps(g))]:
        yield "fisher_overlap", settings.overlap_curves(stream, overlaps, plt)
