"""Errors of latents, gradients by part, figures."""

import math

import numpy as np
import pytest
import torch
from tiny_pixels import fresh, tiny_batch, tiny_transitions

from hjepa_lib.figures import style
from hjepa_lib.pixels import checks, figures
from hjepa_lib.pixels import measures as met
from hjepa_lib.pixels.compare import COLUMNS

RNG = np.random.default_rng(0)


@pytest.fixture
def jepa():
    return fresh("jepa", encoder__kind="cnn")


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
        figure, figures.score_bars(nobody, ("latent_error",)), figures.score_bars(comparison_of()),
    ):  # fmt: skip
        assert style.png(picture)[:4] == b"\x89PNG"


def test_intervals_in_the_figure_are_those_of_the_table():
    (axis,) = figures.score_bars(comparison_of(), ("latent_error",)).axes
    ends = [bar.get_segments()[0][:, 0].tolist() for bar in axis.collections]
    assert ends == pytest.approx(np.array([[0.4, 0.6], [0.4, 0.6]]))


def test_figures_of_training():
    rows = [{"step": s, "loss": 1 / s, "validation_loss": 2 / s} for s in (1, 2, 3)]
    assert len(figures.training_curves({"jepa": [rows, rows], "enc_dec": [rows]}).axes) == 2
