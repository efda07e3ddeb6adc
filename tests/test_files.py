import errno
import os
from unittest.mock import Mock

import numpy as np
import pytest
from tiny import refused

from hjepa_lib import files
from hjepa_lib.files import FileError


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk is full"), KeyboardInterrupt(), RuntimeError()]
)
def test_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path, monkeypatch, error
):
    path = files.write_atomic(tmp_path / "deep" / "a.txt", "old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    wanted = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted) as caught:
        files.write_atomic(path, "new")
    if wanted is FileError:
        assert str(caught.value) == f"cannot write {path}: disk is full"
    assert path.read_text() == "old"
    monkeypatch.undo()
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]
    assert files.write_atomic(path, b"new").read_text() == "new"
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotImplementedError("flock"), r"manifest\.json: flock; .* a local folder"),
        (OSError(errno.ENOLCK, "no locks"), r"manifest\.json: no locks; .* a local folder"),
        (PermissionError(errno.EACCES, "Denied"), r"cannot lock .*manifest\.json: Denied"),
    ],
)
def test_s6_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, error, message):
    monkeypatch.setattr(files.FileLock, "acquire", Mock(side_effect=error))
    with pytest.raises(FileError, match=message), files.exclusive(tmp_path / "manifest.json"):
        raise AssertionError("not locked")


def test_json_turns_nan_into_null_and_keeps_numbers(tmp_path):
    content = {"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": [1, float("inf")]}
    path = files.write_json(tmp_path / "a.json", content)
    assert files.read_json(path) == {"a": None, "b": 0.5, "c": [0, 1], "d": [1, None]}
    path.write_text('{"a": 1')
    refused(FileError, "not valid JSON", files.read_json, path)


@pytest.mark.parametrize("read", ["read_json", "read_bytes", "load_npy", "load_npz", "sha256"])
def test_reading_names_what_is_missing(tmp_path, read):
    refused(FileError, r"cannot read .*none: No such file", getattr(files, read), tmp_path / "none")


def test_arrays_come_back_and_what_is_cut_or_foreign_is_refused(tmp_path):
    npz = files.save_npz(tmp_path / "a.npz", one=np.arange(1000.0), two=np.zeros((0, 2)))
    npy = files.save_npy(tmp_path / "a.npy", np.arange(100))
    assert set(files.load_npz(npz)) == {"one", "two"}
    assert set(files.load_npz(npz, ("one",))) == {"one"}
    refused(FileError, "no array 'three'", files.load_npz, npz, ("one", "three"))
    mapped = files.load_npy(npy)
    assert isinstance(mapped, np.memmap) and mapped.tolist() == list(range(100))
    del mapped
    whole = {"npz": npz.read_bytes(), "npy": npy.read_bytes()}
    for kind, other, path in (("npz", "npy", npz), ("npy", "npz", npy)):
        cuts = [whole[kind][:size] for size in (0, 10, len(whole[kind]) // 2, -8)]
        for content in (*cuts, whole[other]):
            path.write_bytes(content)
            refused(FileError, f"not a whole .{kind} file", getattr(files, f"load_{kind}"), path)
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(npz, one=pickled)
    np.save(npy, pickled)
    for load, path in ((files.load_npz, npz), (files.load_npy, npy)):
        refused(FileError, r"not a whole .np[yz] file", load, path)


def test_sha256_of_bytes_and_of_a_file_agree(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert files.sha256(b"") == empty
    path = files.write_atomic(tmp_path / "a", b"x" * 3_000_000)
    assert files.sha256(path) == files.sha256(b"x" * 3_000_000)
