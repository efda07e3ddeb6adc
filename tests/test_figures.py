import io
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from PIL import Image, ImageSequence
from sklearn.decomposition import PCA
from tiny import refused

from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.evaluation.statistics import success_rate, wilson
from hjepa_lib.figures import data, plans, style, success, training
from hjepa_lib.figures.style import FigureError
from hjepa_lib.workbench.rows import pack_solved, pooled
from hjepa_lib.worlds.layout import Layout, layout_lists, render, render_walls

RNG = np.random.default_rng(5)
LIMIT_BYTES = 300_000
GOAL = np.array([50, 40])


def frames(count=2):
    """(count, 2, 65, 65) uint8: the dot at (20, 40), wall 32, door 10."""
    return render(torch.tensor([[20.0, 40.0]] * count), Layout.fixed(count)).numpy()


ROOM = data.room_of(frames(1))[0]


def texts(found):
    return [text.get_text() for text in found]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def words(figure):
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    found = titles(figure) + texts(t for one in filter(None, legends) for t in one.get_texts())
    for axis in figure.axes:
        found += texts([*axis.texts, *axis.get_yticklabels()])
    return set(found)


def points(axis):
    """{label: (x, y, low, high)} of the error bars of an axis."""
    found = {}
    for bars in axis.containers:
        line, _, (segments,) = bars.lines
        ends = np.array(segments.get_segments())  # (values, 2, 2)
        upright = np.ptp(ends[:, :, 0]) == 0 or (ends[:, 0, 0] == ends[:, 1, 0]).all()
        low, high = ends[:, :, 1 if upright else 0].T
        found[bars.get_label()] = (*line.get_data(orig=False), low, high)
    return found


def row(method, cost, hits, n=100, **more):
    rate = {"success_rate": hits / n, "successes": hits, "ci95": list(wilson(hits, n))}
    spent = {"flops_per_step": None if cost == "" else 1e6 * (hits + 1)}
    return {"method": method, "cost": cost, "n": n} | rate | spent | more


def rows(**more):
    table = (("random", "", 3), ("flat", "latent", 14), ("flat", "distance", 97))
    return [row(*one, **more) for one in (*table, ("oracle", "", 100))]


@pytest.fixture(scope="module")
def gallery():
    """One figure of each kind, of more data than fit into it."""
    many = 60
    paths = RNG.uniform(5, 59, (many, 20, 2))
    rooms = np.tile(ROOM, (many, 1, 1))
    grid = np.linspace(5, 59, 12)
    plane = grid[None] + grid[:, None]
    records = [{"step": s, "sim": 1 / s, "validation_sim": 2 / s} for s in range(1, 40)]
    places = RNG.uniform(5, 59, (200 * many, 2))
    pairs = np.linspace(1, 80, 200 * many)
    steps, errors = np.arange(1, 9), RNG.uniform(0, 3, (many, 8))
    few = min(many, style.MOST_PANELS)
    shares = pd.DataFrame([[0.4, 0.3, 0.1, 0.1, 0.1, 0]] * 2, ["flat", "two"], [*LABELS.values()])
    gaps = {"pair": "two - flat", "seed": "all", "difference": 0.1, "mcnemar_p": 0.01}
    gaps |= {"difference_low": 0.0, "difference_high": 0.2}
    clouds = np.resize(places, (few, min(20 * many, 500), 2))
    return {
        "paths": plans.room_paths(paths, rooms),
        "frames": data.frame_grid([frames(many)[:8]], ["a", "b"]),
        "motion": data.motion(pairs, pairs, places, ROOM),
        "lists": data.layout_lists(layout_lists()),
        "losses": training.loss_curves(records, ["sim"]),
        "probe": training.probe_scatter(places, places + 1),
        "open loop": training.open_loop_error({"level 1": (steps, errors)}),
        "latents": data.latent_map(RNG.normal(size=(200 * many, 8)), places),
        "landscape": data.cost_landscape({"latent": plane}, grid, grid, GOAL, ROOM),
        "fan": plans.plan_fan(paths, paths[:, 0, 0], paths[0], [8, 8], GOAL, ROOM, paths[1]),
        "episodes": plans.episode_paths(paths, paths[:, -1], rooms, np.full(many, np.nan)),
        "rows": success.success_rows(rows()),
        "compute": success.success_against(
            {"": rows()}, "flops_per_step", title="Success against compute, validation trials"
        ),
        "designs": success.designs({"a": {"level 1": (2, 1, 3)}}, {"a": rows()[1:3]}),
        "pairs": success.pair_differences(pd.DataFrame([gaps])),
        "failures": success.failure_bars(shares),
        "calibration": training.calibration(pairs, pairs),
        "geometry": training.cost_geometry(pairs, {"a": pairs}, pairs > 40),
        "clocks": training.macro_grid(paths[0], 8, ROOM),
        "kl": training.kl_by_dimension(pairs[:20]),
        "proposals": training.proposals(places[:few], clouds, rooms[:few], 14.4),
    }


