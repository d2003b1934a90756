"""Pictures of a comparison, PNG, SVG and PDF: one set per stream, legible without captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cl_runner.comparing.figures import settings, streams, tasks, tradeoffs
from cl_runner.comparing.figures.canvas import Files, chosen, image, styled
from cl_runner.comparing.render import OVERALL
from cl_runner.comparing.runs import read_runs
from cl_runner.comparing.table import BOUNDS, Comparison, Question, StreamGroup, compare_runs
from cl_runner.errors import UserError, check
from cl_runner.results.files import write_bytes

SUFFIXES = ("png", "svg", "pdf")  # a PDF, for a paper, has no title: its caption says it
Drawing = Callable[[Any], Any]  # from pyplot, or what stands for it, to a figure


def draw_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all pictures that the runs have the files for; their paths."""
    with styled("--plots"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
        files = []
        for title, kind, draw in drawings(comparison):
            figure = draw(Files)
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


def drawings(comparison: Comparison) -> Iterator[tuple[str, str, Drawing]]:
    """Every picture: the stream that it shows, its kind, and what draws it."""
    for stream in comparison.streams:
        for kind, draw in stream_drawings(stream):
            yield stream.title, kind, draw
    if comparison.overall is not None:
        yield OVERALL, "ranks", partial(streams.rank_diagram, comparison)
        yield OVERALL, "profiles", partial(streams.profiles, comparison)


def stream_drawings(stream: StreamGroup) -> Iterator[tuple[str, Drawing]]:
    """The pictures of one stream by their kind; those that need matrices only where they are."""
    shown = chosen(stream)
    matrices = [(g, found) for g in shown if (found := tasks.read_group(g, stream))]
    shapes = {R.shape for _, found in matrices for R in found}
    check(len(shapes) < 2, f"{stream.title}: the matrices differ in size; see cl-compare verify")
    if matrices:
        yield "matrices", partial(tasks.heatmaps, stream, matrices)
        yield "tasks", partial(tasks.task_curves, stream, matrices)
        yield "average_accuracy", partial(tasks.average_curves, stream, matrices)
    real = [g for g in shown if g.strategy not in BOUNDS]
    if courses := [(g, own) for g in real if (own := tasks.read_courses(g, stream))]:
        bounds = [(g, found) for g, found in matrices if g.strategy in BOUNDS]
        yield "steps", partial(tasks.step_curves, stream, courses, bounds)
    read = [(g, tasks.read_confusion(g, stream)) for g in shown]
    if confusions := [(g, found) for g, found in read if found.counts]:
        yield "confusion", partial(tasks.confusion_matrices, stream, confusions[: tasks.CONFUSIONS])
    for key, lines in settings.swept(stream).items():
        name = f"sweep_{key.removeprefix('strategy.')}"
        yield name, partial(settings.sweep_curve, stream, key, lines)
    # The bounds neither forget nor pay for the data that they keep.
    several = len(real) > 1  # one point compares nothing
    if several and any(g.values["forgetting"] for g in real):
        yield "forgetting", partial(tradeoffs.bars, stream, real)
        yield "stability_plasticity", partial(tradeoffs.stability, stream, real)
    if several and any(tradeoffs.memory(g) for g in real):
        yield "memory", partial(tradeoffs.against_memory, stream, real)
    if several and (measure := tradeoffs.computation(shown)) is not None:
        yield "compute", partial(tradeoffs.against_compute, stream, shown, measure)
    if overlaps := [(g, layers) for g in shown if (layers := settings.fisher_overlaps(g))]:
        yield "fisher_overlap", partial(settings.overlap_curves, stream, overlaps)
