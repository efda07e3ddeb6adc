"""Figures of distances, level-2 latents and controls show the numbers they were given."""

import numpy as np
import pytest
import torch
from tiny import tiny_data

from hjepa_lib.data import measures
from hjepa_lib.figures import beliefs as geometry
from hjepa_lib.figures import data as figures
from hjepa_lib.figures import style
from hjepa_lib.figures.style import FigureError
from hjepa_lib.worlds.layout import layout_lists

RNG = np.random.default_rng(3)
LIMIT_BYTES = 300_000


def titles(figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_calibration_band_holds_the_quantiles_of_its_bins():
    recorded = np.repeat(np.arange(1.0, 5.0), 100)
    predicted = recorded / 2 + np.tile(np.linspace(-1, 1, 100), 4)
    centres, bands = geometry._bands(recorded, predicted)
    assert len(centres) == 4
    assert bands[1] == pytest.approx([0.5, 1, 1.5, 2])
    assert bands[2] - bands[0] == pytest.approx(1.6, abs=0.05)  # 10 to 90 % of a width of 2
    figure = geometry.calibration(recorded, predicted)
    median, reference = figure.axes[0].lines
    assert median.get_ydata() == pytest.approx(bands[1])
    assert list(reference.get_xdata()) == list(reference.get_ydata())
    reference = geometry.calibration(recorded, predicted, gamma=0.5).axes[0].lines[1]
    assert reference.get_ydata()[-1] == pytest.approx(1 + 0.5 + 0.25 + 0.125)


def test_cost_geometry_says_how_well_a_cost_orders_pairs():
    path = RNG.uniform(1, 80, 500)
    costs = {"exact": np.sqrt(path), "reversed": 100 - path, "noise": RNG.uniform(size=500)}
    figure = geometry.cost_geometry(path, costs, path > 40)
    assert titles(figure)[:2] == ["rank correlation 1.00", "rank correlation -1.00"]
    assert abs(float(titles(figure)[2].split()[-1])) < 0.15
    near, far = figure.axes[0].collections
    assert near.get_offsets()[:, 0].max() <= 40 < far.get_offsets()[:, 0].min()
    with pytest.raises(FigureError, match="other_room must have shape"):
        geometry.cost_geometry(path, costs, np.ones(3))


def test_macro_grid_numbers_every_macro_state():
    path = RNG.uniform(5, 59, (33, 2))
    axis = geometry.macro_grid(path, 8, 32, 10).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "2", "3", "4"]
    assert axis.texts[4].xy == pytest.approx(path[32])


def test_kl_bars_are_sorted_and_summed():
    figure = geometry.kl_by_dimension(np.array([0.1, 0.5, 0.0]))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 0.1, 0.0]
    assert "0.60 nats" in figure.get_suptitle()


def test_proposals_are_drawn_around_their_start_with_the_reach():
    starts, layouts = np.array([[20.0, 30.0], [50.0, 40.0]]), np.tile([32.0, 10.0], (2, 1))
    clouds = starts[:, None] + RNG.normal(size=(2, 40, 2))
    figure = geometry.proposals(starts, clouds, layouts, reach=14.4)
    for axis, start, cloud in zip(figure.axes, starts, clouds, strict=True):
        dots, ring = axis.collections
        assert np.asarray(dots.get_offsets()) == pytest.approx(cloud)
        assert np.asarray(ring.get_offsets()[0]) == pytest.approx(start)
        circle = axis.lines[-1].get_xydata()
        assert np.linalg.norm(circle - start, axis=1) == pytest.approx(14.4)
    with pytest.raises(FigureError, match="at most 24 starts"):
        geometry.proposals(*(np.repeat(part[:1], 25, 0) for part in (starts, clouds, layouts)))


def test_control_effects_shows_success_and_deviation():
    rows = [
        {"control": "none", "success_rate": 0.9, "ci95": [0.7, 0.97]},
        {"control": "zero", "success_rate": 0.2, "ci95": [0.08, 0.42]},
    ]
    figure = geometry.control_effects(rows, {"none": np.zeros(5), "zero": np.arange(5.0)})
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.9, 0.2]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines][1] == [0, 1, 2, 3, 4]


def test_motion_samples_stay_inside_their_trajectory():
    """F6 in the statistics: a turn between two trajectories would be no turn."""
    data = tiny_data()
    moves = measures.motion(data, limit=3)
    lengths = data.lengths[:3]
    assert len(moves.steps) == int((lengths - 1).sum())
    assert len(moves.turns) == int((lengths - 2).sum())
    assert len(moves.positions) == int(lengths.sum())
    assert moves.turns.abs().max() <= 180
    actions = data.one(0)[1]
    one, two = actions[0].double(), actions[1].double()
    cross, dot = one[0] * two[1] - one[1] * two[0], (one * two).sum()
    assert moves.turns[0] == pytest.approx(float(torch.atan2(cross, dot).rad2deg()), abs=1e-3)


def test_pictures_stay_small():
    """PL14: whatever they are given."""
    many = 20_000
    pairs = RNG.uniform(1, 80, many)
    places = RNG.uniform(5, 59, (many, 2))
    made = [
        geometry.calibration(pairs, pairs),
        figures.motion(pairs, pairs, places),
        figures.layout_lists(layout_lists()),
        geometry.proposals(places[:24], places[: 24 * 500].reshape(24, 500, 2), places[:24]),
        geometry.cost_geometry(pairs[:2000], {"a": pairs[:2000]}, pairs[:2000] > 40),
    ]
    assert all(len(style.png(figure)) < LIMIT_BYTES for figure in made)
