"""Transitions, collection, load rules, distribution check, inspection and sample figures."""

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hjepa_lib.config import profile
from hjepa_lib.config.fields import ConfigError
from hjepa_lib.figures.style import FigureError, png
from hjepa_lib.files import FileError, save_npy
from hjepa_lib.pixels import checks as distribution
from hjepa_lib.pixels import collect as collecting
from hjepa_lib.pixels import figures
from hjepa_lib.pixels.checks import check_distributions, compare, embed, inspect, summarise
from hjepa_lib.pixels.collect import Recorder, acquire, collect, record
from hjepa_lib.pixels.env import make_env, stack_frames
from hjepa_lib.pixels.transitions import DataError, Transitions, check_state


def settings(**changes):
    """Ten short episodes of Drift at 16 px."""
    small = {"pixels.environment.image_size": 16, "pixels.environment.max_steps": 12}
    changes = {f"pixels.{key.replace('__', '.')}": value for key, value in changes.items()}
    return profile("smoke").override(small | {"pixels.data.transitions": 0} | changes).pixels


@pytest.fixture(scope="module")
def drift():
    return collect(settings(), 0)


def numbered(lengths, stack=3, skip=0):
    """Transitions whose frames hold the running number of the frame."""
    count = sum(length * (skip + 1) + 1 for length in lengths)
    frames = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    rows, origin = [], 0
    for episode, length in enumerate(lengths):
        for step in range(length):
            now = origin + step * (skip + 1)
            rows.append((now, now + skip + 1, origin, episode))
        origin += length * (skip + 1) + 1
    now, after, first, episode = torch.tensor(rows).T
    return Transitions(
        frames=frames.contiguous(), now=now, after=after, origin=first,
        action=torch.arange(len(rows)) % 4, reward=torch.arange(len(rows)).float(),
        episode=episode, action_kind="discrete", action_dim=4, stack=stack,
    )  # fmt: skip


def shown(states):
    return states[..., 0, 0, 0].tolist()


# --- transitions (DATA-3, DATA-7) -------------------------------------------------------------
def test_batch_has_the_agreed_shapes_and_types(drift):
    batch = drift.batch(torch.tensor([0, 5, 30]))
    assert batch.state.shape == batch.next_state.shape == (3, 4, 1, 16, 16)
    assert batch.state.dtype == torch.uint8 and batch.action.dtype == torch.int64
    assert batch.reward.shape == (3,) and batch.reward.dtype == torch.float32
    assert (drift.action_kind, drift.action_dim, drift.stack) == ("discrete", 5, 4)
    assert (drift.channels, drift.image_size, len(drift)) == (1, 16, 120)


def test_stacks_repeat_the_first_frame_and_stay_in_their_episode():
    data = numbered([3, 2])  # frames 0..3 and 4..6
    batch = data.batch(torch.arange(5))
    assert shown(batch.state) == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [4, 4, 4], [4, 4, 5]]
    assert shown(batch.next_state) == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 5], [4, 5, 6]]


def test_the_predicted_image_is_the_last_of_the_next_state(drift):
    batch = drift.batch(torch.arange(11))
    assert torch.equal(batch.next_state[:-1, -1], batch.state[1:, -1])
    assert not torch.equal(batch.next_state[:, -1], batch.state[:, -1])


def test_gathered_stacks_are_those_of_the_environment():
    config = settings(data__episodes=2)
    data = collect(config, 3)
    env = stack_frames(make_env(config.environment), 4)
    env.action_space.seed(3)
    state, _ = env.reset(seed=3)
    for row in range(12):
        batch = data.batch(torch.tensor([row]))
        assert np.array_equal(batch.state[0].numpy(), state)
        state, reward, *_ = env.step(int(batch.action[0]))
        assert np.array_equal(batch.next_state[0].numpy(), state)
        assert reward == pytest.approx(float(batch.reward[0]))


