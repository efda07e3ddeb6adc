"""The published format, its download with a fake transport, and the one entry point."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hjepa_lib import files
from hjepa_lib.config import DataConfig
from hjepa_lib.data import published
from hjepa_lib.data.measures import describe
from hjepa_lib.data.published import acquire, download, extract, load_npz_trajectories, truncate
from hjepa_lib.data.recipes import generate
from hjepa_lib.files import FileError
from hjepa_lib.worlds.rendering import render, render_reference
from hjepa_lib.worlds.two_rooms import step

REFERENCE = os.environ.get("HJEPA_REFERENCE_DATA", "")


def arrays(trajectories=3, length=10):
    """Arrays in the published format, made by our own generator."""
    data = generate("good", 90 * trajectories)
    rows = (torch.arange(trajectories)[:, None] * 91 + torch.arange(length)).flatten()
    terminals = (np.arange(trajectories * length) % length == length - 1).astype(np.float32)
    return {
        "actions": data.actions[rows].numpy(),
        "locations": data.positions[rows].numpy(),
        "terminals": terminals,
    }


def npz_bytes(**content):
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return Path(path)


def test_loader_recovers_trajectories(tmp_path):
    content = arrays()
    data = load_npz_trajectories(files.save_npz(tmp_path / "a.npz", **content))
    assert data.count == 3 and data.lengths.tolist() == [10] * 3 and data.transitions == 27
    assert np.array_equal(data.positions.numpy(), content["locations"])
    positions, actions = data.one(1)
    assert np.array_equal(actions.numpy(), content["actions"][10:19])
    assert torch.equal(
        step(positions[:-1], actions, data.layouts([1] * 9), "blocked"), positions[1:]
    )
    assert (data.actions[[9, 19, 29]] == 0).all()  # where they led was not stored
    assert data.layout.unique(dim=0).tolist() == [[32, 10]] and data.meta["dynamics"] == "blocked"


def test_a_single_trajectory_is_enough_and_frames_are_not_read(tmp_path):
    """PL12: L needs only one trajectory; memory does not grow with the frames in the file."""
    path = tmp_path / "a.npz"
    data = load_npz_trajectories(files.save_npz(path, observations=np.array("unread"), **arrays(1)))
    assert data.count == 1 and data.lengths.tolist() == [10]


def broken(name):
    content = arrays()
    if name == "unequal":
        content["terminals"][12] = 1
    elif name == "no end":
        content["terminals"][-1] = 0
    elif name == "one row each":
        content["terminals"][:] = 1
    elif name == "nan":
        content["actions"][4, 1] = np.nan
    elif name == "outside":
        content["locations"][4, 1] = 65.0
    elif name == "short":
        content["actions"] = content["actions"][:-1]
    elif name == "flat":
        content["locations"] = content["locations"].reshape(-1)
    elif name == "empty":
        content = {key: value[:0] for key, value in content.items()}
    elif name == "text":
        content["actions"] = content["actions"].astype(str)
    elif name == "2-d terminals":
        content["terminals"] = content["terminals"][:, None]
    else:
        del content[name]
    return content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("actions", "no array 'actions'"),
        ("locations", "no array 'locations'"),
        ("terminals", "no array 'terminals'"),
        ("unequal", "equal lengths, found 3 to 10"),
        ("no end", "does not end a trajectory"),
        ("one row each", "at least 2 rows"),
        ("nan", "actions has values that are not finite"),
        ("outside", r"locations must lie in \[0, 64\] px"),
        ("short", r"actions must be \(30, 2\), got \(29, 2\)"),
        ("flat", r"locations must be \(30, 2\)"),
        ("empty", r"terminals must be \(N,\)"),
        ("text", "actions must be numbers"),
        ("2-d terminals", r"terminals must be \(N,\)"),
    ],
)
def test_every_loader_error_is_named(tmp_path, name, message):
    path = files.save_npz(tmp_path / "a.npz", **broken(name))
    with pytest.raises(FileError, match=message):
        load_npz_trajectories(path)


def test_truncated_and_missing_files(tmp_path):
    path = files.save_npz(tmp_path / "a.npz", **arrays())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileError, match="not a whole"):
        load_npz_trajectories(path)
    with pytest.raises(FileError, match="no such file"):
        acquire(DataConfig(source=str(tmp_path / "none.npz")), 0, tmp_path)


@pytest.mark.parametrize("transitions", [1, 8, 9, 10, 17, 18, 26, 27, 1000])
def test_truncate_is_exact(tmp_path, transitions):
    data = load_npz_trajectories(files.save_npz(tmp_path / "a.npz", **arrays()))
    cut = truncate(data, transitions)
    assert cut.transitions == min(transitions, 27)
    assert torch.equal(cut.positions, data.positions[: len(cut.positions)])
    assert (cut.actions[cut.lengths.cumsum(0) - 1] == 0).all()


def fake(members, calls=None):
    """A transport that writes a tar.gz of `members`."""

    def fetch(file_id, path):
        if calls is not None:
            calls.append(file_id)
        archive(path, members)

    return fetch


GOOD = "wall/good_quality_data_no_images.npz"
PUBLISHED = DataConfig(source="published", transitions=20)


def test_download_once_record_and_verify(tmp_path):
    calls = []
    fetch = fake({GOOD: npz_bytes(**arrays())}, calls)
    for _ in range(2):
        data = acquire(PUBLISHED, 0, tmp_path, fetch)
        assert data.transitions == 20 and "fallback" not in data.meta
    assert calls == [published.FILE_ID]
    assert (data.meta["source"], data.meta["recipe"]) == ("published", "good")
    record = files.read_json(tmp_path / "wall_data.tar.gz.sha256.json")
    assert record["sha256"] == files.sha256(tmp_path / "wall_data.tar.gz")
    left = {item.name for item in tmp_path.iterdir() if not item.name.endswith(".lock")}
    assert left == {"wall_data.tar.gz", "wall_data.tar.gz.sha256.json", Path(GOOD).name}
    (tmp_path / "wall_data.tar.gz").write_bytes(b"changed")
    with pytest.raises(FileError, match="does not match the SHA-256"):
        download(published.FILE_ID, tmp_path / "wall_data.tar.gz", fetch)
    (tmp_path / "wall_data.tar.gz").unlink()
    with pytest.raises(FileError, match="does not match the SHA-256"):  # other content than before
        download(published.FILE_ID, tmp_path / "wall_data.tar.gz", fake({"x": b"y"}))
    assert not (tmp_path / "wall_data.tar.gz").exists()


def test_one_cache_serves_all_runs(tmp_path, monkeypatch):
    """D4: whichever folder a run lies in, the archive is fetched once."""
    calls = []
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        acquire(PUBLISHED, 0, fetch=fake({GOOD: npz_bytes(**arrays())}, calls))
    assert len(calls) == 1 and (tmp_path / "cache" / published.ARCHIVE).is_file()
    monkeypatch.delenv("HJEPA_CACHE")
    assert published.cache() == Path.home() / ".cache" / "hjepa"


def offline(file_id, path):
    raise published.NoNetwork("download of wall_data.tar.gz failed: no network")


def web_page(file_id, path):
    path.write_text("<html>quota exceeded</html>")


def cut_short(file_id, path):
    """The server hangs up: the beginning of an archive, which tarfile opens without complaint."""
    archive(path, {"big.npz": np.random.RandomState(0).bytes(400_000)})
    path.write_bytes(path.read_bytes()[:300_000])


def full_disk(file_id, path):
    raise FileError(f"cannot write {path}: No space left on device")


def test_only_a_missing_network_falls_back_to_generated_data(tmp_path, capsys):
    """D3: said in the terminal, in the meta data and, by its source, in every row."""
    config = DataConfig(source="published", transitions=500)
    data = acquire(config, 3, tmp_path, offline)
    line = data.meta["fallback"]
    assert line.startswith("published data unavailable, generated instead: ") and "\n" not in line
    assert capsys.readouterr().out == line + "\n" and data.meta["source"] == "generated"
    assert data.hash() == generate("good", 500, seed=3).hash()


@pytest.mark.parametrize(
    ("fetch", "recipe", "reason"),
    [
        (web_page, "good", "no whole tar archive"),
        (cut_short, "good", "no whole tar archive"),
        (full_disk, "good", "No space left on device"),
        (fake({"other.npz": b""}), "good", "holds no file called good_quality"),
        (fake({GOOD: npz_bytes(actions=np.zeros((2, 2)))}), "good", "no array 'locations'"),
        (offline, "mixture", "data.recipe=mixture was not published; there are good"),
    ],
)
def test_other_failures_are_errors_and_nothing_is_recorded_of_half_a_file(
    tmp_path, fetch, recipe, reason
):
    """D3: a cut download was recorded as good for ever, a full disk became generated data."""
    config = DataConfig(source="published", transitions=500, recipe=recipe)
    with pytest.raises(files.WorkbookError, match=reason):
        acquire(config, 3, tmp_path, fetch)
    if fetch in (web_page, cut_short, full_disk):
        assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_gdown_errors_become_one_sentence(tmp_path, monkeypatch):
    """The real transport: by id, with the connection time-out, errors translated."""
    import gdown
    import requests

    seen = {}

    def refuse(**options):
        seen.update(options)
        raise gdown.exceptions.FileURLRetrievalError("too many users\n\n  try later")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(FileError, match=r"failed: too many users try later$"):
        published.fetch_from_drive("some-id", tmp_path / "a.tar.gz")
    assert seen["id"] == "some-id" and seen["timeout"][0] == 10
    assert seen["resume"] is True and seen["retries"] == 3  # D3

    def unreachable(**options):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(gdown, "download", unreachable)
    with pytest.raises(published.NoNetwork, match=r"failed: no route$"):
        published.fetch_from_drive("some-id", tmp_path / "a.tar.gz")

    def deliver(**options):
        options["progress"](5, None)
        Path(options["output"]).write_bytes(b"12345")

    monkeypatch.setattr(gdown, "download", deliver)
    published.fetch_from_drive("some-id", tmp_path / "a.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == b"12345"


def test_extraction_stays_in_its_folder(tmp_path):
    path = archive(tmp_path / "a.tar.gz", {"../../evil.npz": b"x", "in/good.npz": b"y"})
    folder = tmp_path / "deep" / "out"
    with pytest.raises(FileError, match="cannot unpack"):
        extract(path, "evil.npz", folder)
    assert extract(path, "good.npz", folder).read_bytes() == b"y"
    assert not (tmp_path / "evil.npz").exists() and not list(tmp_path.parent.glob("evil.npz"))
    assert [item.name for item in folder.iterdir()] == ["good.npz"]
    link = tarfile.TarInfo("link.npz")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(FileError, match="holds no file"):
        extract(tmp_path / "b.tar", "link.npz", folder)
    noise = np.random.RandomState(0).bytes(50_000)
    cut = archive(tmp_path / "c.tar.gz", {"big.npz": noise})
    cut.write_bytes(cut.read_bytes()[:25_000])
    with pytest.raises(FileError, match="cannot unpack"):
        extract(cut, "big.npz", folder)
    assert [item.name for item in folder.iterdir()] == ["good.npz"]


def test_a_file_by_path_and_conflicting_settings(tmp_path):
    path = files.save_npz(tmp_path / "a.npz", **arrays())
    data = acquire(DataConfig(source=str(path), transitions=1000), 0, tmp_path)
    assert data.transitions == 27 == data.meta["transitions"] and data.meta["requested"] == 1000
    assert data.meta["sha256"] == files.sha256(path)
    for change in ({"layouts": "random"}, {"dynamics": "bounce"}):
        with pytest.raises(ValueError, match=r"data.layouts=fixed and data.dynamics=blocked"):
            acquire(DataConfig(source=str(path), **change), 0, tmp_path)


def test_generated_source_uses_every_setting(tmp_path):
    """PL7: a changed setting changes the data."""
    base = {"recipe": "mixture", "transitions": 900, "layouts": "rectangle", "good_fraction": 0.5}
    first = acquire(DataConfig(**base), 1, tmp_path)
    assert first.hash() == acquire(DataConfig(**base), 1, tmp_path).hash()
    changes = [
        {"recipe": "good"},
        {"transitions": 901},
        {"layouts": "random"},
        {"good_fraction": 0.1},
        {"exclude_wall": "21-44"},
        {"exclude_door": "12-54"},
        {"dynamics": "slide"},
    ]
    others = [acquire(DataConfig(**{**base, **change}), 1, tmp_path) for change in changes]
    assert first.hash() not in {other.hash() for other in others}
    assert acquire(DataConfig(**base), 2, tmp_path).hash() != first.hash()


needs_reference = pytest.mark.skipif(not REFERENCE, reason="HJEPA_REFERENCE_DATA is not set")


@pytest.fixture(scope="module")
def reference():
    """256 trajectories of the public generator."""
    return load_npz_trajectories(Path(REFERENCE) / "pldm_good_256x91_no_images.npz")


@needs_reference
def test_blocked_dynamics_reproduce_every_transition(reference):
    positions = reference.positions.reshape(256, 90, 2)
    before, after = positions[:, :-1].reshape(-1, 2), positions[:, 1:].reshape(-1, 2)
    action = reference.actions.reshape(256, 90, 2)[:, :-1].reshape(-1, 2)
    layout = reference.layouts(slice(0, 1)).index([0] * len(before))
    assert torch.equal(step(before, action, layout, "blocked"), after)


@needs_reference
def test_statistics_agree_with_our_generator(reference):
    theirs, ours = describe(reference), describe(generate("good", 89 * 2048), limit=2048)
    for name, width in (("crossing_rate", 0.09), ("spread_px", 3.0), ("blocked_rate", 0.05)):
        assert theirs[name] == pytest.approx(ours[name], abs=width)
    for name in ("action_std_x", "action_std_y", "step_mean_px", "step_std_px"):
        assert theirs[name] == pytest.approx(ours[name], abs=0.02)


@needs_reference
def test_rendering(reference):
    rows, layout = reference.positions[::23], reference.layouts(slice(0, 1))
    assert torch.equal(render(rows, layout), render_reference(rows, layout))
    with np.load(Path(REFERENCE) / "pldm_rendered_32.npz") as stored:
        frames = render(torch.from_numpy(stored["locations"]), layout)
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), stored["observations"])
