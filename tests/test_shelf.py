"""What scripts/shelf.py reads of a run, and how it tells what a strategy keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import shelf

from cl_runner.results.files import read_rows
from cl_runner.running.loop import run

TOY = ("benchmark=split_digits", "model.hidden_sizes=[8]", "training.iterations=1", "verbose=false")


@pytest.mark.parametrize(
    ("strategy", "kept"), [("er", "samples"), ("ncm", "neither"), ("from_scratch", "all data")]
)
def test_what_is_shown_of_a_run(configure, tmp_path: Path, strategy: str, kept: str) -> None:
    run(configure(*TOY, f"strategy={strategy}", "benchmark.num_tasks=2"), tmp_path / strategy)
    table = shelf.table_of([strategy], tmp_path)
    (own,) = table.itertuples()
    assert shelf.kind(own) == kept
    (summary,) = read_rows(tmp_path / strategy / "summary.csv")
    parts = ("parameter_bytes", "buffer_bytes", "memory_bytes")
    assert own.kept_bytes == sum(int(summary[name] or 0) for name in parts) > 0
    assert own.flops == int(summary["flops"])


def test_boxes_meet_where_they_share_a_point() -> None:
    assert shelf.meets((0, 0, 2, 2), (1, 1, 3, 3)) and not shelf.meets((0, 0, 2, 2), (2, 0, 3, 2))


def test_a_preset_of_another_form_has_a_name_of_its_own() -> None:
    names = {"er": "ER", "ewc_kron": "Kronecker EWC", "diffusion": "diffusion replay"}
    assert {preset: shelf.label(preset) for preset in names} == names
