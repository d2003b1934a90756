"""`cl.load_runs`: runs as tables, one or many, read from their folders whenever they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from cl_runner.api import frames, html
from cl_runner.api.overrides import Value, dotted, plainly
from cl_runner.comparing import runs as found
from cl_runner.comparing.table import differing_keys
from cl_runner.comparing.verify import read_matrices
from cl_runner.errors import check
from cl_runner.machine.console import near
from cl_runner.machine.reading import yaml_values
from cl_runner.results import status
from cl_runner.results.columns import is_metric, shown
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import matrix_name, read_titles
from cl_runner.results.names import ACCURACY_TABLE, CONFIG, COST_TABLE, STATUS
from cl_runner.results.titles import columns

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

OF_A_RUN = ("benchmark", "scenario", "strategy", "seed")  # columns of every tidy table
UNTRAINED = "untrained"  # the row of a matrix before the first task
SHOWN = 20  # runs in what a notebook shows


class Run:
    """One run: what it measured, what it cost, how it was configured, and its network.

    Everything is read from its folder when it is asked for, so that it is what the files say.
    """

    def __init__(self, of: found.Run) -> None:
        self._found = of

    @property
    def folder(self) -> Path:
        """Where its files are, if they are still there."""
        return self._found.folder

    @property
    def status(self) -> str:
        """One of complete, running, interrupted, failed, killed."""
        there = (self.folder / STATUS).is_file()
        return status.state(self.folder) if there else self._found.row.get("status", "")

    @property
    def reason(self) -> str:
        """Why it failed, in one line; "" if it did not."""
        return status.one_line(str(status.read(self.folder).get("reason", "")))

    @property
    def name(self) -> str:
        """Strategy and seed, as far as they are known."""
        return self._found.name

    @property
    def summary(self) -> pd.Series:
        """The row of summary.csv, what is empty left out: metrics, costs, settings, versions."""
        import pandas as pd

        row = frames.table([self._found.row])
        return pd.Series({name: row[name].iloc[0] for name in row}, name=self.name, dtype=object)

    @property
    def metrics(self) -> pd.Series:
        """The metrics that were measured, as fractions: ACC, forgetting and others."""
        known = self.summary
        return known[[name for name in known.index if is_metric(name)]].astype(float)

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration, nested, as config.yaml has it."""
        return cast("dict[str, Any]", yaml_values(self._file(CONFIG)))

    @property
    def matrix(self) -> pd.DataFrame:
        """The accuracy matrix: rows are the untrained network and after each task, columns tasks.

        Fractions, as the run's own scenario reads them; NaN where nothing was measured.
        """
        own = ("test", self._found.row.get("scenario", ""))
        matrices = self.matrices
        if own not in matrices:
            self._file(matrix_name(*own, own[1]))  # raises UserError
        return matrices[own]

    @property
    def matrices(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Every accuracy matrix by (split, reading), such as ("test", "class")."""
        import pandas as pd

        scenario = self._found.row.get("scenario", "")
        made = {}
        for (split, reading), R in read_matrices(self.folder, scenario).items():
            names = read_titles(self.folder / matrix_name(split, reading, scenario))
            tasks = columns(names) if names else [f"task {j + 1}" for j in range(R.shape[1])]
            made[split, reading] = pd.DataFrame(
                R,
                index=pd.Index([UNTRAINED, *tasks], name="after"),
                columns=pd.Index(tasks, name="task"),
            )
        return made

    @property
    def accuracies(self) -> pd.DataFrame:
        """Every accuracy in a row of its own: after_task, eval_task, reading, split, accuracy."""
        return frames.table(read_rows(self._file(ACCURACY_TABLE)))

    @property
    def curves(self) -> pd.DataFrame | None:
        """The rows of `accuracies` with those from within the tasks (`step`); None without."""
        rows = self.accuracies
        return rows if "step" in rows else None

    @property
    def costs(self) -> pd.DataFrame:
        """What each task cost: time, steps, samples, FLOPs, memory; 0 is the untrained network."""
        return frames.table(read_rows(self._file(COST_TABLE))).set_index("after_task")

    @property
    def model(self) -> nn.Module:
        """The trained network, as `cl.load_model` gives it. Raises UserError if it was not kept."""
        from cl_runner.api.models import load_model

        return load_model(self)

    def _file(self, name: str) -> Path:
        """A file of the folder. Raises UserError where it is not there."""
        path = self.folder / name
        there = path.is_file()
        check(there, f"{self.name} has no {name} in {self.folder}: its status is {self.status}")
        return path

    def __repr__(self) -> str:
        return f"<Run {self.name}: {self._in_words()}, {near(self.folder)}>"

    def _in_words(self) -> str:
        """Status and the metrics that matter most."""
        known = self._found.row
        values = [
            f"{name} {float(known[name]):.3f}"
            for name in shown("metric", only_brief=True)
            if known.get(name)
        ]
        return " · ".join([self.status, *values])

    def _repr_html_(self) -> str:
        about = f"{self.name} · {self._in_words()}"
        about += f" · {self.reason}" if self.reason else ""
        scenario = self._found.row.get("scenario", "")
        own = self.folder / matrix_name("test", scenario, scenario)
        below = html.shaded(self.matrix) if own.is_file() else ""
        return html.block(about, below, str(near(self.folder)))


class Runs(Sequence[Run]):
    """Several runs: a sequence, and tables of all of them."""

    def __init__(self, of: Iterable[Run]) -> None:
        self._runs = list(of)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    @property
    def summaries(self) -> pd.DataFrame:
        """A row for each run, numbered as here: status, metrics, costs, settings, folder.

        Lists are lists, columns in which no run has anything are left out.
        """
        rows = [{k: v for k, v in row.items() if k != "run"} for row in self._rows()]
        made = frames.table(rows).rename_axis("run")
        return made.assign(folder=[run.folder for run in self])

    @property
    def accuracies(self) -> pd.DataFrame:
        """Every accuracy of every run in a row of its own, with the run and what tells it apart."""
        return self._tidy(ACCURACY_TABLE)

    @property
    def costs(self) -> pd.DataFrame:
        """What each task of each run cost, likewise."""
        return self._tidy(COST_TABLE)

    @property
    def failed(self) -> Runs:
        """Those that failed, or were killed; `reason` of each says why."""
        return Runs(run for run in self if run.status in {"failed", "killed"})

    def where(self, **settings: Value) -> Runs:
        """The runs with these settings; a list of values means any of them.

        `runs.where(strategy=["ewc", "er"], strategy__buffer_size=200, seed=0)`. Raises UserError
        for a column that no run has.
        """
        left = self._runs
        known = sorted({name for row in self._rows() for name in row})
        for key, value in settings.items():
            name = dotted(key)
            near_ones = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near_ones[0]}?" if near_ones else ""
            check(name in known, f"no run has a column {name}{hint}")
            wanted = cells(value)
            left = [run for run in left if run._found.row.get(name, "") in wanted]
        return Runs(left)

    def _rows(self) -> list[dict[str, str]]:
        return [run._found.row for run in self]

    def _tidy(self, name: str) -> pd.DataFrame:
        """A file of every run that has it, one below the other."""
        differing = differing_keys([run._found.configuration for run in self])
        rows: list[Mapping[str, str]] = []
        for number, run in enumerate(self):
            if not (run.folder / name).is_file():
                continue
            own = {key: run._found.row.get(key, "") for key in (*OF_A_RUN, *differing)}
            rows += [{"number": str(number), **own, **row} for row in read_rows(run.folder / name)]
        made = frames.table(rows)
        return made.rename(columns={"number": "run"})

    def __repr__(self) -> str:
        lines = [repr(run) for run in self._runs[:SHOWN]]
        more = [f"and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return "\n".join([f"<Runs: {self._in_words()}>", *lines, *more])

    def _in_words(self) -> str:
        states = [run.status for run in self]
        counts = {
            state: states.count(state) for state in sorted(set(states)) if state != "complete"
        }
        return ", ".join([f"{len(self)} runs", *(f"{n} {state}" for state, n in counts.items())])

    def _repr_html_(self) -> str:
        first = Runs(self._runs[:SHOWN])
        differing = differing_keys([run._found.configuration for run in first])
        names = (*OF_A_RUN, *differing, *shown("metric", only_brief=True), "status")
        here = [name for name in names if any(row.get(name) for row in first._rows())]
        rows = [[html.short(row.get(name, "")) for name in here] for row in first._rows()]
        more = f"and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return html.block(self._in_words(), html.plain(here, rows), more)


def load_runs(paths: str | Path | Iterable[str | Path]) -> Runs:
    """The runs in and below folders: of single runs, of sweeps, of anything around them.

    A summary.csv, or a pattern such as `"runs/*/seed=0"`, is taken as well. Raises UserError where
    there is none, and for a file that is damaged.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    check(bool(several), "there is no path to load runs from")
    read, _ = found.read_runs([str(Path(path).expanduser()) for path in several], once=False)
    return Runs(map(Run, read))


def run_in(folder: Path) -> Run:
    """The run in a folder."""
    (one,) = load_runs(folder)
    return one


def cells(value: Value) -> set[str]:
    """How files may write a value, or one of several."""
    plain = plainly(value)
    if not isinstance(plain, list):
        return {cell(plain)}
    return {json.dumps(plain), *(cell(plainly(one)) for one in plain)}


def cell(value: Any) -> str:
    """A value as a cell of a summary that was read."""
    if value is None:
        return ""
    if isinstance(value, list):
        return json.dumps(value)
    return found.shortest(str(value))