def test_every_figure_is_a_small_png_with_nothing_cut_off(gallery):
    """PL14."""
    for name, figure in gallery.items():
        data = figure._repr_png_()
        image = Image.open(io.BytesIO(data))
        assert data.startswith(b"\x89PNG") and len(data) < LIMIT_BYTES, name
        assert max(image.size) <= 1200 and len(figure.axes) <= style.MOST_PANELS, name
        smaller = io.BytesIO()  # letters are wider, in parts of an inch
        figure.savefig(smaller, format="png", dpi=80)
        for drawn in (image, Image.open(smaller)):
            pixels = np.array(drawn.convert("RGB"))
            edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            assert (edges > 245).all(), name
        title = figure.get_suptitle() and figure._suptitle.get_window_extent()
        for legend in figure.legends if title else ():
            assert not legend.get_window_extent().overlaps(title), name


def test_figures_leave_matplotlib_as_it_was_and_keep_their_style_while_drawing():
    """Ticks are created at drawing time, where the style must hold."""
    before = dict(matplotlib.rcParams)
    outside = style.png(success.success_rows(rows()))
    assert dict(matplotlib.rcParams) == before
    assert Gcf.get_num_fig_managers() == 0  # pyplot knows none of these figures
    with matplotlib.rc_context(style.STYLE):
        assert style.png(success.success_rows(rows())) == outside


TWO = np.ones((4, 2))


def test_what_cannot_be_drawn_is_refused_in_a_sentence():
    """F14."""
    for wrong in (
        frames() * 1.0, frames() / 255 - 0.5, frames().astype(np.int64), np.full((2, 8, 8), np.nan),
        np.zeros((5, 8, 8), np.uint8),
    ):  # fmt: skip
        refused(FigureError, "frames must be", data.frame_rgb, wrong)
    free = {"a": rows(flops_per_step=0.0)}
    for message, draws, *arguments in (
        ("frames must", data.frame_rgb, 255 * np.ones((1, 8, 8)), True),
        ("'idm'", training.loss_curves, [{"step": 1, "sim": 1}], ["idm"]),
        ("at least one row", success.success_rows, []),
        ("no column 'depth'", success.success_against, {"a": rows()}, "depth"),
        ("compute above 0", success.success_against, free, "flops_per_step"),
    ):
        refused(FigureError, message, draws, *arguments)


def test_golden_colours_of_a_frame_in_both_ranges():
    """F14."""
    rgb = data.frame_rgb(frames(1))[0]
    wall = [115, 125, 138]
    assert rgb[40, 20].tolist() == [255, 255, 255]
    assert rgb[25, 10].tolist() == rgb[10, 32].tolist() == [0, 0, 0]  # floor, and the open door
    assert rgb[30, 31].tolist() == rgb[30, 33].tolist() == rgb[4, 50].tolist() == wall
    assert np.array_equal(rgb, data.frame_rgb(torch.tensor(frames(1) / 255))[0])
    drawn = style.rgb(data.frame_grid([frames(1)]))
    assert (drawn.max(-1) < 20).mean() > 0.4  # mostly black on paper, not white
    nine = np.arange(9, dtype=np.uint8)[:, None, None]
    assert data.frame_rgb(nine).tolist() == [[[6, 7, 8]]]  # the last of three frames
    assert data.room_of(nine).tolist() == [[[172, 173, 173]]]
    grey = data.frame_rgb(np.array([[[0.5, 1.2]]]), predicted=True)
    assert grey.tolist() == [[[128] * 3, [255] * 3]]  # a decoder draws a little too bright
    film = np.array(Image.open(io.BytesIO(data.film(frames(3), ["t-1", "t", "next"]))))
    assert film.shape[1] == 3 * (2 * 65 + 8) + 8 and film[16 + 80, 8 + 40].tolist() == [255] * 3


