"""Figures show the numbers and ranges they were given, stay small, and touch no global state."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import LineCollection
from PIL import Image
from sklearn.decomposition import PCA

from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.figures import data as figures
from hjepa_lib.figures import plans, style
from hjepa_lib.figures import training as learning
from hjepa_lib.figures.style import FigureError
from hjepa_lib.files import FileError
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.rendering import render

RNG = np.random.default_rng(5)
LIMIT_BYTES = 300_000


def frames(count: int = 2) -> np.ndarray:
    """(count, 2, 65, 65) uint8: the dot at (20, 40), wall 32, door 10."""
    return render(torch.tensor([[20.0, 40.0]] * count), Layout.fixed(count)).numpy()


def pixels(figure) -> np.ndarray:
    """(Hpx, Wpx, 3) uint8 of the figure as written to disk."""
    return np.array(Image.open(io.BytesIO(style.png(figure))).convert("RGB"))


def rows(**changes) -> list[dict]:
    """Result rows of four methods on 100 trials."""
    table = [
        ("random", "", 3),
        ("flat", "latent", 14),
        ("flat", "distance", 97),
        ("oracle", "", 100),
    ]
    return [
        {"method": m, "cost": c, "n": 100, "success_rate": k / 100, "ci95": list(wilson(k, 100))}
        | {"flops_per_step": None if c == "" else 1e6 * k}
        | changes
        for m, c, k in table
    ]


def every_figure(many: int = 3) -> dict:
    """One of each, on synthetic data; `many` scales what could grow without bound."""
    paths = RNG.uniform(5, 59, (many, 20, 2))
    layouts = np.tile([[32.0, 10.0]], (many, 1))
    grid = np.linspace(5, 59, 12)
    plane = grid[None, :] + grid[:, None]
    records = [
        {"step": s, "sim": 1 / s, "validation_sim": 2 / s, "lr": 1e-3 / s} for s in range(1, 40)
    ]
    points = RNG.uniform(5, 59, (20 * many, 2))
    steps = np.arange(1, 9)
    errors = RNG.uniform(0, 3, (many, 8))
    return {
        "trajectories": figures.sample_trajectories(paths, layouts),
        "montage": figures.montage(frames(many), titles=["a", "b"]),
        "losses": learning.loss_curves(records, ["sim"], log=True),
        "rate": learning.learning_rate(records),
        "probe": learning.probe_scatter(points, points + 1),
        "open loop": learning.open_loop_error({"level 1": (steps, errors)}, (steps, errors)),
        "latents": figures.latent_map(RNG.normal(size=(20 * many, 8)), points),
        "landscape": figures.cost_landscape({"latent": plane}, grid, grid, [50, 40], 32, 10),
        "fan": plans.plan_fan(paths, paths[:, 0, 0], paths[0], [8, 8], [50, 40], 32, 10, paths[1]),
        "bars": plans.success_bars(rows()),
        "compute": plans.success_against_compute(rows()),
        "episodes": plans.episode_paths(paths, paths[:, -1], layouts, np.full(many, np.nan)),
        "strip": plans.film_strip(paths[0], [50, 40], 32, 10),
    }


@pytest.fixture(scope="module")
def gallery() -> dict:
    return every_figure()


def test_frames_in_0_255_and_0_1_look_the_same():
    """F14: the seed's images were white because 0..255 met a plot that expected 0..1."""
    raw = frames()
    from_bytes, from_floats = figures.montage(raw), figures.montage(raw.astype(np.float32) / 255)
    assert np.array_equal(pixels(from_bytes), pixels(from_floats))


def test_golden_colours_of_a_frame():
    """F14: background black, dot white, walls mid grey at their pixels; door open; y down."""
    rgb = figures.frame_rgb(frames(1))[0]
    wall = [115, 125, 138]
    assert rgb[40, 20].tolist() == [255, 255, 255]
    assert rgb[25, 10].tolist() == [0, 0, 0]
    assert rgb[30, 31].tolist() == rgb[30, 33].tolist() == rgb[4, 50].tolist() == wall
    assert rgb[10, 32].tolist() == [0, 0, 0]  # the door, near the top
    drawn = pixels(figures.montage(frames(1), title=""))
    assert (drawn.max(-1) < 20).mean() > 0.5  # mostly black on paper, not white


