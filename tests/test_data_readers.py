"""Recorded frames from HDF5, npz and Minari, and the writer of the first."""

import sys
import types

import numpy as np
import pytest
import torch
from tiny import put

from hjepa_lib import files
from hjepa_lib.data import readers
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Record, Trajectories
from hjepa_lib.files import FileError

LENGTHS = [5, 3, 4]
ENDS = np.cumsum(LENGTHS) - 1


def columns(seed=0):
    """Three episodes of 20 x 24 px frames with 3 channels and 4 action components."""
    numbers, total = np.random.default_rng(seed), sum(LENGTHS)
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


def npz_content(seed=0):
    """The same in the form of OGBench, as a compressed file has it."""
    found = columns(seed)
    actions = np.where(np.isnan(found["action"]), 7, found["action"])
    terminals = np.isin(np.arange(sum(LENGTHS)), ENDS)
    names = {"observations": found["pixels"], "actions": actions, "terminals": terminals}
    return names | {"qpos": found["state"]}


def minari_source(tmp_path, monkeypatch, wanted):
    """A data set made on this machine, with dictionaries as observations."""
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers, end = [], 0
    for length in LENGTHS:
        part = slice(end, end + length)
        end += length
        buffers.append(
            EpisodeBuffer(
                observations={"image": wanted["pixels"][part], "state": wanted["state"][part]},
                actions=wanted["action"][part][:-1],
                rewards=[0.0] * (length - 1),
                terminations=[False] * (length - 1),
                truncations=[False] * (length - 2) + [True],
            )
        )
    picture, state = (spaces.Box(0, 255, (20, 24, 3), np.uint8), spaces.Box(-9, 9, (5,)))
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
    assert readers.is_recording(source)
    found = readers.read(source, position)
    assert found.lengths.tolist() == LENGTHS and found.shape == (3, 20, 24)
    assert np.array_equal(found.actions, np.nan_to_num(wanted["action"]))
    assert found.actions.dtype == np.float32
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
        ("proprio", "no column 'proprio' .* it has: action, reward, state"),
        ("state:0,5", r"state must be \(12, 6 or more\) numbers, got \(12, 5\)"),
        ("reward", r"reward must be \(12, 2 or more\) numbers, got \(12,\)"),
        ("state:0", "data.position must name two components"),
        ("state:x,y", "data.position must name two components"),
        ("action", "the position of row 4 is not finite"),
    ):
        with pytest.raises(FileError, match=message):
            readers.read(path, position)


@pytest.mark.parametrize("world", ["rendered", "recorded"])
def test_what_is_written_is_read_back(world, tmp_path):
    pytest.importorskip("h5py")
    data = generate("good", 400, "random", seed=1)
    if world == "recorded":
        frames = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 18), np.uint8)
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
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"a.h5 exists: name another file"):
        readers.write_h5(path, data)
    assert path.read_bytes() == before and not [*tmp_path.glob(".*")]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("action", None, "lacks the column 'action'; it has: ep_len, ep_offset"),
        ("ep_len", None, "lacks the column 'ep_len'"),
        ("action", put(2, np.nan), "the action of row 2 is not finite; only the last one"),
        ("action", lambda x: np.nan_to_num(x).astype(int), "must be .* real numbers, got .* int64"),
        ("action", lambda x: x[:-1], "12 states in episodes, 11 actions, 12 frames"),
        ("pixels", lambda x: x[:-2], "12 states in episodes, 12 actions, 10 frames"),
        ("pixels", lambda x: x.astype(np.float32), r"uint8 with 1 to 3 channels, got .* float32"),
        ("pixels", lambda x: x[..., 0], r"frames must be \(N, H, W, C\) uint8"),
        ("pixels", lambda x: np.concatenate([x, x], -1), "with 1 to 3 channels, got"),
        ("ep_offset", put(1, 4), "episodes must follow one another"),
        ("ep_len", lambda x: x[:0], "episodes must follow one another"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(name, change, message, tmp_path):
    content = columns()
    values = content.pop(name)
    if change is not None:
        content[name] = change(values)
    path = h5_file(tmp_path / "a.h5", **content)
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
        with pytest.raises(FileError, match=message):
            readers.read(str(path))
    with pytest.raises(FileError, match=r"cannot read .*: No such file"):
        readers.read(str(tmp_path / "b.h5"))
    for module, source, name in (("h5py", path, "h5"), ("minari", "minari:a-v0", "minari")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(FileError, match=rf"{module} is not installed: .*\[{name}\]"):
            readers.read(str(source))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("terminals", put(-1, False), "terminals must end the last episode in the last row"),
        ("terminals", put(0, True), "an episode needs two states or more"),
        ("observations", lambda x: x[:, 0, 0] / 3, r"frames must be .* got \(12, 3\) float64"),
        ("observations", lambda x: np.asfortranarray(x), "numbers in C order"),
    ],
)
def test_what_is_wrong_with_an_npz_is_one_sentence(name, change, message, tmp_path):
    content = npz_content()
    content[name] = change(content[name])
    path = files.save_npz(tmp_path / "a.npz", **content)
    with pytest.raises(FileError, match=message):
        readers.read(str(path))


def test_what_is_no_recording(tmp_path, monkeypatch):
    walk = files.save_npz(tmp_path / "a.npz", locations=[0.0], observations=[0], actions=[0])
    for source in ("generated", "published", "module:Class", str(walk), "none.npz"):
        assert not readers.is_recording(source)
    episode = types.SimpleNamespace(id=3, observations=np.zeros((4, 9)), actions=np.zeros((4, 2)))
    episodes = types.SimpleNamespace(iterate_episodes=lambda: iter([episode]))
    fake = types.SimpleNamespace(load_dataset=lambda name: episodes)
    monkeypatch.setitem(sys.modules, "minari", fake)
    with pytest.raises(FileError, match="4 observations need 3 actions, got 4 in episode 3"):
        readers.read("minari:a-v0")
    episode.actions = np.zeros((3, 2))
    with pytest.raises(FileError, match=r"frames must be .* got \(4, 9\) float64"):
        readers.read("minari:a-v0")
