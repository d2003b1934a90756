"""scripts/reproduce.py: which runs a published cell is held against."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import reproduce

from cl_runner.cli import choices

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "results"


@pytest.mark.parametrize("table", ["published", "reproduction", "orderings"])
def test_the_tables_name_experiments_that_there_are(table: str) -> None:
    names = set(pd.read_csv(RESULTS / f"{table}.csv").experiment)
    assert names and names <= set(choices.options("experiment"))


def test_a_reading_is_held_against_the_run_that_it_is_of() -> None:
    whole, reading = "buzzega2020/naive_split_class", "buzzega2020/naive_split_task"
    assert reproduce.same_runs(reading) == [reading, whole]
    assert reproduce.same_runs(whole) == [whole]
    other = "hsu2018/naive_split_class"
    runs = pd.DataFrame(
        {
            "experiment": [whole, whole, other],
            "seed": [0, 1, 0],
            "ACC": [0.1, 0.3, 0.7],
            "task_ACC": [0.8, 0.9, 0.7],
            "seconds": [1.0, 1.0, 1.0],
        }
    )
    table = reproduce.compare(pd.read_csv(RESULTS / "published.csv"), runs)
    means = dict(zip(table.experiment, table.our_mean, strict=True))
    assert means == pytest.approx({whole: 0.2, reading: 0.85, other: 0.7})


def test_without_names_only_what_was_run_before_is_run_again() -> None:
    """Cells that take a GPU are not begun by accident on a CPU."""
    published = pd.read_csv(RESULTS / "published.csv")
    old = pd.read_csv(RESULTS / "reproduction.csv")
    assert reproduce.wanted([], old) == list(old.experiment)
    waiting = set(published.experiment) - set(old.experiment)
    assert "chaudhry2019/agem_cifar100" in waiting
    assert reproduce.wanted(["chaudhry2019/agem_cifar100"], old) == ["chaudhry2019/agem_cifar100"]


def test_the_page_says_how_to_run_each_cell_that_waits() -> None:
    published = pd.read_csv(RESULTS / "published.csv")
    old = pd.read_csv(RESULTS / "reproduction.csv")
    page = reproduce.PAGE.read_text(encoding="utf-8")
    _, _, section = page.partition("## Waiting for a GPU")
    for name in set(published.experiment) - set(old.experiment):
        run = reproduce.same_runs(name)[-1]  # a reading is that of a run
        paper, _, own = run.partition("/")
        assert f"`{run}`" in section or (f"{paper}/" in section and own in section), name


def test_rows_of_named_experiments_take_the_place_of_theirs() -> None:
    published = pd.read_csv(RESULTS / "published.csv")
    old = pd.read_csv(RESULTS / "reproduction.csv")
    first, second, *_ = published.experiment
    table = old[old.experiment == second].assign(our_mean=0.5)
    new = reproduce.merged(table, old[old.experiment != first], published)
    assert list(new.experiment) == [e for e in published.experiment if e in set(old.experiment)][1:]
    changed = new.set_index("experiment").our_mean != old.set_index("experiment").our_mean[1:]
    assert list(changed[changed].index) == [second]
    assert list(new.columns) == list(old.columns)


def test_a_sweep_of_old_names_is_read_as_of_the_new_ones(tmp_path: Path) -> None:
    out = tmp_path / "job"
    out.mkdir()
    (out / "overrides.yaml").write_text("- +experiment=hsu-ewc-til\n- seed=0\n", encoding="utf-8")
    (out / "summary.csv").write_text("status,seed,ACC\ncomplete,0,0.5\n", encoding="utf-8")
    assert list(reproduce.read([tmp_path]).experiment) == ["hsu2018/ewc_split_task"]