@pytest.mark.parametrize(
    "bad",
    [
        frames().astype(np.float32),  # floats in 0..255
        (frames() / 255.0 - 0.5),  # normalised
        frames().astype(np.int64),
        np.full((1, 2, 65, 65), np.nan),
        np.zeros((1, 4, 65, 65), np.uint8),
    ],
)
def test_frames_in_an_unknown_range_are_refused(bad):
    """F14: a wrong range is an error, never a plausible picture."""
    with pytest.raises(FigureError, match="frames must be"):
        figures.frame_rgb(bad)


def test_the_room_is_drawn_in_px_with_y_down_and_the_door_open(gallery):
    axis = gallery["fan"].axes[0]
    assert axis.get_ylim()[0] > axis.get_ylim()[1] and axis.get_xlim() == (3, 61)
    boxes = [patch.get_bbox().bounds for patch in axis.patches]
    assert (31, 4, 2, 2) in boxes and (31, 14, 2, 46) in boxes  # above 6 and below 14


def test_trajectories_are_drawn_whole_and_where_they_are():
    path = RNG.uniform(5, 59, (30, 2))
    axis = figures.sample_trajectories([path], [[25, 40]]).axes[0]
    (lines,) = [c for c in axis.collections if isinstance(c, LineCollection)]
    segments = np.array(lines.get_segments())  # (29, 2, 2)
    assert np.allclose(segments[:, 0], path[:-1]) and np.allclose(segments[-1, 1], path[-1])


def test_trajectories_of_different_lengths_share_a_figure():
    figure = figures.sample_trajectories([np.ones((5, 2)), np.ones((9, 2))], [[25, 40], [32, 10]])
    assert len(figure.axes) == 2


def test_loss_curves_show_training_and_validation_of_each_named_term():
    records = [{"step": s, "sim": float(s), "std": None if s == 2 else 1.0} for s in (1, 2, 3)]
    records.append({"step": 3, "validation_sim": 7.0})
    left, right = learning.loss_curves(records, ["sim", "std"]).axes[:2]
    assert left.get_title(loc="left") == "sim" and right.get_title(loc="left") == "std"
    raw, mean, held_out = left.lines
    assert raw.get_ydata().tolist() == mean.get_ydata().tolist() == [1, 2, 3]
    assert held_out.get_xydata().tolist() == [[3, 7]]
    assert right.lines[0].get_xdata().tolist() == [1, 3]  # null values are skipped
    with pytest.raises(FigureError, match="'idm'"):
        learning.loss_curves(records, ["idm"])


def test_loss_curves_smooth_with_a_trailing_mean():
    values = RNG.normal(size=90)
    records = [{"step": s, "sim": value} for s, value in enumerate(values)]
    mean = learning.loss_curves(records, ["sim"]).axes[0].lines[1].get_ydata()
    assert mean[0] == pytest.approx(values[0]) and mean[50] == pytest.approx(values[48:51].mean())


def test_log_scale_is_used_only_where_all_values_are_positive():
    records = [{"step": s, "sim": 1.0 + s, "std": s - 1.0} for s in range(3)]
    left, right = learning.loss_curves(records, ["sim", "std"], log=True).axes[:2]
    assert (left.get_yscale(), right.get_yscale()) == ("log", "linear")


def test_learning_rate_is_drawn_as_recorded():
    records = [{"step": s, "lr": 0.1 * s} for s in range(4)] + [{"step": 9, "sim": 1}]
    (axis,) = learning.learning_rate(records).axes
    assert axis.lines[0].get_ydata() == pytest.approx([0, 0.1, 0.2, 0.3])
    with pytest.raises(FigureError, match="'lr'"):
        learning.learning_rate([{"step": 1}])


def test_probe_titles_carry_the_rmse_in_px():
    true = RNG.uniform(5, 59, (500, 2))
    figure = learning.probe_scatter(true, true + np.array([3.0, 4.0]))
    assert figure._suptitle.get_text() == "Position probe: RMSE 5.00 px"
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[0].startswith("x: RMSE 3.00 px") and titles[1].startswith("y: RMSE 4.00 px")
    layout = learning.probe_scatter(true, true, ("wall_x", "door_y"), "Layout probe")
    assert layout.axes[1].get_ylabel() == "predicted door_y (px)"
    assert layout._suptitle.get_text() == "Layout probe"