def test_check_state_names_both_shapes():
    with pytest.raises(DataError) as caught:
        check_state(torch.zeros(4, 64, 64), (4, 1, 64, 64))
    assert "(4, 1, 64, 64)" in str(caught.value) and "(4, 64, 64)" in str(caught.value)
    check_state(torch.zeros(7, 5, 4, 1, 64, 64), (4, 1, 64, 64))


def test_a_wrong_frame_from_the_environment_names_both_shapes(drift):
    recorder = Recorder(make_env(settings().environment).action_space, (4, 1, 16, 16))
    with pytest.raises(DataError, match=r"\(4, 1, 16, 16\), got \(4, 1, 16, 17\)"):
        recorder.begin(np.zeros((4, 1, 16, 17), np.uint8))


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_one_sentence(reward):
    recorder = Recorder(make_env(settings().environment).action_space, (1, 1, 16, 16))
    recorder.begin(np.zeros((1, 1, 16, 16), np.uint8))
    with pytest.raises(DataError, match="the environment returned the reward"):
        recorder.add(0, reward, [np.zeros((1, 1, 16, 16), np.uint8)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"frames": torch.zeros(9, 8, 8, dtype=torch.uint8)}, r"frames must be \(F, C, H, W\)"),
        ({"frames": torch.zeros(9, 1, 8, 8)}, "uint8"),
        ({"reward": torch.tensor([0.0] * 4 + [math.nan])}, "NaN"),
        ({"reward": torch.zeros(4)}, "rows"),
        ({"stack": 0}, "at least one frame"),
        ({"action": torch.tensor([0, 1, 2, 3, 4])}, r"outside 0\.\.3"),
        ({"action": torch.tensor([0, 1, 2, 3, -1])}, r"outside 0\.\.3"),
        ({"action": torch.zeros(5)}, "cannot be"),
        ({"action_kind": "both"}, "both actions"),
        ({"action_kind": "continuous", "action": torch.zeros(5, 3)}, r"shape \(4,\), got \(3,\)"),
        ({"action_kind": "continuous", "action": torch.full((5, 4), math.inf)}, "infinite"),
        ({"after": torch.tensor([1, 2, 3, 5, 99])}, "follow each other"),
        ({"origin": torch.zeros(5, dtype=torch.int64)}, "frames of its own"),
        ({"episode": torch.tensor([0, 0, 1, 1, 0])}, "follow each other"),
    ],
)
def test_inconsistent_transitions_are_one_sentence(change, sentence):
    good = numbered([3, 2])
    parts = {name: getattr(good, name) for name in good.__dataclass_fields__} | change
    with pytest.raises(DataError, match=sentence):
        Transitions(**parts)


# --- split (DATA-4, F13) ----------------------------------------------------------------------
def test_no_episode_is_in_both_parts(drift):
    train, validation = drift.split(0.2, 0)
    assert not set(train.episode.tolist()) & set(validation.episode.tolist())
    assert len(train.episodes) == 8 and len(validation.episodes) == 2
    assert len(train) + len(validation) == len(drift)


