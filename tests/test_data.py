import io
import json
import os
import sys
import tarfile
import types
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import put, refused, seeded, tiny_config, tiny_data
from tiny_runs import ROOT, python

from hjepa_lib import files
from hjepa_lib.config import DataConfig, from_dict, to_dict
from hjepa_lib.data import measures, published, readers
from hjepa_lib.data.measures import PUBLISHED, crosses, describe
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.published import acquire, extract, load_npz_trajectories
from hjepa_lib.data.recipes import RECIPES, SIZES, free_starts, generate
from hjepa_lib.data.trajectories import Record, Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation import Case
from hjepa_lib.files import FileError
from hjepa_lib.runs import score
from hjepa_lib.runs.stages import make_data
from hjepa_lib.worlds.layout import Layout, layout_set, render
from hjepa_lib.worlds.two_rooms import inside, step


@pytest.mark.parametrize("transitions", [SIZES[0], SIZES[3], 1, 89, 90, 91])
def test_sizes_are_exact(transitions):
    """PL12."""
    data = generate("good", transitions)
    assert data.transitions == transitions == data.meta["transitions"]
    assert (data.lengths[:-1] == 91).all() and 2 <= int(data.lengths[-1]) <= 91
    assert len(data.positions) == transitions + data.count


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "navigate"])
def test_states_follow_from_actions_inside_free_space(recipe):
    dynamics = "slide" if recipe == "good" else "blocked"
    data = generate(recipe, 2_079, "random", seed=2, dynamics=dynamics)
    states = {"short17": 17, "short33": 33, "short65": 65, "eb_jepa": 17}.get(recipe, 91)
    assert data.transitions == 2_079 and (data.lengths[:-1] == states).all()
    last = data.lengths.cumsum(0) - 1
    layout = data.layouts().index(torch.arange(data.count).repeat_interleave(data.lengths))
    assert inside(data.positions, layout).all()
    moves = torch.ones(len(data.positions), dtype=torch.bool)
    moves[last] = False
    before, action = data.positions[moves], data.actions[moves]
    expected = step(before, action, layout.index(moves), dynamics)
    assert torch.equal(expected, data.positions.roll(-1, 0)[moves])
    assert (data.actions[last] == 0).all()


