"""What scripts/endless.py says of its marks."""

from __future__ import annotations

import sys

import endless
import pytest
from endless import Block, Mark


def test_blocks_are_medians_per_task_and_leave_out_the_first_tasks():
    marks = [Mark(10.0 * i, 2.0 * i, 100 + i, 7 * i) for i in range(40)]
    marks[15:] = [m._replace(clock=m.clock + 500) for m in marks[15:]]  # a pause is no median
    assert endless.blocks(marks) == [
        Block(11, 20, 10, 2, 119, 7),
        Block(21, 30, 10, 2, 129, 7),
        Block(31, 40, 10, 2, 139, 7),
    ]
    assert [b[:2] for b in endless.blocks(marks[:33])] == [(11, 20), (21, 33)]
    assert "31-40" in endless.table(endless.blocks(marks)).splitlines()[-1]


def test_several_runs_are_medians_block_by_block():
    one, two, three = (
        [Block(11, 20, 10.0 * k, 2, 100, 7), Block(21, 30, 10.0 / k, 2 * k, 100, 7)]
        for k in (1, 2, 3)
    )
    assert endless.typical([one]) == one
    assert endless.typical([one, three, two]) == [
        Block(11, 20, 20, 2, 100, 7),
        Block(21, 30, 5, 4, 100, 7),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_run_leaves_a_mark_after_each_task(data_root, tmp_path):
    few = ("benchmark.num_tasks=4", "benchmark.train_samples=40", f"data.root={data_root}")
    marks = endless.measured(tmp_path / "run", few)
    assert len(marks) == 4
    assert marks == sorted(marks, key=lambda mark: mark.clock)
    assert marks[0].memory > 0 and marks[-1].folder > marks[0].folder