def test_open_loop_error_shows_medians_bands_and_the_stay_baseline():
    """HW4: error against horizon exists for both levels, in environment steps."""
    steps = np.array([8, 16, 24])
    errors = RNG.uniform(0, 3, (200, 3))
    curves = {"level 1": (np.arange(1, 25), np.ones((5, 24))), "level 2": (steps, errors)}
    figure = learning.open_loop_error(curves, (steps, 9 + errors), {"planning horizon": 8})
    axis = figure.axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["level 1", "level 2", "stay where you are"]
    second, stay = axis.lines[1:3]
    assert second.get_xdata().tolist() == [8, 16, 24]
    assert second.get_ydata() == pytest.approx(np.median(errors, 0))
    assert stay.get_ydata() == pytest.approx(9 + np.median(errors, 0))
    band = axis.collections[1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(np.quantile(errors, 0.1, axis=0).min())
    assert [text.get_text() for text in axis.texts] == ["planning horizon"]


def test_latent_map_shows_the_principal_components_coloured_by_position():
    latents, positions = RNG.normal(size=(50, 6)), RNG.uniform(5, 59, (50, 2))
    figure = figures.latent_map(latents, positions)
    left, right = (axis.collections[0] for axis in figure.axes[:2])
    flat = PCA(2, random_state=0).fit_transform(latents)
    order = np.argsort(positions[:, 0])
    drawn = np.argsort(left.get_array())
    assert np.allclose(np.array(left.get_offsets())[drawn], flat[order])
    assert np.allclose(np.array(right.get_array())[drawn], positions[order, 1])


def test_cost_landscape_puts_each_value_at_its_place_and_keeps_holes():
    x, y = np.linspace(10, 50, 5), np.linspace(20, 40, 3)
    values = np.arange(15.0).reshape(3, 5)
    values[1, 2] = np.nan
    axis = figures.cost_landscape(
        {"latent": values, "distance": values}, x, y, [50, 40], 32, 10
    ).axes[1]
    image = axis.images[0]
    assert image.get_extent() == [5, 55, 45, 15] or tuple(image.get_extent()) == (5, 55, 45, 15)
    assert image.get_array()[2, 4] == 14 and image.get_array().mask[1, 2]
    assert axis.get_title(loc="left") == "distance"
    with pytest.raises(FigureError, match="latent must have shape"):
        figures.cost_landscape({"latent": values.T}, x, y, [50, 40], 32, 10)


def test_plan_fan_ranks_candidates_and_draws_the_cheapest_last():
    start = np.array([10.0, 10.0])
    rollouts = RNG.uniform(5, 59, (30, 4, 2))
    costs = RNG.normal(size=30)
    figure = plans.plan_fan(rollouts, costs, rollouts[3], start, [50, 40], 32, 10, rollouts[1])
    axis = figure.axes[0]
    fan = next(c for c in axis.collections if isinstance(c, LineCollection))
    segments = np.array(fan.get_segments())  # (30, 5, 2)
    assert np.allclose(segments[-1, 1:], rollouts[costs.argmin()]) and fan.get_array()[-1] == 0
    assert np.allclose(segments[0, 1:], rollouts[costs.argmax()]) and fan.get_array()[0] == 1
    assert np.allclose(segments[:, 0], start)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["chosen plan", "level-2 sub-goals", "start", "goal"]


def test_success_bars_show_rate_interval_and_n_with_floor_and_ceiling():
    """F12, F15: no bar without its n, its Wilson interval and the random and oracle levels."""
    axis = plans.success_bars(rows()).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.03, 0.14, 0.97, 1.0]
    assert [text.get_text() for text in axis.texts][2] == "97 %  [92, 99]  n = 100"
    spans = [tuple(line.get_xdata()) for line in axis.lines]
    assert tuple(wilson(97, 100)) in spans
    assert (0.03, 0.03) in spans and (1.0, 1.0) in spans
    assert [t.get_text() for t in axis.get_yticklabels()][2] == "flat, distance cost"
    with pytest.raises(FigureError, match="at least one row"):
        plans.success_bars([])


