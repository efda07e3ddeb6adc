"""MET-1 on matrices whose answer is known, gradients by part, figures."""

import math

import numpy as np
import pytest
import torch
from tiny_pixels import fresh, tiny_batch, tiny_transitions, white

from hjepa_lib.figures import style
from hjepa_lib.pixels import checks, figures
from hjepa_lib.pixels import measures as met
from hjepa_lib.pixels.compare import COLUMNS, SHAPE, SIGMAS

RNG = np.random.default_rng(0)


@pytest.fixture
def jepa():
    return fresh("jepa", encoder__kind="cnn")


def test_participation_ratio_counts_the_directions():
    z = white(200, 8)
    assert met.participation_ratio(100 * z) == pytest.approx(8)  # unit-free
    line = np.outer(np.arange(50.0), RNG.normal(size=6))
    assert met.participation_ratio(line) == pytest.approx(1)
    scaled = z * np.sqrt([4, 1, 0, 0, 0, 0, 0, 0])  # eigenvalues 4 and 1
    assert met.participation_ratio(scaled) == pytest.approx(25 / 17)
    assert met.spectrum(scaled) == pytest.approx([4, 1, 0, 0, 0, 0, 0, 0], abs=1e-12)
    assert met.spectrum(z[:3]).shape == (8,)  # fewer samples than dimensions


@pytest.mark.parametrize("inner", [1, 2, 5])
def test_two_nn_finds_the_inner_dimension(inner):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0][:inner]
    z = rng.uniform(size=(1500, inner)) @ turn  # a cube, turned into 12 dimensions
    found = met.two_nn(z)
    assert found == pytest.approx(inner, rel=0.12)
    assert met.two_nn(np.repeat(z, 2, axis=0)) == found  # equal samples count once
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
    assert met.uniformity(np.eye(2)) == pytest.approx(-4)
    assert met.uniformity(RNG.normal(size=(500, 64))) == pytest.approx(-3.87, abs=0.1)


def test_noise_sensitivity_is_relative_and_grows_with_sigma():
    state = torch.full((40, 1, 1, 8, 8), 128, dtype=torch.uint8)
    state += torch.arange(40, dtype=torch.uint8)[:, None, None, None, None]

    def mean(frames):
        return frames.flatten(1).float().mean(1, keepdim=True) / 255

    found = met.noise_sensitivity(mean, state)
    assert tuple(found) == SIGMAS and sorted(found.values()) == list(found.values())
    scaled = met.noise_sensitivity(lambda frames: 1000 * mean(frames), state)
    assert scaled == pytest.approx(found, rel=1e-4)
    spread = float(mean(state).std(correction=0))
    # The mean of 64 pixels moves by sigma / 8 on average times sqrt(2 / pi).
    assert found[0.1] == pytest.approx(0.1 / 8 * math.sqrt(2 / math.pi) / spread, rel=0.2)


def test_a_collapsed_latent_is_not_estimable_rather_than_good():
    """F13: neither NaN-free nonsense nor a perfect score for a constant encoder."""
    state = torch.randint(0, 256, (30, 2, 1, 8, 8), dtype=torch.uint8)
    found = met.measure(lambda frames: torch.ones(len(frames), 4), state, state.flip(0))
    assert found.keys() < {*COLUMNS} and found.keys() > {*SHAPE}
    assert found.pop("uniformity") == pytest.approx(0)
    assert all(math.isnan(value) for value in found.values())


def test_every_model_is_measured_on_the_same_rows():
    rows = met.pick(5000)
    assert len(rows) == met.MOST and rows.tolist() == met.pick(5000).tolist()
    assert (rows.diff() > 0).all() and met.pick(7).tolist() == list(range(7))


def test_latent_errors_of_a_perfect_and_a_lazy_model(jepa):
    """X1: beside both guesses and the better of them; a model without latents has none."""
    data = tiny_transitions()
    truth = {len(data): jepa.eval().encode_target(data[torch.arange(len(data))].next_state)}
    for imagine, wanted in (
        (lambda latent, action: truth[len(latent)], None),
        (lambda latent, action: latent, "copy_last_latent"),
    ):
        jepa.imagine, jepa.encode = imagine, jepa.encode_target
        found = met.transition_errors(data, data, "cpu", jepa)
        expected = found[wanted] if wanted else 0 * found["latent"]
        assert found["latent"] == pytest.approx(expected, abs=1e-6)
        means = [found[f"{kind}_latent"].mean() for kind in ("copy_last", "mean")]
        assert found["latent_guess"].mean() == min(means) > 0
    assert "latent" not in met.transition_errors(data, data, "cpu", fresh("random"))


def test_gradients_are_told_part_by_part(jepa):
    """F3: a part that no gradient reaches counts as 0."""
    norms = checks.gradient_norms(jepa, tiny_batch())
    assert set(norms) == {"encoder", "action", "predictor"} and min(norms.values()) > 0
    jepa.loss(tiny_batch())[0].backward()
    own = [p.grad for p in jepa.predictor.parameters()]
    assert norms["predictor"] == pytest.approx(math.hypot(*(g.norm() for g in own)), rel=1e-5)
    jepa.requires_grad_(False)
    assert checks.gradient_norms(jepa, tiny_batch()) == {}
    jepa.predictor.requires_grad_(True)
    assert set(checks.gradient_norms(jepa, tiny_batch())) == {"predictor"}


def comparison_of(**cells):
    """Two models and every column; `cells` replaces single ones of "jepa"."""
    cell = {"mean": 0.5, "low": 0.4, "high": 0.6, "seeds": 3, "text": "0.5 (0.4 to 0.6)"}
    models = {name: {column: dict(cell) for column in COLUMNS} for name in ("jepa", "random")}
    models["jepa"] |= cells
    return {"models": models, "baselines": {"mean_reward_r2": -0.1}}


NOTE = {"mean": None, "low": None, "high": None, "seeds": 3, "text": "not applicable"}


def texts_of(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text()]


def test_figures_draw_and_write_out_what_is_missing():
    maps = {"jepa": RNG.normal(size=(40, 4)), "random": np.ones((40, 4))}
    figure = figures.latent_maps(maps, np.arange(40.0), "step")
    assert texts_of(figure) == ["not estimable", "not estimable"]  # both of the constant latent
    bars = figures.score_bars(comparison_of(latent_error=NOTE))
    assert texts_of(bars) == ["not applicable"]
    assert "latent error, lower is better" in [axis.get_title(loc="left") for axis in bars.axes]
    nobody = comparison_of(latent_error=NOTE)
    nobody["models"]["random"]["latent_error"] = NOTE
    for picture in (
        figure, figures.score_bars(nobody, ("latent_error",)), figures.spectra(maps),
        figures.noise_curves(comparison_of()),
        figures.score_bars(comparison_of(), SHAPE),
    ):  # fmt: skip
        assert style.png(picture)[:4] == b"\x89PNG"


def test_intervals_in_the_figure_are_those_of_the_table():
    (axis,) = figures.score_bars(comparison_of(), ("latent_error",)).axes
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in axis.collections]
    assert ends == pytest.approx(np.array([[0.4, 0.6], [0.4, 0.6]]))


def test_figures_of_training_and_gradient():
    rows = [{"step": s, "loss": 1 / s, "validation_loss": 2 / s} for s in (1, 2, 3)]
    assert len(figures.training_curves({"jepa": [rows, rows], "enc_dec": [rows]}).axes) == 2
    figure = figures.gradient_flow({"a": {"encoder": 0.0, "predictor": 1.5}, "b": {"encoder": 2.0}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["none", "1.5", "2", ""]
