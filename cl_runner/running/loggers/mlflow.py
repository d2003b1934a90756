"""MLflow: a database, or a server, with what a run measures and copies of its files."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cl_runner.config.loggers import SQLITE, MLflow
from cl_runner.errors import check
from cl_runner.machine.locks import one_at_a_time
from cl_runner.results.files import check_writable
from cl_runner.running.loggers.library import About, Values

T = TypeVar("T")
STATES = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MOST = 100  # parameters or metrics of one request: MLflow's own limit of the former
LONGEST = 6000  # characters of a parameter's value
HEADER = b"SQLite format 3\0"
# Unless the user's environment says otherwise: nothing is told about the use of the library, and a
# server that does not answer is not waited for many minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class Handle(NamedTuple):
    """A run under way."""

    client: Any
    run: str


def check_place(settings: MLflow, out: Path) -> None:
    """See Library."""
    file = settings.file(out)
    if file is None:
        return
    key = f"logger.mlflow.tracking_uri={settings.tracking_uri or SQLITE + str(file)}"
    check_writable(key, file.parent)
    if file.exists():
        check(file.is_file() and os.access(file, os.W_OK), f"{key}: {file} cannot be written")
        with file.open("rb") as there:
            check(there.read(16) in (b"", HEADER), f"{key}: {file} is no database of SQLite")


def begin(settings: MLflow, about: About) -> tuple[Handle, str]:
    """See Library. A run that the store does not know begins anew."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    file = settings.file(about.out)
    if file is None:
        client = MlflowClient(settings.tracking_uri)
        experiment = of_name(client, settings.experiment, None)
    else:
        with one_at_a_time(file):  # who comes first makes the tables
            client = MlflowClient(f"{SQLITE}{file}")
            experiment = of_name(client, settings.experiment, file.parent / "mlartifacts")
    if about.known is not None:
        try:
            client.update_run(about.known, status="RUNNING")
            return Handle(client, about.known), about.known
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    run = client.create_run(experiment, run_name=about.name, tags={"group": about.group})
    handle = Handle(client, run.info.run_id)
    config(handle, about.config)
    return handle, handle.run


def of_name(client: Any, name: str, place: Path | None) -> str:
    """The id of an experiment, which is made where it is not there. place: of its files."""
    if (there := client.get_experiment_by_name(name)) is not None:
        return str(there.experiment_id)
    return str(client.create_experiment(name, None if place is None else place.as_uri()))


def config(handle: Handle, values: Mapping[str, Any]) -> None:
    """Leave the configuration as the run's parameters."""
    from mlflow.entities import Param

    params = (Param(allowed(k), written(v)[:LONGEST]) for k, v in values.items())
    for part in parts(params):
        handle.client.log_batch(handle.run, params=part)


def measured(handle: Handle, _axis: str, points: Sequence[tuple[int, Values]]) -> None:
    """See Library."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = (
        Metric(allowed(name), value, now, step)
        for step, values in points
        for name, value in values.items()
    )
    for part in parts(metrics):
        handle.client.log_batch(handle.run, metrics=part)


def kept(handle: Handle, out: Path, files: Sequence[Path]) -> None:
    """See Library."""
    for path in files:
        below = path.parent.relative_to(out).as_posix()
        handle.client.log_artifact(handle.run, str(path), None if below == "." else below)


def ended(handle: Handle, state: str) -> None:
    """See Library."""
    handle.client.set_tag(handle.run, "status", state)
    handle.client.set_terminated(handle.run, STATES[state])


def allowed(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def written(value: Any) -> str:
    """A value as text; a list or a dictionary as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def parts(things: Iterator[T]) -> Iterator[list[T]]:
    """As many at a time as a request may hold."""
    while part := list(islice(things, MOST)):
        yield part