_LARGE = """
import resource
from hjepa_lib.data.recipes import generate
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
generate("good", 100)
before = peak()
data = generate("good", 1_000_000, "random")
assert data.transitions == 1_000_000
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in KiB")
def test_a_million_transitions_fit_in_100_mb():
    """PL12."""
    assert float(python(_LARGE, cwd=ROOT, timeout=120)) < 100


@pytest.mark.parametrize("recipe", ["good", "eb_jepa"])
def test_equal_arguments_give_equal_data(recipe):
    """EB5, PL2."""
    arguments = (recipe, 3_000, "random")
    first, state = generate(*arguments, seed=7), torch.random.get_rng_state()
    assert generate(*arguments, seed=7).hash() == first.hash()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generate(*arguments, seed=8).hash() != first.hash()
    noisy = [generate(*arguments, seed=7, dynamics="bounce").hash() for _ in range(2)]
    assert noisy[0] == noisy[1] != first.hash()
    for name in ("dynamics", "layouts"):
        refused(ValueError, f"{name} must be one of", generate, "good", 100, **{name: "elastic"})


BANDS = {
    "good": (0.05, 0.06, 1.5, 0.012, 0.012, 0.005, 0.004, 0.03),
    "random": (0.06, 0.05, 0.7, 0.015),
}


@pytest.mark.parametrize("recipe", BANDS)
def test_reference_statistics(recipe):
    """Section 2, of one public batch of 512; bands are about 3 of its errors."""
    found = describe(generate(recipe, 90 * 2048, seed=0))
    for (name, value), band in zip(PUBLISHED[recipe].items(), BANDS[recipe], strict=True):
        assert found[name] == pytest.approx(value, abs=band), name


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_what_is_built_to_cross_is_in_both_parts_of_a_split(seed):
    """D1."""
    parts = generate("good", 90 * 400, seed=seed).split(0.1, seed)
    shares = [crosses(part.positions.view(-1, 91, 2), part.layouts()).float() for part in parts]
    assert shares[0].mean() == pytest.approx(shares[1].mean(), abs=0.25)


def test_crossings_are_those_of_the_layout_of_the_trajectory_a_training_layout():
    """EB6."""
    shares, allowed = {}, {tuple(row) for row in layout_set("random").tolist()}
    for recipe in ("good", "no_crossing"):
        data = generate(recipe, 90 * 300, "random")
        assert len(data.layout.unique(dim=0)) > 200
        assert {tuple(row) for row in data.layout.tolist()} <= allowed
        shares[recipe] = crosses(data.positions.reshape(300, 91, 2), data.layouts()).float().mean()
    assert shares["good"] > 0.27 and shares["no_crossing"] == 0


def test_starts_in_the_wall_are_moved_to_both_sides():
    buried = torch.tensor([[32.0, 40.0]]).repeat(400, 1)
    layout = Layout.fixed(400)
    moved = free_starts(buried, layout, seeded())
    assert inside(moved, layout).all() and (moved[:, 1] == 40).all()
    assert 0.4 < (moved[:, 0] < 32).float().mean() < 0.6
    door = torch.tensor([[32.0, 10.0]])
    assert torch.equal(free_starts(door, Layout.fixed(), seeded()), door)


def numbered(lengths, layout=None):
    """Positions, and actions alike, are (trajectory, state number)."""
    rows = [(r, t) for r, length in enumerate(lengths) for t in range(length)]
    positions = torch.tensor(rows, dtype=torch.float32)
    layout = torch.tensor(layout or [[32, 10]] * len(lengths)).short()
    return Trajectories(positions, positions.clone(), torch.tensor(lengths), layout)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=12),
    size=st.integers(2, 8),
    grouped=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@example(lengths=[3, 2], size=4, grouped=0, seed=0)
def test_windows_are_exactly_those_inside_a_trajectory(lengths, size, grouped, seed):
    """F6."""
    layout = [[20 + (7 * r) % 3, 10] for r in range(len(lengths))]
    data = numbered(lengths, layout)
    wanted = {(r, t) for r, n in enumerate(lengths) for t in range(n - size + 1)}
    if not wanted:
        refused(ValueError, f"{size} states: the longest has {max(lengths)}$", Windows, data, size)
        return
    windows = Windows(data, size)
    assert len(windows) == len(wanted)
    batch = windows.at(torch.arange(len(windows)))
    assert {tuple(row) for row in batch.positions[:, 0].int().tolist()} == wanted
    drawn = windows.sample(16, seeded(seed), grouped)
    if grouped:  # from so many layouts, one after the other
        count, pairs = min(grouped, len({layout[r][0] for r, _ in wanted})), drawn.layout.pairs()
        assert len(pairs.unique(dim=0)) == count
        assert torch.equal(pairs, pairs[:count].repeat(16, 1)[:16])
    for part in (batch, drawn):
        assert (part.positions[..., 0] == part.positions[:, :1, 0]).all()
        assert (part.positions[:, 1:, 1] - part.positions[:, :-1, 1] == 1).all()
        assert torch.equal(part.actions, part.positions[:, :-1])
        row = part.positions[:, 0, 0].long()
        assert torch.equal(part.layout.pairs(), torch.tensor(layout)[row].float())


def test_sampling_is_uniform():
    windows = Windows(numbered([3, 20, 2, 7]), 3)
    batch = windows.sample(40_000, seeded())
    count = torch.bincount((batch.positions[:, 0, 0] * 100 + batch.positions[:, 0, 1]).long())
    count = count[count > 0]
    assert len(count) == len(windows) == 1 + 18 + 5
    assert float(count.min()) > 0.85 * 40_000 / 24 and float(count.max()) < 1.15 * 40_000 / 24


def test_split_keeps_trajectories_whole_and_apart():
    """F13."""
    data = numbered([5, 9, 3, 4, 8, 6, 7, 5, 5, 5])
    train, validation = data.split(0.3, seed=1)
    assert (train.count, validation.count) == (7, 3)
    names = []
    for part, row in [(train, row) for row in range(7)] + [(validation, row) for row in range(3)]:
        positions, actions = part.one(row)
        names += positions[:1, 0].int().tolist()
        assert positions[:, 1].tolist() == list(range(len(positions)))
        assert len(actions) == len(positions) - 1 == data.lengths[names[-1]] - 1
    assert sorted(names) == list(range(10))
    again = data.split(0.3, seed=1)[1]
    assert again.hash() == validation.hash() != data.split(0.3, seed=2)[1].hash()
    tiny = numbered([4, 4]).split(0.05, seed=0)
    assert (tiny[0].count, tiny[1].count) == (1, 1)
    for part, share in ((numbered([4]), 0.05), (data, 0.0)):
        assert part.split(share, seed=0) == (part, None)  # D2: nothing is held out, and said so


def test_folder_round_trip_is_memory_mapped(tmp_path):
    data = generate("good", 3_000, "random", seed=4)
    data.save(tmp_path / "data")
    again = Trajectories.load(tmp_path / "data")
    assert again.hash() == data.hash() == again.meta["hash"]
    again.positions[0] = -1  # copy-on-write: the file stays as it is
    assert Trajectories.load(tmp_path / "data").hash() == data.hash()


def test_incomplete_or_damaged_folders_are_refused(tmp_path):
    folder = generate("good", 300).save(tmp_path / "data")
    path = folder / "meta.json"
    other = json.loads(path.read_text())
    other["sizes"]["actions"] = [1, 2]
    cut = folder / "positions.npy"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-100])
    refused(FileError, "not a whole", Trajectories.load, folder)
    cut.write_bytes(whole)
    path.unlink()  # killed while saving: it is written last
    refused(FileError, "No such file", Trajectories.load, folder)
    for content, message in (
        (json.dumps(other), r"size in meta.json"),
        ("[1]", "describes no trajectories"),
        ('{"sizes": 3}', "describes no trajectories"),
    ):
        path.write_text(content)
        refused(FileError, message, Trajectories.load, folder)


def test_normaliser_statistics_and_round_trips():
    """PL5, F14."""
    data = generate("good", 90 * 150, seed=3)
    normaliser = Normaliser.fit(data, seed=0)
    stored = from_dict(Normaliser, json.loads(json.dumps(to_dict(normaliser))))
    assert stored == normaliser == Normaliser.fit(data, seed=0)
    frames = render(data.positions[::20], data.layouts(slice(0, 1))).float()
    for name, measure, error in (("mean", torch.mean, 0.01), ("std", torch.std, 0.02)):
        unit = torch.tensor(normaliser.pixel_std)
        gap = measure(frames, (0, 2, 3)) - torch.tensor(getattr(stored, f"pixel_{name}"))
        assert ((gap / unit).abs() < error).all()
    for change, message in (
        ({"pixel": [1.0]}, "unknown key 'pixel'"),
        ({"pixel_std": [0.0, 1.0]}, "pixel_std must lie in"),
        ({"action_mean": [float("nan"), 1.0]}, "action_mean must lie in"),
        ({"position_mean": []}, "position_mean must be"),
    ):
        refused(ValueError, message, from_dict, Normaliser, to_dict(normaliser) | change)
    used = torch.arange(len(data.actions)) % 91 != 90
    for rows, name in ((data.actions[used], "action"), (data.positions, "position")):
        std, mean = torch.std_mean(rows.double(), 0)
        assert getattr(stored, f"{name}_mean") == pytest.approx(mean.tolist())
        assert getattr(stored, f"{name}_std") == pytest.approx(std.tolist(), rel=1e-3)


def test_motion_samples_stay_inside_their_trajectory():
    """F6."""
    walks = tiny_data()
    moves, states = measures.motion(walks, limit=3), int(walks.lengths[:3].sum())
    lengths = [len(moves.positions), len(moves.steps), len(moves.turns)]
    assert lengths == [states, states - 3, states - 6]
    assert moves.turns.abs().max() <= 180
    one, two = walks.one(0)[1][:2].double()
    cross, dot = one[0] * two[1] - one[1] * two[0], (one * two).sum()
    assert moves.turns[0] == pytest.approx(float(torch.atan2(cross, dot).rad2deg()), abs=1e-3)


REFERENCE = os.environ.get("HJEPA_REFERENCE_DATA", "")
GOOD = "wall/good_quality_data_no_images.npz"
ASKED = DataConfig(source="published", transitions=20)


def arrays(trajectories=3):
    """Of ten states each."""
    data = generate("good", 90 * trajectories)
    rows = (torch.arange(trajectories)[:, None] * 91 + torch.arange(10)).flatten()
    terminals = (np.arange(len(rows)) % 10 == 9).astype(np.float32)
    actions, locations = (one[rows].numpy() for one in (data.actions, data.positions))
    return {"actions": actions, "locations": locations, "terminals": terminals}


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
    """Function of a transport -> a mock; the cache is empty."""
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "cache"))

    def serve(transport):
        monkeypatch.setattr(published, "fetch", mock.Mock(side_effect=transport))
        return published.fetch

    return serve


def tar_of(name, content):
    return lambda path: archive(path, {name: content})


def test_loader_recovers_trajectories(tmp_path):
    """PL12."""
    path, content = tmp_path / "a.npz", arrays()
    data = load_npz_trajectories(files.save_npz(path, observations=np.array("unread"), **arrays(1)))
    assert data.lengths.tolist() == [10]
    data = load_npz_trajectories(files.save_npz(path, **content))
    assert data.lengths.tolist() == [10] * 3 and data.transitions == 27
    assert np.array_equal(data.positions.numpy(), content["locations"])
    positions, actions = data.one(1)
    assert np.array_equal(actions.numpy(), content["actions"][10:19])
    walked = step(positions[:-1], actions, data.layouts([1] * 9), "blocked")
    assert torch.equal(walked, positions[1:])
    assert (data.actions[[9, 19, 29]] == 0).all()  # where they led was not stored
    assert data.layout.unique(dim=0).tolist() == [[32, 10]] and data.meta["dynamics"] == "blocked"
    for transitions in (1, 8, 9, 10, 17, 18, 26, 27, 1000):
        cut = data.first(transitions)
        assert cut.transitions == min(transitions, 27)
        assert torch.equal(cut.positions, data.positions[: len(cut.positions)])
        assert (cut.actions[cut.lengths.cumsum(0) - 1] == 0).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("actions", None, "no array 'actions'"),
        ("terminals", put(12, 1), "of one length"),
        ("terminals", put(-1, 0), "the last one in the last row"),
        ("terminals", put(slice(None), 0), "must end trajectories"),
        ("terminals", put(slice(None), 1), "of 2 rows or more"),
        ("terminals", lambda x: x[:, None], r"actions must be \(N, 2\)"),
        ("actions", put((4, 1), np.nan), "actions must be finite numbers"),
        ("actions", lambda x: x.astype(str), "actions must be finite numbers"),
        ("actions", lambda x: x[:-1], r"got \(29, 2\) for terminals"),
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
    refused(FileError, message, load_npz_trajectories, path)


def test_download_once_record_and_verify(serve, tmp_path):
    """D4."""
    fetch, path = serve(tar_of(GOOD, npz_bytes(**arrays()))), tmp_path / "cache/wall_data.tar.gz"
    for _ in range(2):
        data = acquire(ASKED, 0)
        assert data.transitions == 20 and "fallback" not in data.meta
    assert fetch.call_count == 1
    assert files.read_json(f"{path}.sha256.json")["sha256"] == files.sha256(path)
    path.write_bytes(b"changed")
    serve(tar_of("x", b"y"))
    for _ in range(2):  # changed in the cache, then other content than before
        refused(FileError, "does not match the SHA-256", published.download)
        path.unlink(missing_ok=True)
    assert published.fetch.call_count == 1


def offline(path):
    raise published.NoNetwork("download of wall_data.tar.gz failed: no network")


def web_page(path):
    path.write_text("<html>quota exceeded</html>")


def cut_short(path):
    """The beginning of an archive, which tarfile opens without complaint."""
    archive(path, {"big.npz": np.random.RandomState(0).bytes(400_000)})
    path.write_bytes(path.read_bytes()[:300_000])


def full_disk(path):
    raise FileError(f"cannot write {path}: No space left on device")


def test_only_a_missing_network_falls_back_to_generated_data(serve, capsys, workspace_of):
    """D3."""
    serve(offline)
    data = acquire(replace(ASKED, transitions=500), 3)
    line = data.meta["fallback"]
    assert line.startswith("published data unavailable, generated instead: ") and "\n" not in line
    assert capsys.readouterr().out == line + "\n" and data.meta["source"] == "generated"
    assert data.hash() == generate("good", 500, seed=3).hash()
    assert generate("good", 100, source="maze").meta["dynamics"] == "slide"  # it said blocked
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
        (offline, "random", "random was not published"),
    ],
)
def test_other_failures_are_errors_and_nothing_is_recorded_of_half_a_file(
    serve, tmp_path, transport, recipe, reason
):
    """D3."""
    serve(transport)
    refused(files.WorkbookError, reason, acquire, replace(ASKED, recipe=recipe), 3)
    if transport in (web_page, cut_short, full_disk):
        assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


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
        refused(FileError, message, extract, folder / name, f"{member}.npz")
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
        refused(files.WorkbookError, message, acquire, DataConfig(source=str(source), **change), 0)


@pytest.mark.skipif(not REFERENCE, reason="HJEPA_REFERENCE_DATA is not set")
def test_blocked_dynamics_reproduce_every_transition():
    reference = load_npz_trajectories(Path(REFERENCE) / "pldm_good_256x91_no_images.npz")
    positions = reference.positions.reshape(256, 90, 2)
    before, after = positions[:, :-1].reshape(-1, 2), positions[:, 1:].reshape(-1, 2)
    action = reference.actions.reshape(256, 90, 2)[:, :-1].reshape(-1, 2)
    layout = reference.layouts(slice(0, 1)).index([0] * len(before))
    assert torch.equal(step(before, action, layout, "blocked"), after)


LENGTHS = [5, 3, 4]
ENDS = np.cumsum(LENGTHS) - 1


def columns():
    """Three episodes of 20 x 24 px in 3 channels, with 4 action components."""
    numbers, total = np.random.default_rng(0), sum(LENGTHS)
    action = numbers.normal(size=(total, 4)).astype(np.float32)
    action[ENDS] = np.nan
    return {
        "pixels": numbers.integers(0, 256, (total, 20, 24, 3), np.uint8),
        "action": action,
        "ep_len": np.array(LENGTHS, np.int32),
        "ep_offset": np.array([0, 5, 8], np.int64),
        "state": numbers.normal(size=(total, 5)).astype(np.float32),
        "reward": numbers.normal(size=total),
    }


def h5_file(path, **content):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values
    return str(path)


def npz_content():
    found = columns()
    actions = np.where(np.isnan(found["action"]), 7, found["action"])
    terminals = np.isin(np.arange(sum(LENGTHS)), ENDS)
    names = {"observations": found["pixels"], "actions": actions, "terminals": terminals}
    return names | {"qpos": found["state"]}


def minari_source(tmp_path, monkeypatch, wanted):
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = []
    for end, length in zip(ENDS + 1, LENGTHS, strict=True):
        part, never = slice(end - length, end), [False] * (length - 1)
        seen = {"image": wanted["pixels"][part], "state": wanted["state"][part]}
        told = {"rewards": [0.0] * (length - 1), "terminations": never}
        told["truncations"] = [*never[1:], True]
        actions = wanted["action"][part][:-1]
        buffers.append(EpisodeBuffer(observations=seen, actions=actions, **told))
    picture, state = spaces.Box(0, 255, (20, 24, 3), np.uint8), spaces.Box(-9, 9, (5,))
    minari.create_dataset_from_buffers(
        "hjepa/test-v0", buffers, action_space=spaces.Box(-9, 9, (4,)), jpeg_encoding=False,
        observation_space=spaces.Dict({"image": picture, "state": state}),
    )  # fmt: skip
    return "minari:hjepa/test-v0"


@pytest.mark.parametrize("form", ["h5", "npz", "minari"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari misses an author
def test_every_form_is_read_alike(form, tmp_path, monkeypatch):
    wanted, position = columns(), "state:1,3"
    if form == "h5":
        source = h5_file(tmp_path / "a.h5", **wanted)
    elif form == "npz":
        np.savez_compressed(tmp_path / "a.npz", **npz_content())
        source, position = str(tmp_path / "a.npz"), "qpos:1,3"
    else:
        source = minari_source(tmp_path, monkeypatch, wanted)
    monkeypatch.setattr(readers, "_PIECE", 3 * 20 * 24 * 2)  # two frames a piece
    found = readers.read(source, position)
    assert found.lengths.tolist() == LENGTHS and found.shape == (3, 20, 24)
    assert np.array_equal(found.actions, np.nan_to_num(wanted["action"]))
    assert np.array_equal(found.positions, wanted["state"][:, [1, 3]])
    pieces = [*found.pieces()]
    assert max(map(len, pieces)) <= (5 if form == "minari" else 2)  # by windows, never whole
    assert np.array_equal(np.concatenate(pieces), np.moveaxis(wanted["pixels"], -1, 1))
    assert readers.read(source).positions.shape == (sum(LENGTHS), 0)


def test_positions_are_named(tmp_path):
    content = columns()
    content["pixels"] = np.moveaxis(content["pixels"], -1, 1)
    path = h5_file(tmp_path / "a.hdf5", **content)
    assert readers.read(path).shape == (3, 20, 24)  # channels may come first
    for position, picked in (("0, 1", [0, 1]), ("state", [0, 1]), ("state:4,2", [4, 2])):
        assert np.array_equal(readers.read(path, position).positions, content["state"][:, picked])
    for position, message in (
        ("proprio", "no column 'proprio'"),
        ("state:0,5", r"must be \(12, 6 or more\)"),
        ("reward", r"must be \(12, 2 or more\)"),
        ("state:0", "data.position must name two components"),
        ("state:x,y", "data.position must name two components"),
        ("action", "the position of row 4 is not finite"),
    ):
        refused(FileError, message, readers.read, path, position)


@pytest.mark.parametrize("world", ["rendered", "recorded"])
def test_what_is_written_is_read_back(world, tmp_path):
    pytest.importorskip("h5py")
    data = generate("good", 400, "random", seed=1)
    if world == "recorded":
        frames = np.random.default_rng(0).integers(0, 256, (6, 9, 16, 18), np.uint8)
        store = Record.write(tmp_path / "frames.npy", [frames[:4], frames[4:]], frames.shape)
        actions, layout = torch.ones(6, 3), torch.zeros(2, 2, dtype=torch.int16)
        data = Trajectories(torch.ones(6, 0), actions, torch.tensor([2, 4]), layout, {}, store)
        data.actions[[1, 5]] = 0
    path = readers.write_h5(tmp_path / "a.h5", data)
    found = readers.read(str(path), "state" if world == "rendered" else "")
    assert found.lengths.tolist() == data.lengths.tolist() and found.shape == data.frame_shape
    assert np.array_equal(found.actions, data.actions.numpy())
    assert np.array_equal(found.positions, data.positions.numpy())
    drawn = data.frames(torch.arange(len(data.actions))).numpy()
    assert np.array_equal(np.concatenate([*found.pieces()]), drawn)
    refused(FileError, r"a.h5 exists: name another file", readers.write_h5, path, data)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("action", None, "lacks the column 'action'"),
        ("ep_len", None, "lacks the column 'ep_len'"),
        ("action", put(2, np.nan), "action of row 2 is not finite"),
        ("action", lambda x: np.nan_to_num(x).astype(int), "must be .* real numbers"),
        ("action", lambda x: x[:-1], "12 states in episodes, 11 actions"),
        ("pixels", lambda x: x[:-2], "12 actions, 10 frames"),
        ("pixels", lambda x: x.astype(np.float32), "got .* float32"),
        ("pixels", lambda x: x[..., 0], "frames must be"),
        ("pixels", lambda x: np.concatenate([x] * 6, -1), "with 1 to 16 channels, got"),
        ("ep_offset", put(1, 4), "episodes must follow one another"),
        ("ep_len", lambda x: x[:0], "episodes must follow one another"),
        ("terminals", put(-1, False), "must end the last episode"),
        ("terminals", put(0, True), "an episode needs two states or more"),
        ("observations", lambda x: x[:, 0, 0] / 3, "frames must be"),
        ("observations", lambda x: np.asfortranarray(x), "numbers in C order"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(name, change, message, tmp_path):
    npz = name in ("terminals", "observations")
    content = npz_content() if npz else columns()
    values = content.pop(name)
    if change is not None:
        content[name] = change(values)
    write, end = (files.save_npz, "npz") if npz else (h5_file, "h5")
    path = str(write(tmp_path / f"a.{end}", **content))
    with pytest.raises(FileError, match=message) as caught:
        readers.read(path)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_no_hdf5_a_cut_one_none_and_no_reader_for_it(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    h5_file(path, **columns())
    path.write_bytes(path.read_bytes()[:3000])
    for content, message in ((None, "truncated file"), (b"GIF89a", "no HDF5 file")):
        if content:
            path.write_bytes(content)
        refused(FileError, message, readers.read, str(path))
    refused(FileError, r"cannot read .*: No such file", readers.read, str(tmp_path / "b.h5"))
    for module, source, name in (("h5py", path, "h5"), ("minari", "minari:a-v0", "minari")):
        monkeypatch.setitem(sys.modules, module, None)
        refused(FileError, rf"{module} is not installed: .*\[{name}\]", readers.read, str(source))


def test_what_is_no_recording(tmp_path, monkeypatch):
    walk = files.save_npz(tmp_path / "a.npz", locations=[0.0], observations=[0], actions=[0])
    for source in ("generated", "published", "module:Class", str(walk), "none.npz"):
        assert not readers.is_recording(source)
    episode = types.SimpleNamespace(id=3, observations=np.zeros((4, 9)), actions=np.zeros((4, 2)))
    episodes = types.SimpleNamespace(iterate_episodes=lambda: iter([episode]))
    fake = types.SimpleNamespace(load_dataset=lambda name: episodes)
    monkeypatch.setitem(sys.modules, "minari", fake)
    refused(FileError, "4 observations need 3 actions", readers.read, "minari:a-v0")
    episode.actions = np.zeros((3, 2))
    refused(FileError, r"frames must be .* got \(4, 9\) float64", readers.read, "minari:a-v0")