def test_success_against_compute_is_logarithmic_with_one_line_per_method_and_cost():
    budgets = [rows()[2] | {"flops_per_step": f} for f in (4e7, 1e7, 2e7)]
    axis = plans.success_against_compute([*budgets, rows()[0]]).axes[0]
    assert axis.get_xscale() == "log"
    (line,) = [container.lines[0] for container in axis.containers]
    assert line.get_xdata().tolist() == [1e7, 2e7, 4e7]  # sorted
    labels = {text.get_text() for text in axis.get_legend().get_texts()}
    assert labels == {"flat, distance cost", "random"}


def test_episode_panels_say_where_the_goal_was_reached_or_by_how_much_it_was_missed():
    paths = np.zeros((3, 11, 2)) + 20
    goals = np.array([[20, 20], [20, 24.5], [20, 24.5]], dtype=float)
    figure = plans.episode_paths(paths, goals, [[32, 10]] * 3, np.array([0, 11, np.nan]))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["reached at 0", "missed by 4.5 px", "missed by 4.5 px"]


def test_film_strip_runs_from_the_first_step_to_the_last():
    figure = plans.film_strip(np.ones((201, 2)) * 20, [50, 40], 32, 10, frames=5)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["step 0", "step 50", "step 100", "step 150", "step 200"]
    assert len(plans.film_strip(np.ones((2, 2)), [50, 40], 32, 10).axes) == 2


def test_every_figure_is_a_small_png_and_shows_itself(gallery):
    for name, figure in gallery.items():
        data = figure._repr_png_()
        assert data.startswith(b"\x89PNG") and len(data) < LIMIT_BYTES, name
        assert max(Image.open(io.BytesIO(data)).size) <= 1200, name


def test_outputs_stay_bounded_when_the_input_grows():
    """PL14: a peer wrote 201 sub-plots x 100 trials at 300 dpi into a 0.68 GB result file."""
    for name, figure in every_figure(many=400).items():
        assert len(figure.axes) <= style.MOST_PANELS, name
        assert len(style.png(figure)) < LIMIT_BYTES, name


def test_nothing_is_cut_off_at_the_edges(gallery):
    """Ink that touches the border of the picture means a clipped label."""
    for name, figure in gallery.items():
        image = pixels(figure)
        edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edges > 245).all(), name


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    style.png(plans.success_bars(rows()))
    assert dict(matplotlib.rcParams) == before
    assert Gcf.get_num_fig_managers() == 0  # pyplot knows none of these figures


def test_style_holds_while_drawing_outside_the_figure_function():
    """Ticks are created at drawing time: without `Picture.draw` they would have default style."""
    records = [{"step": s, "lr": 0.1 * s} for s in range(5)]
    outside = style.png(learning.learning_rate(records))
    with matplotlib.rc_context(style.STYLE):
        inside = style.png(learning.learning_rate(records))
    assert outside == inside


def test_a_long_title_over_a_narrow_figure_is_wrapped():
    figure = figures.sample_trajectories([np.ones((5, 2))], [[25, 40]], title="a long title " * 4)
    image = pixels(figure)
    assert (image[:, -1] > 245).all() and "\n" in figure._suptitle.get_text()


def test_save_writes_the_picture_or_raises_one_sentence(tmp_path, gallery):
    path = style.save(gallery["rate"], tmp_path / "figures" / "rate.png")
    assert Image.open(path).format == "PNG"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        style.save(gallery["rate"], tmp_path / "file" / "rate.png")


def test_methods_keep_their_colours():
    names = ["random", "oracle", "flat", "L1+L2", "level 1", "level 2", "dreamer"]
    colours = [style.method_colour(name) for name in names]
    assert colours[2] == colours[4] == style.BLUE and colours[3] == colours[5] == style.ORANGE
    assert len(set(colours)) == 5


def test_wrong_shapes_raise_a_sentence_that_names_the_argument():
    with pytest.raises(FigureError, match=r"goal must have shape \(2\), got \(3,\)"):
        plans.film_strip(np.ones((5, 2)), [1, 2, 3], 32, 10)
    with pytest.raises(FigureError, match="predicted must have shape"):
        learning.probe_scatter(np.ones((5, 2)), np.ones((4, 2)))


def test_a_constant_curve_keeps_a_readable_axis():
    """A learning rate that never changed, up to rounding."""
    rows = [{"step": k, "lr": 1e-4 * (1 + 1e-13 * (k % 2))} for k in range(1, 9)]
    axis = learning.loss_curves(rows, ["lr"]).axes[0]
    assert axis.get_ylim() == pytest.approx((0, 2e-4))