@pytest.mark.parametrize("room", [ROOM, np.dstack([ROOM[:40]] * 3)])
def test_the_map_is_the_rendered_room_with_its_door_open(room):
    """N14."""
    fan = np.full((3, 4, 2), 99), [1, 2, 3], TWO, [1, 1], GOAL
    axis = plans.plan_fan(*fan, room).axes[0]
    image = axis.images[0].get_array()
    assert np.all(image[30, 32] > 0) and np.all(image[10, 32] == 0)
    assert axis.get_xlim() == (-0.5, 64.5) and axis.get_ylim() == (len(room) - 0.5, -0.5)


def test_trajectories_are_drawn_whole_where_they_are_whatever_their_lengths():
    path = RNG.uniform(5, 59, (30, 2))
    figure = plans.room_paths([path, np.ones((9, 2))], [ROOM, ROOM])
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    segments = np.array(lines.get_segments())  # (29, 2, 2)
    assert np.allclose(segments[:, 0], path[:-1]) and np.allclose(segments[-1, 1], path[-1])


def test_cost_landscape_puts_each_value_at_its_place_and_keeps_holes():
    x, y = np.linspace(10, 50, 5), np.linspace(20, 40, 3)
    values = np.arange(15.0).reshape(3, 5)
    values[1, 2] = np.nan
    figure = data.cost_landscape({"latent": values, "distance": values}, x, y, GOAL, ROOM)
    axis = figure.axes[titles(figure).index("distance")]
    image = next(one for one in axis.collections if isinstance(one, QuadMesh))
    corners = image.get_coordinates()
    assert corners[0, 0].tolist() == [5, 15] and corners[-1, -1].tolist() == [55, 45]
    assert image.get_array()[2, 4] == 14 and image.get_array().mask[1, 2]


def test_the_visits_lie_where_the_dot_was():
    figure = data.motion(np.ones(5), np.zeros(5), np.array([[10.2, 30.0]] * 3 + [[50, 8]]), ROOM)
    visits = figure.axes[2].collections[0].get_array()
    assert visits[30, 10] == 1.5 and visits[8, 50] == 0.5 and visits.count() == 2


def test_plan_fan_ranks_candidates_and_names_what_level_1_aims_at():
    start = np.array([10.0, 10.0])
    rollouts, costs = RNG.uniform(5, 59, (30, 4, 2)), RNG.normal(size=30)
    axis = plans.plan_fan(rollouts, costs, rollouts[3], start, GOAL, ROOM, rollouts[1]).axes[0]
    fan = next(c for c in axis.collections if isinstance(c, LineCollection))
    segments = np.array(fan.get_segments())  # (30, 5, 2)
    assert np.allclose(segments[-1, 1:], rollouts[costs.argmin()])
    assert np.allclose(segments[0, 1:], rollouts[costs.argmax()])
    assert np.allclose(segments[:, 0], start)
    best, worst = (line.get_color() for line in axis.lines[:2])
    assert to_hex(best) == to_hex(fan.get_colors()[-1]) == style.BLUE.lower() != to_hex(worst)
    assert "sub-goal of level 1" in words(axis.figure)


def test_episodes_say_when_the_goal_was_reached_or_how_far_it_was_missed():
    paths, goals = np.full((3, 11, 2), 20.0), np.array([[20, 20], [20, 24.5], [20, 24.5]])
    figure = plans.episode_paths(paths, goals, [ROOM] * 3, np.array([0, 11, np.nan]))
    assert titles(figure) == ["reached at 0", "missed by 4.5 px", "missed by 4.5 px"]


