"""Files of unknown origin are read whole, in bounds and as plain values, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cl_runner.errors import UserError
from cl_runner.machine.reading import DEPTH, SHORT, json_values, read_text, regular, yaml_values
from cl_runner.results import status
from cl_runner.results.files import read_rows
from cl_runner.results.matrices import read_matrix
from cl_runner.running.checkpoint import check_run

# Nine levels of nine references each: 3.9e8 values in 400 bytes.
LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
READERS = [
    *(read_text, yaml_values, json_values, read_rows, read_matrix),
    lambda path: check_run(path.parent, {}),
]


def refused(read: object, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.unix
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "pipe behind a link"])
def test_only_regular_files_are_read(tmp_path, read, kind):
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    message = refused(read, path)
    assert "is no regular file" in message or "Is a directory" in message


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "x")
    assert (
        refused(read_text, tmp_path / "x") == f"cannot read {tmp_path}/x: No such file or directory"
    )


def test_a_file_may_be_as_long_as_allowed(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 10)
    assert read_text(tmp_path / "x", 10) == "a" * 10
    assert refused(lambda path: read_text(path, 9), tmp_path / "x").endswith("longer than 9 bytes")
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    for read in (read_text, yaml_values, json_values):
        assert f"is longer than {SHORT} bytes" in refused(read, tmp_path / "x")


def test_text_is_utf_8_with_or_without_a_mark(tmp_path):
    (tmp_path / "x").write_bytes("\ufeffé".encode())
    assert read_text(tmp_path / "x") == "é"
    (tmp_path / "x").write_bytes(b"\xff")
    assert "can't decode" in refused(read_text, tmp_path / "x")


def test_yaml_that_refers_to_itself_is_refused_before_it_grows(tmp_path):
    (tmp_path / "config.yaml").write_text(LAUGHS)
    for read in (yaml_values, lambda path: check_run(path.parent, {})):
        message = refused(read, tmp_path / "config.yaml")
        assert "holds anchors or aliases (& and *), which cl-run does not write" in message


@pytest.mark.parametrize(
    "text", ["a: " * 30, "[" * 100_000, "a: " + "[" * (DEPTH + 1), "{a: " * 1000]
)
def test_yaml_is_nested_no_deeper_than_ours(tmp_path, text):
    (tmp_path / "x").write_text(text)
    refused(yaml_values, tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    [
        *("5", "!!python/object/apply:os.system [echo]", "a: !!python/name:os.system"),
        *("a: b: c", "\t", "a: '${b'", "? [a, b]\n: c", "a: !!binary x", "--- a\n--- b", "\x00"),
    ],
)
def test_what_is_no_plain_configuration_is_one_line(tmp_path, text):
    (tmp_path / "x").write_text(text)
    refused(yaml_values, tmp_path / "x")


def test_plain_values_come_back_and_references_stay_text(tmp_path):
    (tmp_path / "x").write_text("a: [1, 1.0e-05, null, true, 2020-01-01]\nb: {c: '${a}'}\n")
    expected = {"a": [1, 1e-05, None, True, "2020-01-01"], "b": {"c": "${a}"}}
    assert yaml_values(tmp_path / "x") == expected
    (tmp_path / "x").write_text("")
    assert yaml_values(tmp_path / "x") == {}
    (tmp_path / "x").write_text("- seed=3\n- data.path='a b'\n")
    assert yaml_values(tmp_path / "x") == ["seed=3", "data.path='a b'"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, "NaN x", '"\\ud800'])
def test_json_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "x").write_text(text)
    refused(json_values, tmp_path / "x")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", "5"])
def test_a_status_that_is_none_of_ours_is_none(tmp_path, text):
    (tmp_path / status.STATUS).write_text(text)
    (tmp_path / status.JOBS).write_text(text)
    assert status.read(tmp_path) == status.jobs(tmp_path) == {}


@pytest.mark.unix
def test_a_status_that_is_a_pipe_is_none(tmp_path):
    os.mkfifo(tmp_path / status.STATUS)
    assert status.read(tmp_path) == {}
