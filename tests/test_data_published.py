"""The published format, its download with a fake transport, and the one entry point."""

import io
import os
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import put, tiny_config

from hjepa_lib import files
from hjepa_lib.config import DataConfig
from hjepa_lib.data import published
from hjepa_lib.data.published import acquire, extract, load_npz_trajectories, truncate
from hjepa_lib.data.recipes import generate
from hjepa_lib.evaluation import Case
from hjepa_lib.files import FileError
from hjepa_lib.runs import score
from hjepa_lib.runs.stages import make_data
from hjepa_lib.worlds.two_rooms import step

REFERENCE = os.environ.get("HJEPA_REFERENCE_DATA", "")
GOOD = "wall/good_quality_data_no_images.npz"
PUBLISHED = DataConfig(source="published", transitions=20)


def arrays(trajectories=3, length=10):
    data = generate("good", 90 * trajectories)
    rows = (torch.arange(trajectories)[:, None] * 91 + torch.arange(length)).flatten()
    terminals = (np.arange(trajectories * length) % length == length - 1).astype(np.float32)
    return {
        "actions": data.actions[rows].numpy(),
        "locations": data.positions[rows].numpy(),
        "terminals": terminals,
    }


def npz_bytes(**content):
    np.savez(buffer := io.BytesIO(), **content)
    return buffer.getvalue()


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Function of a transport, which is a mock from then on; the cache is empty."""
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "cache"))

    def serve(transport):
        monkeypatch.setattr(published, "fetch", mock.Mock(side_effect=transport))
        return published.fetch

    return serve


def tar_of(name, content):
    return lambda path: archive(path, {name: content})


def test_loader_recovers_trajectories(tmp_path):
    """PL12: one trajectory is enough, and frames in the file are not read."""
    path, content = tmp_path / "a.npz", arrays()
    data = load_npz_trajectories(files.save_npz(path, observations=np.array("unread"), **arrays(1)))
    assert data.lengths.tolist() == [10]
    data = load_npz_trajectories(files.save_npz(path, **content))
    assert data.lengths.tolist() == [10] * 3 and data.transitions == 27
    assert np.array_equal(data.positions.numpy(), content["locations"])
    positions, actions = data.one(1)
    assert np.array_equal(actions.numpy(), content["actions"][10:19])
    assert torch.equal(
        step(positions[:-1], actions, data.layouts([1] * 9), "blocked"), positions[1:]
    )
    assert (data.actions[[9, 19, 29]] == 0).all()  # where they led was not stored
    assert data.layout.unique(dim=0).tolist() == [[32, 10]] and data.meta["dynamics"] == "blocked"
    for transitions in (1, 8, 9, 10, 17, 18, 26, 27, 1000):
        cut = truncate(data, transitions)
        assert cut.transitions == min(transitions, 27)
        assert torch.equal(cut.positions, data.positions[: len(cut.positions)])
        assert (cut.actions[cut.lengths.cumsum(0) - 1] == 0).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("actions", None, "no array 'actions'"),
        ("locations", None, "no array 'locations'"),
        ("terminals", None, "no array 'terminals'"),
        ("terminals", put(12, 1), r"of one length .* found lengths \[3, 7, 10\]"),
        ("terminals", put(-1, 0), "the last one in the last row"),
        ("terminals", put(slice(None), 0), "must end trajectories"),
        ("terminals", put(slice(None), 1), "of 2 rows or more"),
        ("terminals", lambda x: x[:, None], r"actions must be \(N, 2\)"),
        ("actions", put((4, 1), np.nan), "actions must be finite numbers"),
        ("actions", lambda x: x.astype(str), "actions must be finite numbers"),
        ("actions", lambda x: x[:-1], r"actions must be \(N, 2\), got \(29, 2\) for terminals"),
        ("locations", lambda x: x.reshape(-1), r"locations must be \(N, 2\)"),
        ("locations", put((4, 1), 65.0), r"locations must lie in \[0, 64\] px"),
        ("locations", put((4, 1), -0.5), r"locations must lie in \[0, 64\] px"),
    ],
)
def test_every_loader_error_is_named(tmp_path, name, change, message):
    content = arrays()
    column = content.pop(name)
    if change is not None:
        content[name] = change(column)
    path = files.save_npz(tmp_path / "a.npz", **content)
    with pytest.raises(FileError, match=message):
        load_npz_trajectories(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileError, match="not a whole"):
        load_npz_trajectories(path)


def test_download_once_record_and_verify(serve, tmp_path):
    """D4: whichever folder a run lies in, the archive is fetched once."""
    fetch, folder = serve(tar_of(GOOD, npz_bytes(**arrays()))), tmp_path / "cache"
    for _ in range(2):
        data = acquire(PUBLISHED, 0)
        assert data.transitions == 20 and "fallback" not in data.meta
    assert fetch.call_count == 1
    assert (data.meta["source"], data.meta["recipe"]) == ("published", "good")
    path = folder / "wall_data.tar.gz"
    assert files.read_json(f"{path}.sha256.json")["sha256"] == files.sha256(path)
    left = {item.name for item in folder.iterdir() if not item.name.endswith(".lock")}
    assert left == {path.name, f"{path.name}.sha256.json", Path(GOOD).name}
    path.write_bytes(b"changed")
    serve(tar_of("x", b"y"))
    for _ in range(2):  # changed in the cache, then other content than before
        with pytest.raises(FileError, match="does not match the SHA-256"):
            published.download()
        path.unlink(missing_ok=True)
    assert published.fetch.call_count == 1


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    for name in ("HJEPA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert files.cache() == Path.home() / ".cache" / "hjepa"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert files.cache() == Path("/elsewhere/hjepa")


def offline(path):
    raise published.NoNetwork("download of wall_data.tar.gz failed: no network")


def web_page(path):
    path.write_text("<html>quota exceeded</html>")


def cut_short(path):
    """The server hangs up: the beginning of an archive, which tarfile opens without complaint."""
    archive(path, {"big.npz": np.random.RandomState(0).bytes(400_000)})
    path.write_bytes(path.read_bytes()[:300_000])


def full_disk(path):
    raise FileError(f"cannot write {path}: No space left on device")


def test_only_a_missing_network_falls_back_to_generated_data(serve, capsys, workspace_of):
    """D3: said in the terminal, in the meta data and, by its source, in every row."""
    serve(offline)
    data = acquire(DataConfig(source="published", transitions=500), 3)
    line = data.meta["fallback"]
    assert line.startswith("published data unavailable, generated instead: ") and "\n" not in line
    assert capsys.readouterr().out == line + "\n" and data.meta["source"] == "generated"
    assert data.hash() == generate("good", 500, seed=3).hash()
    ws = workspace_of(tiny_config(data__source="published", data__transitions=500))
    make_data(ws)
    row = score._provenance(ws, None, Case.of(ws.config, "random"))
    assert (ws.config.data.source, row["data"]["source"]) == ("published", "generated")


@pytest.mark.parametrize(
    ("transport", "recipe", "reason"),
    [
        (web_page, "good", "is not a whole tar archive"),
        (cut_short, "good", "is not a whole tar archive"),
        (full_disk, "good", "No space left on device"),
        (tar_of("other", b""), "good", "holds no file called good_quality"),
        (tar_of(GOOD, npz_bytes(actions=np.zeros((2, 2)))), "good", "no array 'locations'"),
        (offline, "mixture", "data.recipe=mixture was not published; there are good"),
    ],
)
def test_other_failures_are_errors_and_nothing_is_recorded_of_half_a_file(
    serve, tmp_path, transport, recipe, reason
):
    """D3: a cut download was recorded as good for ever, a full disk became generated data."""
    serve(transport)
    with pytest.raises(files.WorkbookError, match=reason):
        acquire(DataConfig(source="published", transitions=500, recipe=recipe), 3)
    if transport in (web_page, cut_short, full_disk):
        left = (tmp_path / "cache").iterdir()
        assert not [path for path in left if path.suffix != ".lock"]


def test_gdown_errors_become_one_sentence(tmp_path, monkeypatch):
    import gdown
    import requests

    crowded = gdown.exceptions.FileURLRetrievalError("too many users\n\n  try later")
    asked = mock.Mock(side_effect=[crowded, requests.ConnectionError("no route")])
    monkeypatch.setattr(gdown, "download", asked)
    for kind, message in (
        (FileError, "too many users try later"),
        (published.NoNetwork, "no route"),
    ):
        with pytest.raises(kind, match=f"failed: {message}$") as caught:
            published.fetch(tmp_path / "a.tar.gz")
        assert type(caught.value) is kind
    seen = asked.call_args.kwargs
    assert seen["id"] == published.FILE_ID and seen["timeout"][0] == 10
    assert seen["resume"] is True and seen["retries"] == 3  # D3


def test_extraction_stays_in_its_folder(tmp_path):
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    path = archive(folder / "a.tar.gz", {"../../evil.npz": b"x", "in/good.npz": b"y"})
    with tarfile.open(folder / "b.tar", "w") as tar:
        link = tarfile.TarInfo("link.npz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    cut_short(folder / "c.tar.gz")
    assert extract(path, "good.npz").read_bytes() == b"y"
    assert extract(path, "evil.npz") == folder / "evil.npz"
    assert not [item for item in tmp_path.rglob("evil.npz") if item.parent != folder]
    for name, member, message in (("b.tar", "link", "holds no file"), ("c.tar.gz", "big", "whole")):
        with pytest.raises(FileError, match=message):
            extract(folder / name, f"{member}.npz")
        assert not (folder / f"{member}.npz").exists()


def test_a_file_by_path_and_conflicting_settings(tmp_path):
    path = files.save_npz(tmp_path / "a.npz", **arrays())
    data = acquire(DataConfig(source=str(path), transitions=1000), 0)
    assert data.transitions == 27 == data.meta["transitions"] and data.meta["requested"] == 1000
    assert data.meta["sha256"] == files.sha256(path)
    empty = files.save_npz(tmp_path / "b.npz", **{k: rows[:0] for k, rows in arrays().items()})
    only = r"data.layouts=fixed and data.dynamics=blocked"
    for source, change, message in (
        (empty, {}, r"must be \(N, 2\)"),
        (tmp_path / "none.npz", {}, "No such file"),
        (path, {"layouts": "random"}, only),
        (path, {"dynamics": "bounce"}, only),
    ):
        with pytest.raises(files.WorkbookError, match=message):
            acquire(DataConfig(source=str(source), **change), 0)


@pytest.mark.skipif(not REFERENCE, reason="HJEPA_REFERENCE_DATA is not set")
def test_blocked_dynamics_reproduce_every_transition():
    """Those of 256 trajectories of the public generator."""
    reference = load_npz_trajectories(Path(REFERENCE) / "pldm_good_256x91_no_images.npz")
    positions = reference.positions.reshape(256, 90, 2)
    before, after = positions[:, :-1].reshape(-1, 2), positions[:, 1:].reshape(-1, 2)
    action = reference.actions.reshape(256, 90, 2)[:, :-1].reshape(-1, 2)
    layout = reference.layouts(slice(0, 1)).index([0] * len(before))
    assert torch.equal(step(before, action, layout, "blocked"), after)
