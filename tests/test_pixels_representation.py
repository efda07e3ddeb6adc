"""MET-1 on matrices whose answer is known; figures of the representation report."""

import math

import numpy as np
import pytest
import torch

from hjepa_lib.figures import style
from hjepa_lib.pixels import measures as met
from hjepa_lib.pixels import score_figures as figures

RNG = np.random.default_rng(0)


def white(count, dim, seed=0):
    """(count, dim) with exactly zero mean and identity covariance."""
    values = np.random.default_rng(seed).normal(size=(count, dim))
    values -= values.mean(0)
    return np.linalg.svd(values, full_matrices=False)[0] * math.sqrt(count - 1)


def manifold(count, inner, outer, seed=0):
    """(count, outer): an `inner`-dimensional uniform cube, turned into `outer` dimensions."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(outer, outer)))[0][:inner]
    return rng.uniform(size=(count, inner)) @ turn


def test_participation_ratio_and_rank_count_the_directions():
    z = white(200, 8)
    assert met.participation_ratio(z) == pytest.approx(8)
    assert met.rank(z) == pytest.approx(8, rel=1e-5)
    line = np.outer(np.arange(50.0), RNG.normal(size=6))
    assert met.participation_ratio(line) == pytest.approx(1)
    assert met.rank(line) == pytest.approx(1, abs=1e-3)
    scaled = z * np.sqrt([4, 1, 0, 0, 0, 0, 0, 0])  # eigenvalues 4 and 1
    assert met.participation_ratio(scaled) == pytest.approx(25 / 17)
    assert met.participation_ratio(z @ np.eye(8)[:, ::-1] * 100) == pytest.approx(8)  # unit-free
    assert met.spectrum(scaled) == pytest.approx([4, 1, 0, 0, 0, 0, 0, 0], abs=1e-12)
    assert met.spectrum(z[:3]).shape == (8,)  # fewer samples than dimensions


@pytest.mark.parametrize("inner", [1, 2, 5])
def test_two_nn_finds_the_inner_dimension(inner):
    found = met.two_nn(manifold(1500, inner, 12))
    assert found == pytest.approx(inner, rel=0.12)


def test_two_nn_counts_equal_samples_once():
    z = manifold(600, 2, 5)
    assert met.two_nn(np.repeat(z, 3, axis=0)) == met.two_nn(z)
    assert math.isnan(met.two_nn(np.repeat(z[:5], 100, axis=0)))


def test_trust_and_continuity_tell_tearing_from_gluing():
    """A fold glues distant states together (trust falls); a shuffle tears neighbours apart."""
    x = np.sort(RNG.uniform(-1, 1, 300))
    states = np.stack([x, np.zeros(300)], 1)
    assert met.trust(states, 3 * states + 1) == 1 == met.trust(3 * states + 1, states)
    folded = np.abs(states)
    assert met.trust(states, folded) < 0.85
    assert met.trust(folded, states) > met.trust(states, folded) + 0.1
    torn = np.stack([x, 100.0 * (np.arange(300) % 2)], 1)
    assert met.trust(torn, states) < met.trust(states, torn)
    assert met.trust(states, states[RNG.permutation(300)]) == pytest.approx(0.5, abs=0.08)


def test_trust_equals_its_formula():
    rng = np.random.default_rng(3)
    states, z, k, count = rng.normal(size=(40, 6)), rng.normal(size=(40, 3)), 5, 40

    def order(values):
        gaps = np.linalg.norm(values[:, None] - values[None], axis=-1)
        return np.argsort(np.argsort(gaps, axis=1), axis=1)  # 0 is the sample itself

    in_states, in_z = order(states), order(z)
    penalty = np.where((in_z <= k) & (in_z > 0), np.maximum(in_states - k, 0), 0).sum()
    wanted = 1 - 2 / (count * k * (2 * count - 3 * k - 1)) * penalty
    assert met.trust(states, z) == pytest.approx(wanted)


def test_smoothness_is_the_squared_correlation_of_steps():
    rng = np.random.default_rng(1)
    s, steps = rng.normal(size=(80, 4)), rng.normal(size=(80, 4))
    assert met.smoothness(s, s + steps, 2 * s, 2 * (s + steps)) == pytest.approx(1)
    unrelated = rng.normal(size=(80, 3))
    assert met.smoothness(s, s + steps, unrelated, rng.normal(size=(80, 3))) < 0.2
    assert math.isnan(met.smoothness(s, s + 1.0, s, s + steps))  # every pixel step equally long


def test_uniformity_of_known_directions():
    same = np.tile([3.0, 0.0], (10, 1))
    assert met.uniformity(same) == pytest.approx(0, abs=1e-9)
    assert met.uniformity(np.array([[1.0, 0], [-5, 0]])) == pytest.approx(-8)  # |u - v|^2 = 4
    pair = np.array([[1.0, 0], [0, 1]])
    assert met.uniformity(pair) == pytest.approx(-4)
    assert met.uniformity(RNG.normal(size=(500, 64))) == pytest.approx(-3.87, abs=0.1)


def test_noise_sensitivity_is_relative_and_grows_with_sigma():
    state = torch.full((40, 1, 1, 8, 8), 128, dtype=torch.uint8)
    state += torch.arange(40, dtype=torch.uint8)[:, None, None, None, None]

    def mean(frames):
        return frames.flatten(1).float().mean(1, keepdim=True) / 255

    found = met.noise_sensitivity(mean, state)
    assert tuple(found) == met.SIGMAS and sorted(found.values()) == list(found.values())
    scaled = met.noise_sensitivity(lambda frames: 1000 * mean(frames), state)
    assert scaled == pytest.approx(found, rel=1e-4)
    spread = float(mean(state).std(correction=0))
    # The mean of 64 pixels moves by sigma / 8 on average times sqrt(2 / pi).
    assert found[0.1] == pytest.approx(0.1 / 8 * math.sqrt(2 / math.pi) / spread, rel=0.2)
    blind = met.noise_sensitivity(lambda frames: 0 * mean(frames), state)
    assert all(math.isnan(value) for value in blind.values())


def test_a_collapsed_latent_is_not_estimable_rather_than_good():
    """F13: neither NaN-free nonsense nor a perfect score for a constant encoder."""
    state = torch.randint(0, 256, (30, 2, 1, 8, 8), dtype=torch.uint8)
    found = met.measure(lambda frames: torch.ones(len(frames), 4), state, state.flip(0))
    assert found.pop("latent_std") == 0 and found.pop("uniformity") == pytest.approx(0)
    assert all(math.isnan(value) for value in found.values())
    assert found.keys() >= {"participation_ratio", "two_nn_dimension", "noise_0.01", "noise_0.2"}


def test_bad_samples_are_refused():
    for bad in (np.zeros((0, 3)), np.zeros(4), np.full((20, 2), math.nan)):
        with pytest.raises(ValueError, match="samples"):
            met.participation_ratio(bad)
    with pytest.raises(ValueError, match="equal length"):
        met.trust(np.zeros((20, 2)), np.zeros((21, 2)))


def test_every_model_is_measured_on_the_same_rows():
    rows = met.pick(5000)
    assert len(rows) == met.MOST and rows.tolist() == met.pick(5000).tolist()
    assert (rows.diff() > 0).all() and met.pick(7).tolist() == list(range(7))


# --- figures ------------------------------------------------------------------------------------
def comparison_of(**cells):
    """Two models and the columns that figures read; `cells` replaces single ones of "jepa"."""
    columns = (*figures.SCORES, *figures.SHAPE, *(f"noise_{s:g}" for s in met.SIGMAS))
    cell = {"mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3, "text": "0.5 (0.4 to 0.6)"}
    models = {name: {column: dict(cell) for column in columns} for name in ("jepa", "random")}
    models["jepa"] |= cells
    described = {name: {"better": "low" if "error" in name else ""} for name in columns}
    return {"models": models, "columns": described, "baselines": {"mean_reward_r2": -0.1}}


NOTE = {"mean": None, "low": None, "high": None, "seeds": 3, "text": "not applicable"}


def test_figures_draw_and_write_out_what_is_missing():
    maps = {"jepa": RNG.normal(size=(40, 4)), "random": np.ones((40, 4))}
    figure = figures.latent_maps(maps, np.arange(40.0), "step")
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == ["not estimable", "not estimable"]  # both maps of the constant latent
    bars = figures.score_bars(comparison_of(latent_error=NOTE))
    texts = [text.get_text() for axis in bars.axes for text in axis.texts]
    assert texts == ["not applicable"]
    nobody = comparison_of(latent_error=NOTE)
    nobody["models"]["random"]["latent_error"] = NOTE
    (axis,) = figures.score_bars(nobody, ("latent_error",)).axes
    assert all(0 <= text.xyann[0] < 0.1 for text in axis.texts)
    assert style.png(axis.figure)
    assert bars.axes[0].get_title(loc="left") == "latent error, lower is better"
    for picture in (
        figure, bars, figures.spectra(maps), figures.noise_curves(comparison_of()),
        figures.score_bars(comparison_of(), figures.SHAPE),
    ):  # fmt: skip
        assert style.png(picture)[:4] == b"\x89PNG"


def test_intervals_in_the_figure_are_those_of_the_table():
    (axis,) = figures.score_bars(comparison_of(), ("latent_error",)).axes
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in axis.collections]
    assert ends == pytest.approx(np.array([[0.4, 0.6], [0.4, 0.6]]))


def test_figures_refuse_mismatched_samples():
    with pytest.raises(style.FigureError, match="jepa must have shape"):
        figures.latent_maps({"jepa": np.zeros((4, 2))}, np.zeros(5), "step")
