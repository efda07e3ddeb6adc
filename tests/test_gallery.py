"""The committed gallery: rows of finished runs, pooled, and the README's generated table."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_config

from hjepa_lib import pixelgallery
from hjepa_lib import readme as gallery
from hjepa_lib.config import profile
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import read_json, write_json
from hjepa_lib.runs.places import RunError, repository
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import verdict
from hjepa_lib.workbench.rows import RowsError, load_rows, pack_solved


def rows():
    """Two seeds of one method, and the random planner without FLOPs."""
    base = {"protocol": "p1", "layouts": "fixed", "dynamics": "bounce", "path_efficiency": 0.5}
    base |= {name: 1.0 for name in gallery.NUMBERS if name not in ("n", "successes")}
    found = [
        base | {"method": "flat", "cost": "latent", "seed": seed, "n": 100, "successes": hits}
        for seed, hits in ((0, 90), (1, 100))
    ]
    found.append(base | {"method": "random", "cost": "none", "seed": 0, "n": 100, "successes": 0})
    found[-1]["flops_per_step"] = None
    return pd.DataFrame(found)


def test_seeds_are_pooled_with_their_interval():
    """F15: n, interval and the number of seeds stand in every row."""
    table = gallery.pooled(rows()).set_index("method")
    flat = table.loc["flat"]
    assert (flat["n"], flat["seeds"], flat["rate"]) == (200, 2, 0.95)
    assert (flat["low"], flat["high"]) == pytest.approx(wilson(190, 200))


def test_readme_table_is_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "outputs" / "gallery"
    folder.mkdir(parents=True)
    rows().to_csv(folder / "results.csv", index=False)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gallery.BEGIN}\nold\n{gallery.END}\nafter\n")
    gallery.refresh_readme(tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| flat | latent | bounce | 95.0 (91.0-97.3) | 200 (2) |" in text
    assert "| random | none | bounce | 0.0 (0.0-3.7) | 100 (1) |" in text
    once = text
    gallery.refresh_readme(tmp_path)
    assert readme.read_text() == once
    readme.write_text("no markers")
    with pytest.raises(RunError, match="markers"):
        gallery.refresh_readme(tmp_path)


def test_every_point_of_a_study_has_a_row_and_a_name():
    """Budgets and settings of one planner are never pooled with each other."""
    found = rows()[lambda table: table["method"] == "flat"]
    points = [
        found.assign(budget=budget, grid=grid)
        for budget, grid in ((1.0, ""), (0.25, ""), (1.0, "flat.horizon=48"))
    ]
    table = gallery.pooled(pd.concat(points))
    assert len(table) == 3
    assert (table["n"] == 200).all()
    names = [gallery.planner_name(row) for row in table.itertuples()]
    assert names == ["flat", "flat, samples x 0.25", "flat, horizon 48"]
    two = SimpleNamespace(method="l1+l2", grid="hierarchy.level2.horizon=8+replan=8", budget=1.0)
    assert gallery.planner_name(two) == "l1+l2, level2 horizon 8, replan 8"


def study(budgets=(0.25, 0.5, 1.0), seeds=(0, 1)):
    """Rows of a small study: floors, a pair at one budget, frontiers, one control; 40 trials."""
    found = []
    for seed in seeds:
        for name in ("random", "oracle"):
            hits = 40 * (name == "oracle")
            found.append(study_row(f"p1_{name}", "floors", seed, hits, name, None))
        found.append(study_row(verdict.HIERARCHY, "bar", seed, 38, "l1+l2", 5e7, budget=0.5))
        found.append(study_row(verdict.FLAT, "bar", seed, 20, "flat", 5e7, grid="flat.horizon=48"))
        for method, rate in (("l1+l2", 39), ("flat", 20)):
            for budget in budgets:
                hits, flops = round(rate * budget**0.2), 1e8 * budget
                cell = f"frontier_{method}"
                found.append(study_row(cell, "frontier", seed, hits, method, flops, budget=budget))
        found.append(study_row("control_zero", "controls", seed, 1, "l1+l2", 1e8, control="zero"))
    return pd.DataFrame(found)


def study_row(cell, group, seed, hits, method, flops, **more):
    cost = "none" if flops is None else "latent"
    row = {"cell": cell, "group": group, "recipe": "base", "grid": "", "training": "a"}
    row |= {"revision": "x", "method": method, "cost": cost, "seed": seed, "budget": 1.0}
    row |= {"protocol": "p1", "split": "test", "layouts": "fixed", "dynamics": "bounce", "n": 40}
    row |= {"trials_hash": "12", "planner.steps": 200, "successes": hits, "control": "none"}
    row |= {"solved": pack_solved(np.arange(40) < hits), "success_rate": hits / 40}
    row |= {name: 1.0 for name in gallery.NUMBERS if name not in row}
    return row | {"flops_per_step": flops} | more


def test_study_block_says_what_the_rows_say(tmp_path):
    path = tmp_path / "study.csv"
    study().to_csv(path, index=False)
    text = gallery.study_block(load_rows(path))
    assert "| l1+l2, samples x 0.5 | latent | bounce | 95.0 (87.8-98.0) | 80 (2) |" in text
    assert "| flat, horizon 48 | latent | bounce | 50.0 (39.3-60.7) | 80 (2) |" in text
    assert "95.0 / 95.0 % against 50.0 / 50.0 % (seeds 0 / 1, n = 40 each), +45 points" in text
    assert "exact paired McNemar p per seed 8e-06 / 8e-06." in text
    best = "best of all budgets from 25 to 100 MFLOP: l1+l2 97.5 % at 100 MFLOP per step, flat 50.0"
    assert best in text and "All trials" not in text
    p1 = [study_row(f"p1_{m}", "p1", 0, 30, m, 1e8) for m in ("flat", "l1+l2")]
    assert (
        "flat (latent cost) solves 30 of 40 at 100 MFLOP" in verdict.sentences(pd.DataFrame(p1))[0]
    )
    p2 = [
        study_row(group, group, seed, hits, "flat", 1e8, protocol=group, success_first_1p41=0.5)
        for group, hits in (("p2_heldout", 38), ("p2_seen", 40))
        for seed in (0, 1)
    ]
    assert verdict.sentences(pd.DataFrame(p2)) == [
        "Random layouts, flat, distance cost, within 4.5 px at the end: 95.0 / 95.0 % in layouts "
        "of no training (seeds 0 / 1, n = 40 each; within sqrt(2) px at some step 50.0 %), "
        "100.0 / 100.0 % in those of the training (seeds 0 / 1, n = 40 each; within sqrt(2) px at "
        "some step 50.0 %)."
    ]
    assert "Latent cost, FLOPs of flat over those of L1+L2" in text and "at least " in text
    assert "| level 2 tampered with | control zero | l1+l2, latent | 2.5 (0.7-8.7) |" in text
    floor = pd.DataFrame([study_row("p2_oracle", "p2_floors", 0, 40, "oracle", None)])
    line = "| p2 oracle | oracle, none | 100.0 (91.2-100.0) | 40 (1) | - |"
    assert line in gallery.lever_table(floor)
    assert "frontier" not in gallery.markdown(gallery.pooled(gallery.shown(study(), gallery.TABLE)))


def test_unfinished_points_are_left_out_and_mixed_ones_refused(tmp_path):
    whole = study()
    half = whole[~((whole["cell"] == verdict.FLAT) & (whole["seed"] == 1))]
    text = gallery.study_block(half)
    assert "horizon 48" not in text and "McNemar" not in text
    mixed = whole.assign(**{"planner.flat.horizon": 8})
    mixed.loc[mixed.index[2], "planner.flat.horizon"] = 9
    with pytest.raises(RowsError, match="mixes settings"):
        gallery.study_block(mixed)


def test_the_bar_s_settings_are_those_that_validation_trials_choose():
    """Nothing is chosen on test trials: the pair's points are the best ones of `choose`."""
    rows = load_rows(repository() / "outputs" / "gallery" / "study.csv")
    test = rows[rows["cell"].isin([verdict.HIERARCHY, verdict.FLAT])].groupby("cell").first()
    if len(test) < 2:
        pytest.skip("the study has not played the pair yet")
    limit = verdict.SLACK * test.loc[verdict.HIERARCHY, "flops_per_step"]
    flat = verdict.choose(rows, "flat", "latent", limit)
    assert (flat.grid, flat.budget) == tuple(test.loc[verdict.FLAT, ["grid", "budget"]])
    two = verdict.choose(rows, "l1+l2", "latent", limit)
    planner = profile("laptop").planning.hierarchy
    wanted = {
        "hierarchy.level2.horizon": planner.level2.horizon,
        "hierarchy.tracker.horizon": planner.tracker.horizon,
        "hierarchy.level2.sigma": planner.level2.sigma,
    }
    assert two.grid == "+".join(f"{key}={value}" for key, value in wanted.items())
    assert two.tried <= flat.tried


