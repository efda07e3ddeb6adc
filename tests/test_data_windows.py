"""Trajectories on disk, splits, windows and the normaliser."""

import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import seeded, tiny_data

from hjepa_lib.config import from_dict, to_dict
from hjepa_lib.data import measures
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.files import FileError
from hjepa_lib.worlds.rendering import render


def numbered(lengths, layout=None):
    """Positions (trajectory, state number) and actions equal to them: every index is visible."""
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
    """F6: no window crosses an episode end, and none is missing."""
    layout = [[20 + (7 * r) % 3, 10] for r in range(len(lengths))]
    data = numbered(lengths, layout)
    wanted = {(r, t) for r, n in enumerate(lengths) for t in range(n - size + 1)}
    if not wanted:
        with pytest.raises(ValueError, match=f"{size} states: the longest .* has {max(lengths)}$"):
            Windows(data, size)
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


def test_sampling_is_uniform_and_seeded():
    windows = Windows(numbered([3, 20, 2, 7]), 3)
    batch = windows.sample(40_000, seeded())
    count = torch.bincount((batch.positions[:, 0, 0] * 100 + batch.positions[:, 0, 1]).long())
    count = count[count > 0]
    assert len(count) == len(windows) == 1 + 18 + 5
    assert float(count.min()) > 0.85 * 40_000 / 24 and float(count.max()) < 1.15 * 40_000 / 24
    one, again, other = (windows.sample(5, seeded(seed)).positions for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_split_keeps_trajectories_whole_and_apart():
    """F13: seeded, by episode."""
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
    assert again.meta["recipe"] == "good" and again.meta["dynamics"] == "blocked"
    assert again.transitions == 3_000 == again.meta["transitions"]
    again.positions[0] = -1  # copy-on-write: the file stays as it is
    assert Trajectories.load(tmp_path / "data").hash() == data.hash()


def test_incomplete_or_damaged_folders_are_refused(tmp_path):
    folder = generate("good", 300).save(tmp_path / "data")
    meta, whole = ((folder / name).read_bytes() for name in ("meta.json", "positions.npy"))
    other = json.loads(meta)
    other["sizes"]["actions"] = [1, 2]
    for name, content, good, message in (
        ("meta.json", None, meta, "No such file"),  # killed while saving: meta is written last
        ("positions.npy", whole[:-100], whole, "not a whole"),
        ("meta.json", json.dumps(other).encode(), meta, r"size in meta.json"),
        ("meta.json", b"[1]", meta, "describes no trajectories"),
        ("meta.json", b'{"sizes": 3}', meta, "describes no trajectories"),
    ):
        path = folder / name
        path.unlink()
        if content:
            path.write_bytes(content)
        with pytest.raises(FileError, match=message):
            Trajectories.load(folder)
        path.write_bytes(good)


def test_normaliser_statistics_and_round_trips():
    """PL5: computed once, stored, enough without the data set; F14: pixels in their units."""
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
        with pytest.raises(ValueError, match=message):
            from_dict(Normaliser, to_dict(normaliser) | change)
    used = torch.arange(len(data.actions)) % 91 != 90
    for rows, name in ((data.actions[used], "action"), (data.positions, "position")):
        std, mean = torch.std_mean(rows.double(), 0)
        assert getattr(stored, f"{name}_mean") == pytest.approx(mean.tolist())
        assert getattr(stored, f"{name}_std") == pytest.approx(std.tolist(), rel=1e-3)


def test_motion_samples_stay_inside_their_trajectory():
    """F6 in the statistics: a turn between two trajectories would be no turn."""
    walks = tiny_data()
    moves, states = measures.motion(walks, limit=3), int(walks.lengths[:3].sum())
    assert [len(moves.positions), len(moves.steps), len(moves.turns)] == [
        states,
        states - 3,
        states - 6,
    ]
    assert moves.turns.abs().max() <= 180
    one, two = walks.one(0)[1][:2].double()
    cross, dot = one[0] * two[1] - one[1] * two[0], (one * two).sum()
    assert moves.turns[0] == pytest.approx(float(torch.atan2(cross, dot).rad2deg()), abs=1e-3)