def test_split_is_shuffled_by_the_seed(drift):
    parts = [drift.split(0.3, seed)[1].episodes.tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert parts[0] != drift.episodes[:3].tolist()


def test_parts_keep_their_transitions_and_only_their_frames(drift):
    _, validation = drift.split(0.2, 0)
    rows = torch.isin(drift.episode, validation.episodes).nonzero()[:, 0]
    for mine, theirs in zip(
        validation.batch(torch.arange(len(rows))), drift.batch(rows), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert len(validation.frames) == len(validation) + len(validation.episodes)


def test_one_episode_cannot_be_split():
    with pytest.raises(DataError, match="one episode alone"):
        numbered([6]).split(0.2, 0)
    with pytest.raises(DataError, match="must lie in"):
        numbered([3, 3]).split(1.0, 0)


# --- sequences (DATA-10, F6) ------------------------------------------------------------------
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 1),
)
def test_windows_never_cross_an_episode(lengths, length, stride, skip):
    data = numbered(lengths, skip=skip)
    expected = sum(-(-(n - length + 1) // stride) for n in lengths if n >= length)
    if expected == 0:
        with pytest.raises(DataError, match=f"no episode has {length} transitions"):
            data.windows(length, stride)
        return
    first = data.windows(length, stride)
    assert len(first) == expected
    rows = first[:, None] + torch.arange(length)
    assert (data.episode[rows] == data.episode[first][:, None]).all()
    batch = data.sequence(first, length)
    assert batch.state.shape == (expected, length, 3, 1, 8, 8)
    assert torch.equal(batch.state[:, 1:, -1], batch.next_state[:, :-1, -1])


def test_a_window_across_an_end_is_refused():
    data = numbered([4, 4])
    for first in (2, 6):
        with pytest.raises(DataError, match="cross the end"):
            data.sequence(torch.tensor([first]), 3)


# --- collection (DATA-1, ENV-7) ---------------------------------------------------------------
def test_same_seed_same_data():
    one, again, other = (collect(settings(), seed) for seed in (5, 5, 6))
    assert one.sha256 == again.sha256 != other.sha256
    assert one.meta["method"] == "random" and one.meta["environment"] == "hjepa/Drift-v0"


def test_random_actions_are_uniform(drift):
    counts = torch.bincount(drift.action, minlength=5)
    assert counts.min() > 10


def test_limits_of_episodes_and_transitions():
    assert len(collect(settings(data__episodes=3), 0).episodes) == 3
    cut = collect(settings(data__transitions=30), 0)
    assert len(cut) == 30 and cut.episode.bincount().tolist() == [12, 12, 6]
    with pytest.raises(ConfigError, match="a single episode"):
        collect(settings(data__transitions=9), 0)


def test_frame_skip_stores_first_action_last_state_and_summed_reward():
    skipped = collect(settings(environment__frame_skip=1, data__episodes=2), 0)
    plain = collect(settings(data__episodes=2), 0)
    assert len(skipped) == 12 and len(skipped.frames) == len(plain.frames) == 26
    assert torch.equal(skipped.frames, plain.frames)  # the same play, other decisions
    assert torch.equal(skipped.action, plain.action[::2])
    assert torch.allclose(skipped.reward, plain.reward.view(-1, 2).sum(1))
    batch, steps = skipped.batch(torch.tensor([1])), plain.batch(torch.tensor([2, 3]))
    assert torch.equal(batch.state[0], steps.state[0])
    assert torch.equal(batch.next_state[0], steps.next_state[1])


def test_frame_skip_can_end_within_a_decision():
    data = collect(settings(environment__frame_skip=4, data__episodes=2), 0)
    assert (data.after - data.now).tolist() == [5, 5, 2] * 2


def test_colour_is_kept_on_request():
    data = collect(settings(environment__grayscale=False, data__episodes=2), 0)
    assert data.state_shape == (4, 3, 16, 16) and data.meta["grayscale"] is False


def test_continuous_actions_are_stored_as_played():
    data = collect(settings(environment__id="hjepa/TwoRooms-v0", data__episodes=2), 0)
    assert (data.action_kind, data.action_dim) == ("continuous", 2)
    assert data.action.shape == (24, 2) and data.action.abs().max() <= 2.45


def test_discrete_actions_are_stored_from_zero():
    env = make_env(settings().environment)
    env.action_space.start = np.int64(3)
    recorder = Recorder(env.action_space, (1, 1, 2, 2))
    for _ in range(2):
        recorder.begin(np.zeros((1, 1, 2, 2), np.uint8))
        recorder.add(4, 0.0, [np.zeros((1, 1, 2, 2), np.uint8)])
    assert recorder.finish(1).action.tolist() == [1, 1]


def test_the_environment_is_closed_even_after_a_failure():
    config = settings()
    env = make_env(config.environment)
    closed = []
    env.close = lambda: closed.append(True)

    def fail(_):
        raise RuntimeError("no action")

    with pytest.raises(RuntimeError):
        record(env, fail, config, 0)
    assert closed


# --- files (DATA-5) ---------------------------------------------------------------------------
def test_round_trip_with_everything_that_describes_it(drift, tmp_path):
    drift.save(tmp_path)
    loaded = Transitions.load(tmp_path)
    assert loaded.sha256 == drift.sha256
    assert loaded.meta == drift.meta
    assert torch.equal(loaded.batch(torch.arange(9)).state, drift.batch(torch.arange(9)).state)
    stored = json.loads((tmp_path / "meta.json").read_text())
    train, validation = drift.split(0.2, 0)
    assert stored["validation_episodes"] == validation.episodes.tolist()
    wanted = {
        "environment": "hjepa/Drift-v0", "method": "random", "seed": 0, "episodes": 10,
        "image_size": 16, "max_steps": 12, "validation_split": 0.2, "frame_skip": 0,
        "action_repeat": 1, "ppo": None, "transitions": 120, "train_transitions": len(train),
        "validation_transitions": len(validation), "sha256": drift.sha256,
    }  # fmt: skip
    assert {name: stored[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "meta.json").unlink(), "cannot read"),
        (lambda f: (f / "meta.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "meta.json").write_text("[]"), "holds no transitions"),
        (lambda f: (f / "meta.json").write_text('{"format": "hjepa transitions"}'), "no usable"),
        (lambda f: (f / "reward.npy").unlink(), "no such file"),
        (lambda f: (f / "frames.npy").write_bytes(b"\x93NUMPY"), "not a whole"),
        (lambda f: (f / "reward.npy").write_bytes(b"\x80\x04pickle"), "not a whole"),
        (lambda f: save_npy(f / "now.npy", np.zeros(120)), "float64"),
        (lambda f: save_npy(f / "reward.npy", np.zeros(120, np.float32)), "SHA-256"),
        (lambda f: save_npy(f / "reward.npy", np.full(120, np.nan, np.float32)), "NaN"),
    ],
)
def test_a_damaged_folder_is_one_sentence(drift, tmp_path, spoil, sentence):
    drift.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(FileError, match=sentence) as caught:
        acquire(settings(data__path=str(tmp_path)), 0)
    assert "\n" not in str(caught.value)


# --- load rules (DATA-6) ----------------------------------------------------------------------
@pytest.fixture
def stored(drift, tmp_path):
    return drift.save(tmp_path / "stored")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_a_path_data_are_collected(drift):
    data = acquire(settings(), 0)
    assert data.sha256 == drift.sha256 and data.meta["notes"] == []


def test_a_fitting_file_is_loaded(stored, drift, monkeypatch):
    monkeypatch.setattr(collecting, "collect", lambda *_: pytest.fail("nothing to collect"))
    data = acquire(settings(data__path=str(stored), environment__max_steps=9), 7)
    assert data.sha256 == drift.sha256
    assert data.meta["notes"][0] == f"loaded from {stored}" and "max_steps" in data.meta["notes"][1]
    assert data.meta["seed"] == 7 and data.meta["collected_seed"] == 0
    _, held = data.split_episodes(data.meta["validation_split"], 7)
    assert data.meta["validation_episodes"] == held.tolist()  # as this run cuts it
    longer = acquire(settings(data__path=str(stored), environment__stack=6), 7)
    assert longer.state_shape == (6, 1, 16, 16)


def test_a_missing_file_is_warned_about_and_collected(tmp_path, drift):
    with pytest.warns(UserWarning, match="does not exist"):
        data = acquire(settings(data__path=str(tmp_path / "none")), 0)
    assert data.sha256 == drift.sha256 and "does not exist" in data.meta["notes"][0]
    assert not (tmp_path / "none").exists()


def test_another_environment_is_reported_and_collected_anew(stored):
    before = contents(stored)
    data = acquire(settings(data__path=str(stored), environment__id="hjepa/Push-v0"), 0)
    assert data.meta["environment"] == "hjepa/Push-v0"
    (note,) = data.meta["notes"]
    assert "another environment, hjepa/Drift-v0 instead of hjepa/Push-v0" in note
    assert contents(stored) == before  # nothing overwritten


def test_random_data_are_rejected_when_ppo_is_wanted(stored):
    before = contents(stored)
    with pytest.raises(ConfigError, match=r"method 'random', but pixels\.data\.method=ppo"):
        acquire(settings(data__path=str(stored), data__method="ppo"), 0)
    assert contents(stored) == before


@pytest.mark.parametrize(
    ("name", "value", "shape"),
    [("image_size", 32, "(4, 1, 32, 32)"), ("grayscale", False, "(4, 3, 16, 16)")],
)
def test_another_picture_shape_names_both(stored, name, value, shape):
    with pytest.raises(DataError) as caught:
        acquire(settings(data__path=str(stored), **{f"environment__{name}": value}), 0)
    assert shape in str(caught.value) and "(4, 1, 16, 16)" in str(caught.value)


# --- distribution check (DATA-8) --------------------------------------------------------------
def normal(count, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(1 + shift, 1, count)


def test_samples_of_one_distribution_look_alike():
    check = compare("x", normal(400), normal(400, seed=1))
    assert check.alike and set(check.p_values) == {
        "kolmogorov_smirnov", "mann_whitney", "anderson_darling",
    }  # fmt: skip
    assert compare("x", normal(4000), normal(4000, seed=1), "moments").alike


def test_a_shift_is_flagged_by_every_rule():
    check = compare("x", normal(400), normal(400, 0.5, 1))
    assert check.flags == ("kolmogorov_smirnov", "mann_whitney", "anderson_darling")
    assert compare("x", normal(400), normal(400, 0.5, 1), "moments").flags == ("mean",)
    assert compare("x", normal(4000), 3 * normal(4000) - 2, "moments").flags == ("std",)


def test_empty_and_tiny_parts():
    check = compare("x", normal(9), np.array([]))
    assert check.flags == ("empty",) and check.validation.n == 0 and not check.p_values
    assert math.isnan(check.validation.mean)
    assert "anderson_darling" not in compare("x", normal(25), normal(400)).p_values
    assert "anderson_darling" in compare("x", normal(26), normal(400)).p_values
    assert compare("x", normal(1), normal(400)).p_values == {}


def test_constant_parts_are_alike():
    for rule in distribution.RULES:
        assert compare("x", np.zeros(60), np.zeros(40), rule).alike
    assert compare("x", np.zeros(60), np.ones(40)).flags
    assert compare("x", np.zeros(60), np.ones(40), "moments").flags == ("mean",)


def test_bad_values_and_rules_are_one_sentence():
    with pytest.raises(DataError, match="x holds NaN"):
        compare("x", np.array([math.nan]), normal(3))
    with pytest.raises(DataError, match="must be one of tests, moments"):
        compare("x", normal(3), normal(3), "eye")


def test_summary_of_known_values():
    assert summarise(np.array([0, 1, 2, 3, 4])) == (5, 2, math.sqrt(2), 2, 0, 4, 1, 3)


def test_transitions_are_compared_on_a_thousand_samples(drift):
    train, validation = drift.split(0.3, 0)
    checks = check_distributions(train, validation)
    assert [check.quantity for check in checks] == ["pixel", "brightness", "reward"]
    assert checks[0].train.n == len(train) and checks[0].train.max <= 1
    assert check_distributions(train, validation, samples=30)[2].train.n == 30
    brighter = Transitions(
        **{n: getattr(validation, n) for n in validation.__dataclass_fields__ if n != "frames"},
        frames=validation.frames // 2 + 100,
    )
    flagged = {check.quantity for check in check_distributions(train, brighter) if check.flags}
    assert {"pixel", "brightness"} <= flagged
    table = distribution.table(checks)
    assert list(table.index) == ["pixel", "brightness", "reward"] and "flags" in table.columns


def test_embedding_has_a_point_per_frame(drift):
    found = embed(*drift.split(0.3, 0), samples=20)
    assert found.pca.shape == found.tsne.shape == (40, 2)
    assert found.held_out.tolist() == [False] * 20 + [True] * 20
    assert np.isfinite(found.tsne).all()
    assert embed(*numbered([2, 2]).split(0.5, 0)).tsne is None


# --- inspection and figures (DATA-9, F14) -----------------------------------------------------
def test_inspection_counts_what_is_there():
    facts = inspect(numbered([4, 2]))
    assert facts["transitions"] == 6 and facts["episode length"] == "2 to 4"
    assert facts["state"] == "(3, 1, 8, 8) uint8" and facts["actions used"] == "all"
    assert facts["pixel range"] == "0 to 7" and facts["non-zero rewards"] == 5
    assert facts["pixels that change per step"] == 1
    assert facts["mean change of a pixel"] == pytest.approx(1 / 255)
    assert facts["steps without any change"] == 0


def test_fifty_samples_are_written(drift, tmp_path):
    paths = figures.save_samples(drift, tmp_path)
    assert len(paths) == len(list(tmp_path.iterdir())) == 50
    assert figures.save_samples(drift, tmp_path / "few", count=3)[2].name == "sample_02.png"


def test_golden_strip_shows_every_frame_at_its_brightness():
    """F14: level 51 of 255 is drawn as 51, whatever else is in the picture."""
    levels = torch.tensor([0, 51, 102, 153], dtype=torch.uint8)
    state = levels[:, None, None, None].expand(4, 1, 8, 8)
    after = torch.full((4, 1, 8, 8), 204, dtype=torch.uint8)
    image = np.array(Image.open(io.BytesIO(figures.sample_strip(state, after))))
    assert image.shape == (16, 5 * 16 + 6 * 4, 3)
    seen = [image[8, 8 + place, 0] for place in (0, 20, 40, 60, 88)]
    assert seen == [0, 51, 102, 153, 204] and image[0, 17, 0] == 255


def test_bytes_and_floats_are_drawn_alike_on_a_fixed_scale():
    frame = torch.full((1, 8, 8), 51, dtype=torch.uint8)
    assert figures.to_image(frame) == pytest.approx(0.2)
    assert figures.to_image(frame.float() / 255) == pytest.approx(0.2)
    figure = figures.frame_grid([[frame]])
    (drawn,) = figure.axes[0].images
    assert drawn.get_clim() == (0, 1)
    assert figures.to_image(torch.full((3, 8, 8), 1.3)).max() == 1  # an overshooting prediction


@pytest.mark.parametrize(
    "frame",
    [
        torch.full((1, 8, 8), 255.0),
        torch.zeros(8, 8),
        torch.zeros(4, 8, 8),
        torch.tensor([[[math.nan]]]),
    ],
)
def test_frames_off_the_scale_are_refused(frame):
    with pytest.raises(FigureError):
        figures.to_image(frame)


def test_figures_of_a_data_set(drift):
    train, validation = drift.split(0.3, 0)
    parts = [distribution.quantities(part) for part in (train, validation)]
    checks = check_distributions(train, validation)
    figure = figures.distributions(*parts, checks)
    assert len(figure.axes) == 3 and figure.axes[2].get_title("left").startswith("reward")
    assert len(figures.embeddings(embed(train, validation, samples=20)).axes) == 2
    sheet = figures.samples(drift.batch(torch.arange(3)), "samples")
    assert len(sheet.axes) == 15 and sheet.axes[0].get_title("left") == "t-3"
    assert sheet.axes[4].get_title("left") == "t+1" and png(sheet)[:4] == b"\x89PNG"
    with pytest.raises(FigureError, match="rows of equal length"):
        figures.frame_grid([[], []])
