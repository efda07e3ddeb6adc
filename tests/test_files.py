"""Atomic writes and checked reads: a file is whole or absent, every failure one sentence."""

import errno
import os

import numpy as np
import pytest

from hjepa_lib import files
from hjepa_lib.files import FileError


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_atomic(path, "old")
    files.write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path, monkeypatch, error
):
    path = files.write_atomic(tmp_path / "a.txt", "old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    wanted = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        files.write_atomic(path, "new")
    if wanted is FileError:
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_json_turns_nan_into_null_and_keeps_numbers(tmp_path):
    content = {"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": [1, float("inf")]}
    path = files.write_json(tmp_path / "a.json", content)
    assert files.read_json(path) == {"a": None, "b": 0.5, "c": [0, 1], "d": [1, None]}


def test_reading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(FileError, match="not valid JSON"):
        files.read_json(files.write_atomic(tmp_path / "a.json", '{"a": 1'))
    with pytest.raises(FileError, match="no such file"):
        files.load_npz(tmp_path / "none.npz")
    with pytest.raises(FileError, match="no such file"):
        files.load_npy(tmp_path / "none.npy")


def test_npz_round_trip_truncation_and_foreign_content(tmp_path):
    path = files.save_npz(tmp_path / "a.npz", one=np.arange(1000.0), two=np.zeros((0, 2)))
    assert set(files.load_npz(path)) == {"one", "two"}
    assert set(files.load_npz(path, ("one",))) == {"one"}
    with pytest.raises(FileError, match="no array 'three'"):
        files.load_npz(path, ("one", "three"))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"not a whole .npz file"):
            files.load_npz(path)
    with pytest.raises(FileError, match=r"not an .npz archive"):
        files.load_npz(files.save_npy(tmp_path / "a.npy", np.arange(3)))
    np.savez(path, one=np.array([{"a": 1}], dtype=object))  # a pickle
    with pytest.raises(FileError, match=r"not a whole .npz file"):
        files.load_npz(path)


def test_npy_is_mapped_and_truncation_is_an_error(tmp_path):
    path = files.save_npy(tmp_path / "a.npy", np.arange(100))
    mapped = files.load_npy(path)
    assert isinstance(mapped, np.memmap) and mapped.tolist() == list(range(100))
    del mapped
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileError, match=r"not a whole .npy file"):
        files.load_npy(path)


def test_sha256_of_bytes_and_of_a_file_agree(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert files.sha256(b"") == empty
    path = files.write_atomic(tmp_path / "a", b"x" * 3_000_000)
    assert files.sha256(path) == files.sha256(b"x" * 3_000_000)
    with pytest.raises(FileError):
        files.sha256(tmp_path / "none")