def test_the_readme_shows_the_committed_study():
    """Table, sentences and second table in README.md are those that the committed rows give."""
    root = repository()
    rows = load_rows(root / "outputs" / "gallery" / "study.csv")
    assert gallery.study_block(rows) in (root / "README.md").read_text()


# --- pixels -----------------------------------------------------------------------------------
def kept_pixels():
    """What a run of two models keeps: one claim that holds, one that does not."""
    cell = {"mean": 1.0, "low": 0.5, "high": 1.5, "seeds": 3, "text": "1 (0.5 to 1.5)"}
    claim = {"model": "jepa", "score": "reward MLP", "seeds": 3, "blocks": 9, "low": -0.4}
    claim |= {"difference": -0.3, "high": -0.2, "against": "mean_reward", "verdict": "beats"}
    none = claim | {"against": "random_encoder", "verdict": "no difference shown"}
    row = {"model": "jepa", "look_ahead": [0.01, -0.02, 0.03]}
    row["heads"] = {
        "reward_mlp": {"r2": 0.5, "note": ""},
        "larp": {"r2": None, "note": "not estimable", "transitions": 600, "seeds": 5},
    }
    return {
        "comparison": {
            "environment": "hjepa/Drift-v0",
            "n": {"training": 2400, "validation": 600, "episodes": 24},
            "seeds": [0, 1, 2],
            "models": {"jepa": dict.fromkeys(pixelgallery.COLUMNS, cell)},
            "claims": [claim, none],
        },
        "look_ahead": {"drift": [row, row | {"look_ahead": None}], "push": [row]},
        "planning": [{"method": "random", "success_rate": 0.01, "ci95": [0.0, 0.05], "n": 100}],
    }


