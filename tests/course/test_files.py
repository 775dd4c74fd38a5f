"""Files are written whole or not at all."""

import io
import os
import zipfile

import pytest

from course.files import replace_folder, write_atomic, zipped


def test_a_file_is_written_and_an_equal_one_left_alone(tmp_path):
    path = tmp_path / "new" / "a.txt"
    assert write_atomic(path, "one\n")
    os.utime(path, (1, 1))
    assert not write_atomic(path, "one\n")
    assert path.stat().st_mtime == 1
    assert write_atomic(path, "zwei ≤ 3\n")
    assert path.read_bytes() == "zwei ≤ 3\n".encode()


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole_and_the_changed_files_are_told(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for name, text in (("same", "1"), ("changed", "2"), ("sub/added", "3")):
        write_atomic(source / name, text)
    for name, text in (("same", "1"), ("changed", "0"), ("gone", "4")):
        write_atomic(target / name, text)
    assert replace_folder(source, target) == ["changed", "gone", "sub/added"]
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "changed",
        "same",
        "sub/added",
    ]
    assert replace_folder(source, target) == []
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_an_archive_depends_on_its_files_alone():
    files = {"b/run": b"#!/bin/sh\n", "a.txt": "Ж".encode()}
    data = zipped(files, programs={"b/run"})
    assert zipped(dict(reversed(files.items())), programs=["b/run"]) == data
    assert zipped(files) != data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == files
        modes = {entry.filename: oct(entry.external_attr >> 16) for entry in archive.infolist()}
    assert modes == {"a.txt": "0o100644", "b/run": "0o100755"}