def test_loss_curves_show_training_with_its_mean_and_validation_of_each_named_term():
    records = [{"step": s, "sim": float(s), "std": None if s == 2 else 1.0} for s in (1, 2, 3)]
    records.append({"step": 3, "validation_sim": 7.0})
    left, right = training.loss_curves(records, ["sim", "std"]).axes
    raw, mean, held_out = left.lines
    assert raw.get_ydata().tolist() == mean.get_ydata().tolist() == [1, 2, 3]
    assert held_out.get_xydata().tolist() == [[3, 7]]
    assert right.lines[0].get_xdata().tolist() == [1, 3]  # null values are skipped
    values = RNG.normal(size=90)
    records = [{"step": s, "sim": v, "lr": 1e-4 + 1e-17 * (s % 2)} for s, v in enumerate(values)]
    left, right = training.loss_curves(records, ["sim", "lr"]).axes
    mean = left.lines[1].get_ydata()
    assert mean[[0, 50]] == pytest.approx([values[0], values[48:51].mean()])
    assert right.get_ylim() == pytest.approx((0, 2e-4))  # constant up to rounding


def test_probe_titles_carry_the_rmse_in_px():
    true = RNG.uniform(5, 59, (500, 2))
    figure = training.probe_scatter(true, true + np.array([3.0, 4.0]))
    assert figure.get_suptitle() == "Position probe: RMSE 5.00 px"
    assert titles(figure)[0].startswith("x: RMSE 3.00 px")
    figure = training.probe_scatter(true, true + np.array([3.0, 4.0]), unit="m")
    assert figure.get_suptitle().endswith(" 5.00 m") and "px" not in titles(figure)[0]


def test_open_loop_error_shows_medians_bands_and_the_stay_baseline():
    """HW4."""
    steps, errors = np.array([8, 16, 24]), RNG.uniform(0, 3, (200, 3))
    curves = {"level 1": (np.arange(1, 25), np.ones((5, 24))), "level 2": (steps, errors)}
    curves["stand still"] = (steps, 9 + errors)
    figure = training.open_loop_error(curves, {"planning horizon": 8})
    (axis,), low = figure.axes, np.quantile(errors, 0.1, axis=0)
    second, stay = axis.lines[1:3]
    assert second.get_xdata().tolist() == [8, 16, 24] and axis.get_xscale() == "log"
    assert second.get_ydata() == pytest.approx(np.median(errors, 0))
    assert stay.get_ydata() == pytest.approx(9 + np.median(errors, 0))
    assert axis.collections[1].get_paths()[0].vertices[:, 1].min() == pytest.approx(low.min())
    assert {"level 1", "level 2", "stand still", "planning horizon"} <= words(figure)


def test_error_by_horizon_shows_the_collapse_on_its_threshold():
    steps = np.arange(1, 97)
    band = (steps, steps / 10, steps / 12, steps / 8)
    collapsed = {"level 1": (41, 35, 45), "level 2": (math.inf, 3, math.inf)}
    figure = training.error_by_horizon({"level 1": band}, None, ("half the door", 4.0), collapsed)
    (axis,) = figure.axes
    (x, y, low, high) = next(iter(points(axis).values()))
    assert (x.tolist(), y.tolist(), low.tolist(), high.tolist()) == ([41], [4], [35], [45])
    assert training.error_by_horizon({"level 1": band}, top=5.0).axes[0].get_ylim() == (0, 5)


def test_latent_map_shows_the_principal_components_coloured_by_position():
    latents, positions = RNG.normal(size=(50, 6)), RNG.uniform(5, 59, (50, 2))
    left, right = (axis.collections[0] for axis in data.latent_map(latents, positions).axes[:2])
    order, drawn = np.argsort(positions[:, 0]), np.argsort(left.get_array())
    flat = PCA(2, random_state=0).fit_transform(latents)
    assert np.allclose(np.array(left.get_offsets())[drawn], flat[order])
    assert np.allclose(np.array(right.get_array())[drawn], positions[order, 1])