def test_pixel_tables_hold_the_run_s_own_numbers_and_claims():
    text = pixelgallery.markdown(kept_pixels())
    assert (
        "2,400 training and 600 validation transitions (24 validation episodes)" in text
        and "3 training seeds" in text
    )
    assert "jepa: reward MLP beats mean reward: error -30.0 % (-40.0 to -20.0" in text
    assert "random encoder" not in text and "2 comparisons in all" in text
    assert text.count("0.500 / not estimable | +0.0100 (-0.0200 to +0.0300) | within noise") == 2
    assert "| random | 1 % (0-5) | 100 |" in text
    without = {key: part for key, part in kept_pixels().items() if key != "look_ahead"}
    assert "Look-ahead" in text and "Look-ahead" not in pixelgallery.markdown(without)


def test_readme_is_refreshed_between_its_pixel_markers(tmp_path):
    readme, place = tmp_path / "README.md", tmp_path / "outputs" / "gallery" / pixelgallery.FILE
    readme.write_text("untouched")
    pixelgallery.refresh(tmp_path)  # nothing is kept yet
    assert readme.read_text() == "untouched"
    write_json(place, kept_pixels())
    with pytest.raises(RunError, match="two markers of the pixels"):
        pixelgallery.refresh(tmp_path)
    readme.write_text(f"before\n{pixelgallery.BEGIN}\nold\n{pixelgallery.END}\nafter\n")
    pixelgallery.refresh(tmp_path)
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert pixelgallery.markdown(kept_pixels()) in text


def test_an_unfinished_run_is_not_kept(tmp_path):
    run = Run.create("half", tiny_config(), tmp_path / "outputs")
    with pytest.raises(RunError, match=r"run 'half' has no pixels/comparison.json"):
        pixelgallery.keep(run, tmp_path)
    assert not (tmp_path / "outputs" / "gallery").exists()


def test_the_readme_shows_the_kept_pixels():
    """Between the markers stands what the committed file gives, and nothing without one."""
    root = repository()
    place = root / "outputs" / "gallery" / pixelgallery.FILE
    shown = pixelgallery.markdown(read_json(place)) + "\n" if place.is_file() else ""
    text = (root / "README.md").read_text()
    assert f"{pixelgallery.BEGIN}\n{shown}{pixelgallery.END}" in text
