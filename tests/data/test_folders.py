"""Your own stream of images: layout, held-out share, classes by name, resizing, mistakes."""

from __future__ import annotations

import base64
import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cl_runner.config.benchmarks import Folders
from cl_runner.core import Stream
from cl_runner.data import images, sources
from cl_runner.data.benchmarks import build_stream
from cl_runner.data.datasets import Arrays
from cl_runner.errors import UserError
from cl_runner.running.messages import late_and_missing
from cl_runner.testing import CHECKS, OF_ONE_GRAPH, Case

COMMON = {"name": "folders", "kind": "folders", "dataset": "folders"}
DEFAULTS = {"default_scenario": "domain", "default_epochs": 1, "seed": 0}
LATE = {  # bus is always there, scooter comes in March, bike is gone in April
    "2021-01": {"bike": 10, "bus": 5},
    "2021-02": {"bike": 10, "bus": 5},
    "2021-03": {"bike": 10, "bus": 5, "scooter": 2},
    "2021-04": {"bus": 5, "scooter": 4},
}


def write(path: Path, value: int, size: tuple[int, int] = (4, 3), mode: str = "L") -> None:
    """An image (width, height) of one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def lay_out(root: Path, tasks: Mapping[str, Mapping[str, int]]) -> Path:
    """root/<task>/<class>/<i>.png, so many of each; every image has a value of its own."""
    value = 0
    for task, classes in tasks.items():
        for name, number in classes.items():
            for i in range(number):
                write(root / task / name / f"{i}.png", value := value + 1)
    return root


def read(path: Path, **keys: Any) -> Arrays:
    config = Folders(**{**COMMON, **DEFAULTS, **keys})
    return sources.read(config, path.parent / "root", path, pytest.fail)


def refused(path: Path, **keys: Any) -> str:
    """The message of the UserError; always one line."""
    with pytest.raises(UserError) as caught:
        stream_of(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stream_of(path: Path, scenario: str = "domain", **keys: Any) -> Stream:
    config = Folders(**{**COMMON, **DEFAULTS, **keys})
    data = sources.read(config, path.parent / "root", path, pytest.fail)
    return build_stream(config, scenario, data, torch.device("cpu"), augmented=False)


def values(x: torch.Tensor) -> list[int]:
    """The grey value of each image."""
    assert (x == x[:, :1, :1, :1]).all()
    return x[:, 0, 0, 0].tolist()


# Layout and order.


def test_tasks_and_classes_stand_in_natural_order(tmp_path: Path) -> None:
    names = ("month_10", "month_2", "month_1", "2021-11", "2021-02")
    tasks = {task: {"c10": 2, "c9": 2} for task in names}
    data = read(lay_out(tmp_path / "in", tasks))
    assert data.slices == ("2021-02", "2021-11", "month_1", "month_2", "month_10")
    assert data.classes == ("c9", "c10")
    assert [task.name for task in stream_of(tmp_path / "in")] == list(data.slices)


def test_a_task_may_have_train_and_test_and_another_none(tmp_path: Path) -> None:
    lay_out(tmp_path / "in" / "b", {"train": {"x": 3, "y": 1}, "test": {"x": 2}})
    lay_out(tmp_path / "in", {"a": {"x": 5}})
    data = read(tmp_path / "in")
    assert data.slices == ("a", "b")
    assert data.slice_train is not None
    assert data.slice_test is not None
    own = data.slice_train == 1
    assert values(data.x_train[own]) == [1, 2, 3, 4]  # all of them
    assert data.y_train[own].tolist() == [0, 0, 0, 1]
    assert values(data.x_test[data.slice_test == 1]) == [5, 6]
    assert (data.slice_train == 0).sum() == 4
    assert (data.slice_test == 0).sum() == 1  # of five


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = read(lay_out(tmp_path / "in", {"a": {"train": 5, "tram": 5}}))
    assert data.classes == ("train", "tram")


def test_every_kind_of_image_is_read_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.jpeg", "d.bmp", "e.webp", "F.PNG", ".hidden.png"):
        write(tmp_path / "in/t/c" / name, 100, mode="RGB" if "webp" in name else "L")
    (tmp_path / "in/t/c/readme.txt").touch()
    (tmp_path / "in/t/.thumbnails").mkdir()
    (tmp_path / "in/.git").mkdir()
    data = read(tmp_path / "in")
    x = torch.cat([data.x_train, data.x_test])
    assert x.shape == (6, 3, 3, 4)  # one of them is in colour, and so are all
    assert (x.int() - 100).abs().max() <= 2  # JPEG and WEBP are not exact


def test_images_of_one_channel_stay_grey(tmp_path: Path) -> None:
    assert read(lay_out(tmp_path / "in", LATE)).x_train.shape[1:] == (1, 3, 4)


# What is held out.


@pytest.mark.parametrize(
    ("number", "fraction", "held_out"),
    [(1, 0.5, 0), (2, 0.2, 1), (2, 0.99, 1), (3, 0.2, 1), (10, 0.2, 2), (10, 0.25, 2), (9, 0.9, 8)],
)
def test_a_share_of_each_class_is_held_out(
    tmp_path: Path, number: int, fraction: float, held_out: int
) -> None:
    tasks = {"a": {"x": number, "y": 4}, "b": {"x": number, "y": 4}}
    data = read(lay_out(tmp_path / "in", tasks), test_fraction=fraction)
    assert data.slice_test is not None
    for t in range(2):
        assert ((data.slice_test == t) & (data.y_test == 0)).sum() == held_out
    both = values(data.x_train) + values(data.x_test)
    assert sorted(both) == list(range(1, 2 * (number + 4) + 1))  # each once


def test_no_seed_changes_what_is_held_out_and_a_new_image_moves_few(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", {"a": {"x": 50}})
    first = set(values(read(path).x_test))
    assert first == set(values(read(path, seed=1).x_test))
    assert first != set(range(41, 51))  # not simply the last ones
    write(path / "a/x/new.png", 200)
    assert len(first - set(values(read(path).x_test))) <= 1


# Classes by name.


def test_one_class_has_one_output_by_its_name_in_domain_and_class(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", LATE)
    for scenario in ("domain", "class"):
        stream = stream_of(path, scenario)
        assert stream.label.tolist() == [[0, 1, -1], [0, 1, -1], [0, 1, 2], [-1, 1, 2]]
        assert stream.num_classes == 3
        assert [task.classes for task in stream] == [(0, 1), (0, 1), (0, 1, 2), (1, 2)]
        assert stream[3].names == ("bus", "scooter")


def test_each_task_has_outputs_of_its_own_in_task(tmp_path: Path) -> None:
    stream = stream_of(lay_out(tmp_path / "in", LATE), "task")
    assert stream.label.tolist() == [[0, 1, -1], [2, 3, -1], [4, 5, 6], [-1, 7, 8]]
    assert stream.num_classes == 9


def test_the_first_tasks_alone_have_outputs_for_their_classes_alone(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", {"1": {"a": 2, "c": 2}, "2": {"c": 2}, "3": {"b": 2}})
    stream = stream_of(path, num_tasks=2)
    assert [task.name for task in stream] == ["1", "2"]
    assert stream.label.tolist() == [[0, -1, 1], [-1, -1, 1]]
    assert stream.num_classes == 2
    assert "benchmark.num_tasks=4 is more than the 3 slices" in refused(path, num_tasks=4)


def test_a_task_has_its_own_images_and_no_others(tmp_path: Path) -> None:
    stream = stream_of(lay_out(tmp_path / "in", LATE))
    first = 1
    for task, classes in zip(stream, LATE.values(), strict=True):
        number = sum(classes.values())
        own = values(stream.x[task.train]) + values(stream.x_test[task.test])
        assert sorted(own) == list(range(first, first + number))
        first += number


def test_late_and_missing_classes_are_said(tmp_path: Path) -> None:
    (line,) = late_and_missing(stream_of(lay_out(tmp_path / "in", LATE)))
    assert line == (
        "not every task has the same classes: 2021-03 is the first with 'scooter'; "
        "2021-04 has no 'bike'"
    )
    same = {"a": {"x": 2}, "b": {"x": 2}}
    assert not list(late_and_missing(stream_of(lay_out(tmp_path / "same", same))))


def test_what_is_said_of_many_is_short(tmp_path: Path) -> None:
    tasks = {f"{t}": {f"c{10 * t + c}": 2 for c in range(5)} for t in range(6)}
    (line,) = late_and_missing(stream_of(lay_out(tmp_path / "in", tasks)))
    assert "1 is the first with 'c10', 'c11', 'c12' and 2 more and has no 'c0', 'c1'" in line
    assert line.endswith("and so on in 2 more tasks")


# Resizing.


def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path) -> None:
    sizes = [(3, 3), (8, 8), (50, 20), (16, 40), (1, 9)]
    for i, size in enumerate(sizes):
        write(tmp_path / "in/t/c" / f"{i}.png", 10 * i, size)
    data = read(tmp_path / "in", resize=8)
    assert data.x_train.shape[1:] == (1, 8, 8)
    assert sorted(values(data.x_train) + values(data.x_test)) == [0, 10, 20, 30, 40]


def test_a_smaller_image_is_made_of_all_pixels(tmp_path: Path) -> None:
    """Columns of black and white: were single pixels picked, they would stay black or white."""
    columns = np.tile(np.array([0, 255], np.uint8), (64, 32))
    (tmp_path / "in/t/c").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(columns).save(tmp_path / f"in/t/c/{i}.png")
    x = read(tmp_path / "in", resize=8).x_train
    assert x.shape == (1, 1, 8, 8)
    assert (x[..., 1:-1].float() - 127.5).abs().max() < 10


def test_of_several_sizes_without_resizing_the_file_is_named(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", {"a": {"x": 2}})
    write(path / "a/x/9.png", 1, (5, 3))
    message = refused(path)
    assert f"{path}/a/x/9.png has 5x3 pixels, but {path}/a/x/" in message
    assert message.endswith("set benchmark.resize=32, or another size, or bring all images to one")


# The decoded copy.


def test_a_second_reading_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lay_out(tmp_path / "in", LATE)
    first = read(path, resize=5)
    monkeypatch.setattr(images, "_opened", None)  # not even a header
    again = read(path, resize=5)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b  # type: ignore[arg-type]
    for changed in ({"resize": 6}, {"test_fraction": 0.5}):
        with pytest.raises(TypeError):
            read(path, **{"resize": 5, **changed})
    assert sorted(f.name[:10] for f in path.iterdir() if f.name[0] == ".") == [".cl_runner"] * 2


def test_a_changed_image_is_seen(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", {"a": {"x": 2}, "b": {"x": 2}})
    read(path)
    before = (path / "a/x/0.png").stat()
    write(path / "a/x/0.png", 99)
    os.utime(path / "a/x/0.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    data = read(path)
    assert sorted(values(data.x_train) + values(data.x_test)) == [2, 3, 4, 99]
    lay_out(path, {"c": {"x": 2}})
    assert read(path).slices == ("a", "b", "c")


# Mistakes.


def damage(path: Path) -> None:
    (path / "2021-01/bus/0.png").write_bytes(b"no image")


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(path / "2021-02/bus/0.png")


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a damaged image": (damage, r"2021-01/bus/0.png is damaged, or no PNG image"),
    "16 bits": (deep, r"2021-02/bus/0.png has more than 8 bits per pixel"),
    "an empty class": (
        lambda path: (path / "2021-01/tram").mkdir(),
        r"2021-01/tram holds no image \(.png, .jpg, .jpeg, .bmp, .webp\): add some or delete it",
    ),
    "an empty task": (
        lambda path: (path / "2021-05").mkdir(),
        r"2021-05 holds no folder$",
    ),
    "an image beside the tasks": (
        lambda path: write(path / "1.png", 1),
        r"1.png is none of these: images belong into <task>/<class>/ below it",
    ),
    "an image beside the classes": (
        lambda path: write(path / "2021-01/1.png", 1),
        r"2021-01/1.png is none of these: images belong into <class>/ below it",
    ),
    "train without test": (
        lambda path: write(path / "2021-05/train/bus/1.png", 1),
        r"2021-05 must have train/<class>/ and test/<class>/, and no other folder; it has train$",
    ),
    "train, test and a class": (
        lambda path: [
            write(path / f"2021-05/{name}/1.png", 1) for name in ("train/bus", "test/bus", "bus")
        ],
        r"2021-05 must have train/<class>/ and test/<class>/, .*; it has bus, test, train$",
    ),
    "a class in the test data only": (
        lambda path: [
            write(path / f"2021-05/{name}/1.png", 1)
            for name in ("train/bus", "test/bus", "test/tram")
        ],
        r"^task 2021-05 has class 'tram' in its test data only",
    ),
    "one image of each class": (
        lambda path: write(path / "2021-05/bus/1.png", 1),
        r"2021-05 has too few images: no class of it has one for testing$",
    ),
    "a name of two lines": (
        lambda path: write(path / "2021-05/a\nb/1.png", 1),
        r"2021-05: the name 'a\\nb' holds control characters",
    ),
    "a name that is no text": (
        lambda path: os.makedirs(os.fsencode(path) + b"/2021-0\xff/bus"),  # noqa: PTH103 - bytes
        r"in: the name '2021-0\\udcff' holds control characters or bytes that are no text$",
    ),
}


NO_NAMES_OF_WINDOWS = ("a name of two lines", "a name that is no text")


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(m, marks=[pytest.mark.unix] if m in NO_NAMES_OF_WINDOWS else [])
        for m in MISTAKES
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, mistake: str) -> None:
    path = lay_out(tmp_path / "in", LATE)
    make, message = MISTAKES[mistake]
    make(path)
    assert re.search(message, refused(path))


def test_another_layout_is_told(tmp_path: Path) -> None:
    lay_out(tmp_path / "own", {"train": {"x": 1}, "test": {"x": 1}})
    assert refused(tmp_path / "own").endswith("no tasks: take benchmark=split_folder")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").endswith(f"{tmp_path / 'empty'} holds no folder")
    assert refused(tmp_path / "none").endswith("none is none")
    write(tmp_path / "flat/cat/1.png", 1)
    assert "flat/cat/1.png is none of these" in refused(tmp_path / "flat")


@pytest.mark.parametrize("keys", [{"test_fraction": 0.0}, {"test_fraction": 1.0}, {"resize": 0}])
def test_keys_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"benchmark.{next(iter(keys))}"):
        Folders(**{**COMMON, **DEFAULTS, **keys})


# The whole program.

NAMES = {
    "2021-01, <b>": {"bike & $x_1$": 6, 'bus "B"': 6},
    "=2+3": {"bike & $x_1$": 6, 'bus "B"': 6, "Straßenroller": 6},
    "a name so long that no axis of a picture has room for it, 自転車": {'bus "B"': 6},
    "seed": {'bus "B"': 6, "Straßenroller": 6},
}


def command(name: str, *args: str | Path) -> str:
    """What the installed command says."""
    line = [Path(sys.executable).parent / name, *args]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_names_stand_in_every_table_and_picture(tmp_path: Path) -> None:
    path = lay_out(tmp_path / "in", NAMES)
    tasks = [*NAMES]  # as they stand in the tables, where a formula is none
    tasks[1] = "'=2+3"
    keys = (
        *("benchmark=folders", f"data.path={path}", "benchmark.resize=8"),
        *("strategy=naive,er", "eval.calibration=true", "eval.every=1", "training.epochs=2"),
        *("training.batch_size=4", "model.hidden_sizes=[8]"),
    )
    assert "is the first with" in command("cl-run", "-m", *keys, f"hydra.sweep.dir={tmp_path}/out")
    folders = [file.parent for file in (tmp_path / "out").glob("*/costs.csv")]
    assert len(folders) == 2
    for out in folders:
        table = rows(out / "accuracy_matrix.csv")
        columns = [*tasks[:3], "seed (task 4)"]
        assert list(table[0]) == ["after_task", "after_name", *columns]
        assert [row["after_name"] for row in table] == ["", *tasks]
        assert {row["eval_name"] for row in rows(out / "accuracies.csv")} == {*tasks}
        assert [row["name"] for row in rows(out / "tasks.csv")] == tasks
        assert rows(out / "tasks.csv")[0] | {"name": ""} == {
            "task": "1",
            "name": "",
            "classes": '["bike & $x_1$", "bus \\"B\\""]',
            "train": "10",
            "validation": "0",
            "test": "2",
        }
        confused = rows(out / "confusion.csv")
        names = ["Straßenroller", "bike & $x_1$", 'bus "B"']
        for key in ("class", "predicted"):
            assert all(row[f"{key}_name"] == names[int(row[key])] for row in confused)
        for name in ("costs", "calibration"):
            assert {row["after_name"] for row in rows(out / f"{name}.csv")} == {"", *tasks}
        log = (out / "cl-run.log").read_text(encoding="utf-8")
        assert 'task 2021-01, <b>: classes bike & $x_1$, bus "B"' in log
        assert "after task seed: mean accuracy" in log
    html = tmp_path / "report.html"
    command("cl-compare", tmp_path / "out", "--html", html, "--out", tmp_path / "c.csv")
    body = html.read_text(encoding="utf-8").partition("<body")[2]
    assert "<b>" not in body
    pictures = dict(re.findall(r'<img alt="([^"]*)".*base64,(.*)"', body))
    drawn = {title: texts(base64.b64decode(svg).decode()) for title, svg in pictures.items()}

    def of(title: str) -> list[str]:
        (found,) = (own for key, own in drawn.items() if key.startswith(title))
        return found

    shown = ["2021-01, <b>", "=2+3", "a name … it, 自転車", "seed"]  # as there is room
    for title in ("Accuracy matrices", "Accuracy on single tasks while", "Average accuracy"):
        assert {*shown} <= {*of(title)}, title
    assert of("Accuracy matrices").count("seed") == 4  # two matrices, rows and columns
    assert {*names} <= {*of("Confusion")}
    assert {f"learns {name}" for name in shown} <= {word for own in drawn.values() for word in own}
    assert "2 runs verified: all in order" in command("cl-compare", "verify", tmp_path / "out")


def texts(svg: str) -> list[str]:
    """What is written in a picture; matplotlib draws letters and notes the words beside them."""
    return [unescape(words) for words in re.findall(r"<!-- (.*?) -->", svg)]


# The contract of strategies, where a class appears late.


@pytest.fixture
def late(tmp_path: Path, prepared: Callable[..., Any]) -> Callable[..., Case]:
    """late(strategy, scenario) -> a case on three tasks, of which the second has a new class."""
    generator, means = np.random.default_rng(0), {"a": 60, "b": 120, "c": 200}
    for task, classes in {"1": "ab", "2": "abc", "3": "bc"}.items():
        for name in classes:
            folder = tmp_path / "in" / task / name
            folder.mkdir(parents=True)
            for i in range(50):
                x = generator.normal(means[name], 30, (6, 6)).clip(0, 255).astype(np.uint8)
                Image.fromarray(x).save(folder / f"{i}.png")

    def case(strategy: str, scenario: str) -> Case:
        own = ("benchmark=folders", f"data.path={tmp_path / 'in'}", f"scenario={scenario}")
        return Case(strategy, (*own, "benchmark.train_samples=null"), prepared)

    return case


SAME = "two runs are identical and hold only tensors"  # asks for split_digits


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["domain", "class"])
@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf", "icarl"])
def test_strategies_keep_their_promises_where_a_class_is_late(
    late: Callable[..., Case], strategy: str, scenario: str
) -> None:
    case = late(strategy, scenario)
    if scenario not in case.supported:
        pytest.skip(f"{strategy} is not defined in {scenario}-IL")
    assert set(CHECKS) | set(OF_ONE_GRAPH) >= set(case.checks())
    for promise, check in case.checks().items():
        if promise != SAME:
            check(case)