def test_rows_show_rate_interval_and_n_with_floor_and_ceiling():
    """F12, F15."""
    figure = success.success_rows(rows())
    (axis,) = figure.axes
    x, y, low, high = points(axis)["flat, distance cost"]
    assert (x.tolist(), y.tolist()) == ([0.97], [2])
    assert (low[0], high[0]) == pytest.approx(wilson(97, 100))
    assert "97 %  [92, 99]" in words(figure) and axis.get_xlabel() == "success, n = 100"
    assert texts(axis.get_yticklabels())[2] == "flat, distance cost"
    dotted = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    assert dotted == [0.03, 1.0]


def test_success_against_compute_joins_what_no_cheaper_point_equals():
    spent = {4e7: 30, 1e7: 10, 2e7: 9}
    budgets = [row("flat", "latent", hits, flops_per_step=price) for price, hits in spent.items()]
    figure = success.success_against({"a": [*budgets, rows()[0]]}, "flops_per_step")
    (axis,) = figure.axes
    best, beaten = (bars.lines[0] for bars in axis.containers)
    assert best.get_xdata().tolist() == [1e7, 4e7] and axis.get_xscale() == "log"
    assert beaten.get_xdata().tolist() == [2e7]
    assert (best.get_linestyle(), beaten.get_linestyle()) == ("--", "None")
    assert {"flat, latent cost", "random"} <= words(figure)
    lines = pd.DataFrame(budgets).assign(flops_per_step=1e7, rate=0.5, low=0.4, high=0.6)
    both = pd.concat([lines, lines.assign(cost="distance")])
    figure = success.frontiers(both, floors={"random": 0.02, "oracle": 1.0})
    assert {"random", "oracle"} <= words(figure)

    looks = [style.look("flat", cost) for cost in ("latent", "distance", "graph")]
    assert len({(one["ls"], one.get("marker")) for one in looks}) == 3
    assert len({one["color"] for one in looks}) == 1


def test_success_against_a_setting_pools_seeds():
    hits = {24: (0, 10), 5: (20, 30), 96: (40, 50)}
    found = []
    for h, two in hits.items():
        found += [row("flat", "distance", hit, h=h, seed=s) for s, hit in enumerate(two)]
    table = pd.DataFrame([*found, *(row("random", "none", 1, h=5, seed=s) for s in (0, 1))])
    table["solved"] = [pack_solved(np.arange(100) < hit) for hit in table["successes"]]
    lines = pooled(table, ["method", "cost", "h"])
    figure = success.success_against({"p1": lines}, "h", marks={"trained": 16, "far": 500})
    (axis,) = figure.axes
    x, y, low, high = points(axis)["flat, distance cost"]
    assert list(x) == [5, 24, 96]  # by size, not by the order of the table
    assert list(y) == [0.25, 0.05, 0.45]
    wanted = [success_rate([np.arange(100) < n for n in hits[h]])[1:] for h in x]
    np.testing.assert_allclose(np.transpose([low, high]), wanted)
    assert axis.get_xscale() == "log" and "trained" in words(figure) and "far" not in words(figure)
    named = [row("flat", "", 50, size=size) for size in ("2M L1", "6M", "2M L1+L2")]
    (axis,) = success.success_against({"": named}, "size").axes
    assert texts(axis.get_xticklabels()) == ["2M L1", "6M", "2M L1+L2"]


def test_designs_show_errors_beside_success():
    errors = {"a": {"level 1": (2, 1, 3)}, "b": {"level 1": (4, 3, 5), "level 2": (5, 4, 6)}}
    figure = success.designs(errors, {name: [row("l1+l2", "latent", 50)] for name in errors})
    left, right = figure.axes
    assert texts(left.get_yticklabels()) == ["a", "b"]
    assert points(left)["level 1"][0].tolist() == [2, 4]
    assert points(left)["level 2"][1].tolist() == pytest.approx([1.08])
    assert points(right)["l1+l2, latent cost"][0].tolist() == [0.5, 0.5]


def test_pairs_name_seeds_and_p_values_and_failures_fill_their_bars(gallery):
    row = {"pair": "two - flat", "difference": 0.1, "difference_low": 0.0, "mcnemar_p": 0.01}
    table = pd.DataFrame([row | {"difference_high": 0.2, "seed": s} for s in ("0", "1", "all")])
    found = words(success.pair_differences(table))
    assert {"two - flat, seed 0", "two - flat, seed 1", "two - flat", "p = 0.01"} <= found
    ends = [bar.get_x() + bar.get_width() for bar in gallery["failures"].axes[0].patches]
    assert max(ends) == pytest.approx(1) and "stuck at the wall" in words(gallery["failures"])


def test_beliefs_show_quantiles_the_discounted_reference_and_a_correlation_per_cost():
    recorded = np.repeat(np.arange(1.0, 5.0), 100)
    predicted = recorded / 2 + np.tile(np.linspace(-1, 1, 100), 4)
    axis = training.calibration(recorded, predicted).axes[0]
    median, reference = axis.lines
    assert median.get_ydata() == pytest.approx([0.5, 1, 1.5, 2])
    band = axis.collections[1].get_paths()[0].vertices[:, 1]
    assert np.ptp(band) == pytest.approx(1.5 + 1.6, abs=0.05)  # 10 to 90 % of a width of 2
    assert list(reference.get_xdata()) == list(reference.get_ydata())
    reference = training.calibration(recorded, predicted, gamma=0.5).axes[0].lines[1]
    assert reference.get_ydata()[-1] == pytest.approx(1 + 0.5 + 0.25 + 0.125)

    true = RNG.uniform(1, 60, 400)
    figure = training.cost_geometry(true, {"exact": true**0.5, "reversed": 100 - true}, true > 40)
    assert titles(figure) == ["rank correlation 1.00", "rank correlation -1.00"]


def test_level_2_is_shown_by_its_clock_its_divergence_and_its_proposals():
    path = RNG.uniform(5, 59, (33, 2))
    axis = training.macro_grid(path, 8, ROOM).axes[0]
    assert texts(axis.texts) == ["0", "1", "2", "3", "4"]
    assert axis.texts[4].xy == pytest.approx(path[32])
    figure = training.kl_by_dimension(np.array([0.1, 0.5, 0.0]))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.5, 0.1, 0.0]
    assert "0.60 nats" in figure.get_suptitle()
    starts = np.array([[20.0, 30.0], [50.0, 40.0]])
    clouds = starts[:, None] + RNG.normal(size=(2, 40, 2))
    figure = training.proposals(starts, clouds, [ROOM] * 2, reach=14.4)
    for axis, start, cloud in zip(figure.axes, starts, clouds, strict=True):
        (dots, ring), (circle,) = axis.collections, axis.patches
        assert np.asarray(dots.get_offsets()) == pytest.approx(cloud)
        assert np.asarray(ring.get_offsets()[0]) == pytest.approx(start)
        assert (circle.center, circle.radius) == (pytest.approx(start), 14.4)


def test_controls_show_success_and_deviation_and_name_every_curve():
    """N6: `zero` was nameless."""
    hits = {"none": 9, "zero": 0}
    controls = [row("l1+l2", "latent", n, 10, control=name) for name, n in hits.items()]
    for order in (None, ["zero", "none"]):
        (axis,) = success.success_rows(controls, by="control", order=order).axes
        assert points(axis)["l1+l2, latent cost"][0].tolist() == [0.9, 0]
        assert texts(axis.get_yticklabels()) == (order or ["none", "zero"])


def room():
    return render_walls(Layout.fixed())[0].numpy()


def episode(positions):
    return plans.comparison_gif([plans.Clip(positions, GOAL, room())])


def walk(steps):
    free = 20 + np.cumsum(RNG.normal(scale=1.3, size=(steps + 1, 2)), axis=0)
    return 5 + np.abs((free - 5) % 108 - 54)  # folded back at 5 and 59


def decoded(gif, step):
    image = Image.open(io.BytesIO(gif))
    image.seek(step)
    return np.array(image.convert("RGB"))


def near(image, colour):
    return (np.abs(image - 255.0 * np.array(to_rgb(colour))) < 5).all(-1)


def places(image, colour):
    """World px (n, 2) of the pixels of one colour, for a single clip."""
    floor = near(image, style.FLOOR)
    corner, end = np.transpose([np.flatnonzero(floor.sum(i) > 50)[[0, -1]] for i in (0, 1)])
    at = np.argwhere(near(image, colour))[:, ::-1]
    return 65 * (at + 0.5 - corner) / (end + 1 - corner) - 0.5


def test_a_frame_per_state_ten_a_second_even_at_rest_with_a_red_goal_and_the_dot_in_its_place():
    image = Image.open(io.BytesIO(episode(np.full((31, 2), 20.0))))
    assert image.n_frames == 31  # steps + 1; equal frames would have been merged
    assert {one.info["duration"] for one in ImageSequence.Iterator(image)} == {100}

    positions = np.array([[10.0, 20.0], [20.0, 50.0], [24.0, 12.0]])
    gif = episode(positions)
    for step, position in enumerate(positions):
        image = decoded(gif, step)
        for colour, place in ((style.GOAL, GOAL), (style.BLUE, position)):
            assert places(image, colour).mean(0) == pytest.approx(place, abs=0.3)


def test_two_methods_of_200_steps_stay_below_300_kb():
    """PL14."""
    clips = [plans.Clip(walk(200), GOAL, room(), name) for name in ("flat", "L1+L2")]
    gif = plans.comparison_gif(clips)
    image = Image.open(io.BytesIO(gif))
    assert len(gif) <= plans.LIMIT_BYTES and image.n_frames == 201
    assert image.width > 2 * 58 * 3  # readable: at least three screen pixels per px


def test_a_gif_above_the_cap_is_drawn_smaller_or_refused(monkeypatch):
    positions = walk(20)
    normal = len(episode(positions))
    monkeypatch.setattr(plans, "LIMIT_BYTES", normal - 1)
    assert len(episode(positions)) < normal
    monkeypatch.setattr(plans, "LIMIT_BYTES", 100)
    refused(FigureError, "fewer steps", episode, positions)


def test_clip_of_a_stored_result_shows_where_level_2_sends_level_1():
    """N9: and no sub-goal where level 1 aims at the goal itself."""
    arrays = {
        "positions": np.full((2, 5, 2), 20.0, np.float32),
        "goal": np.array([[1.0, 2.0], [50.0, 40.0]], np.float32),
        "plan_subgoal_xy": np.full((2, 2, 2), 30.0, np.float32),  # a call every two steps
        "plan_near": np.array([[0, 0], [0, 1]]),
    }
    clip = plans.clip_of(arrays, 1, room(), "l1+l2, latent")
    assert (clip.positions == 20).all() and clip.goal.tolist() == [50, 40]
    assert (clip.title, clip.colour) == ("l1+l2, latent", style.ORANGE)
    assert np.isnan(clip.subgoals).all(1).tolist() == [False, False, True, True]
    flat = {name: value for name, value in arrays.items() if not name.startswith("plan")}
    assert plans.clip_of(flat, 0, room(), "flat").subgoals is None
    gif = plans.comparison_gif([clip._replace(colour=style.BLUE)])
    first, *_, last = (places(decoded(gif, step), style.ORANGE) for step in range(5))
    assert first.mean(0) == pytest.approx([30, 30], abs=0.3) and not len(last)


def test_a_gif_shows_what_is_seen_at_each_step():
    rooms = np.full((5, 65, 65, 3), (0xF4, 0xF5, 0xF7), np.uint8)
    rooms[range(5), 30, range(10, 60, 10)] = (0, 255, 0)
    gif = plans.comparison_gif([plans.Clip(np.full((5, 2), 50.0), GOAL, rooms)])
    guard = [places(decoded(gif, step), "#00FF00").mean(0)[0] for step in range(5)]
    assert guard == pytest.approx([10, 20, 30, 40, 50], abs=0.5)
