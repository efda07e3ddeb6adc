"""The README's generated parts and the results page: rows of the study, pooled, and sections."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import tiny_config
from tiny_runs import floors, result

from hjepa_lib import readme
from hjepa_lib.config import profile
from hjepa_lib.files import WorkbookError, read_json, write_json
from hjepa_lib.runs.places import repository
from hjepa_lib.runs.report import build_summary, leave_section
from hjepa_lib.runs.run import Run, RunError
from hjepa_lib.workbench import verdict
from hjepa_lib.workbench.rows import load_rows, pack_solved


def study(budgets=(0.25, 0.5, 1.0), seeds=(0, 1)):
    """Rows of a small study: floors, a pair at one budget, frontiers, one control; 40 trials."""
    found = []
    for seed in seeds:
        for name in ("random", "oracle"):
            hits = 40 * (name == "oracle")
            found.append(study_row(f"p1_{name}", "floors", seed, hits, name, None))
        found.append(study_row(verdict.HIERARCHY, "bar", seed, 38, "l1+l2", 5e7, budget=0.5))
        tuned = {"grid": "flat.horizon=48", "cross_wall_rate": 0.55, "planning_error_mean": 64.0}
        tuned |= {"init_plan_cross_wall_rate": np.nan, "planning_error_mean_rmse": 8.0}
        found.append(study_row(verdict.FLAT, "bar", seed, 20, "flat", 5e7, **tuned))
        for method, rate in (("l1+l2", 39), ("flat", 20)):
            for budget in budgets:
                hits, flops = round(rate * budget**0.2), 1e8 * budget
                cell = f"frontier_{method}"
                found.append(study_row(cell, "frontier", seed, hits, method, flops, budget=budget))
        found.append(study_row("control_zero", "controls", seed, 1, "l1+l2", 1e8, control="zero"))
    return pd.DataFrame(found)


def study_row(cell, group, seed, hits, method, flops, **more):
    cost = "none" if flops is None else "latent"
    row = {"cell": cell, "group": group, "model": "base", "grid": "", "training": "a"}
    row |= {"revision": "x", "method": method, "cost": cost, "seed": seed, "budget": 1.0}
    row |= {"protocol": "p1", "split": "test", "layouts": "fixed", "dynamics": "bounce", "n": 40}
    row |= {"trials_hash": "12", "planner.steps": 200, "successes": hits, "control": "none"}
    row |= {"solved": pack_solved(np.arange(40) < hits), "success_rate": hits / 40}
    row |= {name: 1.0 for name in readme.NUMBERS if name not in row}
    return row | {"flops_per_step": np.nan if flops is None else flops} | more


# --- the study --------------------------------------------------------------------------------
def test_the_headline_table_has_planners_tuned_alike_and_the_metrics_of_the_comparison():
    """Q5: the untuned flat planner is no opponent here; Q9: four metrics of both planners."""
    rows = study()
    untuned = study_row("p1_flat", "p1", 0, 39, "flat", 1e8)
    text = readme.headline_block(pd.concat([rows, pd.DataFrame([untuned])]))
    lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 2 + 4 and "| - | 100.0 |" not in text
    pair = "| flat, latent cost | 50 | 50.0 (39.3-60.7) | 80 (2) | 55.0 | - | 64.0 | 8.0"
    assert f"{pair} | horizon 48 |" in lines
    assert "| l1+l2, latent cost | 50 | 95.0 (87.8-98.0) | 80 (2) |" in text
    assert "| random | - | 0.0 (0.0-4.6) | 80 (2) |" in text
    heads = "other room, % | first plan ends there, % | error, px^2 | RMSE, px"
    assert heads in lines[0]
    assert "flat is not tuned | p1 flat | flat, latent | 100 | 97.5" in readme.lever_table(
        pd.DataFrame([untuned])
    )


def test_sentences_say_what_the_rows_say(tmp_path):
    path = tmp_path / "study.csv"
    study().to_csv(path, index=False)
    text = readme.headline_block(load_rows(path))
    assert "95.0 / 95.0 % against 50.0 / 50.0 % (seeds 0 / 1, n = 40 each), +45 points" in text
    assert "50 MFLOP per step for L1+L2 and 50 for flat" in text
    assert "exact paired McNemar p per seed 8e-06 / 8e-06." in text
    best = "best of all budgets from 25 to 100 MFLOP: l1+l2 97.5 % at 100 MFLOP per step, flat 50.0"
    assert best in text and "All trials" not in text
    ratio = next(line for line in text.splitlines() if "FLOPs of flat over those" in line)
    assert "at least " in ratio and "95 % interval" in ratio, "N10: never without its interval"
    p1 = [study_row(f"p1_{m}", "p1", 0, 30, m, 1e8) for m in ("flat", "l1+l2")]
    said = verdict.sentences(pd.DataFrame(p1))[0]
    assert "flat (latent cost) solves 30 of 40 at 100 MFLOP" in said
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


def test_the_long_table_has_a_line_per_point_and_names_what_was_changed():
    """Budgets and settings of one planner are never pooled with each other."""
    points = [study_row("x", "sizes", 0, 30, "flat", 1e8, budget=b, grid=g) for b, g in
              ((1.0, ""), (0.25, ""), (1.0, "flat.horizon=48"))]  # fmt: skip
    text = readme.lever_table(pd.DataFrame(points))
    settings = [line.split(" | ")[1] for line in text.splitlines()[2:]]
    assert settings == ["x", "x, samples x 0.25", "x, horizon 48"]
    two = SimpleNamespace(grid="hierarchy.level2.horizon=8+replan=8", budget=1.0)
    assert readme.changes(two) == ["level2 horizon 8", "replan 8"]
    text = readme.lever_table(study())
    line = "| level 2 tampered with | control zero | l1+l2, latent | 100 | 2.5 (0.7-8.7) | 80 (2) |"
    assert line in text and "frontier" not in text
    floor = readme.lever_table(pd.DataFrame([study_row("o", "p2_floors", 0, 40, "oracle", None)]))
    assert "| oracle, none | - | 100.0 (91.2-100.0) | 40 (1) | 1.00 | - |" in floor
    assert readme.lever_table(study()[:0]) == ""


def test_unfinished_points_are_left_out_and_mixed_ones_refused():
    whole = study()
    half = whole[~((whole["cell"] == verdict.FLAT) & (whole["seed"] == 1))]
    text = readme.headline_block(half)
    assert "horizon 48" not in text and "McNemar" not in text
    mixed = whole.assign(**{"planner.flat.horizon": 8})
    mixed.loc[mixed.index[2], "planner.flat.horizon"] = 9
    with pytest.raises(WorkbookError, match="mixes settings"):
        readme.headline_block(mixed)


def test_the_bar_s_settings_are_those_that_validation_trials_choose():
    """Nothing is chosen on test trials: the pair's points are the best ones on validation trials
    within a tenth more FLOPs than the hierarchy takes; ties go to the cheaper one."""
    rows = load_rows(repository() / "outputs" / "gallery" / "study.csv")
    test = rows[rows["cell"].isin([verdict.HIERARCHY, verdict.FLAT])].groupby("cell").first()
    tried = rows[(rows["split"] == "validation") & (rows["group"] == "choose")]
    keys = ["success_rate", "flops_per_step"]
    points = tried[tried["cost"] == "latent"].groupby(["method", "cell", "grid", "budget"])
    points = points[keys].mean().reset_index()
    points = points[points["flops_per_step"] <= 1.1 * test.loc[verdict.HIERARCHY, keys[1]]]
    best = points.sort_values(keys, ascending=[False, True]).groupby("method").first()
    flat, two = best.loc["flat"], best.loc["l1+l2"]
    assert (flat.grid, flat.budget) == tuple(test.loc[verdict.FLAT, ["grid", "budget"]])
    planner = profile("laptop").planning.hierarchy
    wanted = {
        "hierarchy.level2.horizon": planner.level2.horizon,
        "hierarchy.tracker.horizon": planner.tracker.horizon,
        "hierarchy.level2.sigma": planner.level2.sigma,
    }
    assert two.grid == "+".join(f"{key}={value}" for key, value in wanted.items())
    assert (points["method"] == "l1+l2").sum() <= (points["method"] == "flat").sum()


# --- sections and files -----------------------------------------------------------------------
SECTION = {
    "title": "World models on pixels",
    "headline": "Two models on a world.",
    "sentences": ["About them."],
    "tables": [{"columns": ["Measure", "jepa"], "rows": [["std", 0.5]], "notes": ["600 updates."]}],
    "lists": {"Paired comparisons": ["jepa beats copying", "jepa loses to the mean"]},
    "data": {"many": [1, 2]},
}


@pytest.fixture
def root(tmp_path):
    """A checkout with a README, a study, and nothing kept of the pixel chapters."""
    (tmp_path / "outputs" / "gallery").mkdir(parents=True)
    study().to_csv(tmp_path / "outputs/gallery/study.csv", index=False)
    parts = [f"{readme.BEGIN.format(name)}\nold\n{readme.END.format(name)}" for name in PARTS]
    (tmp_path / "README.md").write_text("\n".join(["before", *parts, "after\n"]))
    return tmp_path


PARTS = ("results", "pixels")


@pytest.fixture
def finished(tmp_path):
    """A run of notebooks 10-15 with all that the gallery keeps."""
    run = Run.create("all", tiny_config(), tmp_path / "runs")
    leave_section(run, "20-pixels", SECTION)
    rows = [result("random", "none", 7), result("oracle", "none", 100)]
    leave_section(run, "40-planning", {"title": "Two Rooms", "results": rows, "data": rows})
    for name, seconds in (("10_gym_data", 30.0), ("13_reward_predictors", 600.0), ("05_x", 9e9)):
        run.note(name, {"ok": True, "seconds": seconds}, "notebooks")
    Image.new("RGB", (4, 4)).save(run.folder("figures") / readme.PIXEL_PICTURES[0])
    return run


def test_generated_parts_are_replaced_and_nothing_else(root, finished):
    page = readme.refresh(root).read_text()
    text = (root / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert readme.headline_block(load_rows(root / "outputs/gallery/study.csv")) in text
    assert "control zero" in page and "control zero" not in text and "pixels" not in page
    readme.keep_pixels(finished, root)
    readme.refresh(root)
    again = (root / "README.md").read_text()
    assert "Two models on a world." in again and "About them." not in again
    readme.refresh(root)
    assert (root / "README.md").read_text() == again
    (root / "README.md").write_text("no markers")
    with pytest.raises(WorkbookError, match="two markers of the results"):
        readme.refresh(root)


def test_what_a_run_left_is_kept_and_shown_with_its_own_numbers(root, finished):
    kept = read_json(readme.keep_pixels(finished, root))
    assert "data" not in kept["sections"][0] and (root / "outputs/gallery/11_reconstructions.png")
    page = readme.results_page(load_rows(root / "outputs/gallery/study.csv"), kept)
    for part in ("## World models on pixels\n\nAbout them.", "| std | 0.5 |", "- 600 updates."):
        assert part in page
    assert "<summary>Paired comparisons</summary>\n\n- jepa beats copying" in page
    assert "| random | 7 (3-14) | 100 |" in page and "| oracle | 100 (96-100) | 100 |" in page
    assert "| 10_gym_data | 0.5 |" in page and "| all of them | 10.5 |" in page
    assert "05_x" not in page
    empty = Run.create("half", tiny_config(), root / "runs")
    with pytest.raises(RunError, match="'half' has no comparison on pixels"):
        readme.keep_pixels(empty, root)


def test_rows_of_runs_that_differ_in_their_seed_alone(root):
    runs = []
    for seed in (0, 1, 2):
        config = tiny_config().override({"seed": seed, "level1.width": 8 + 8 * (seed == 2)})
        run = Run.create(f"s{seed}", config, root / "runs")
        write_json(run.path / "summary.json", build_summary(run, [*floors(), result()]))
        for name in readme.PICTURES:
            (run.folder("figures") / name).write_bytes(b"picture")
        runs.append(run)
    table = pd.read_csv(readme.write_gallery(runs[:2], root))
    assert len(table) == 6 and set(table["seed"]) == {0, 1} and set(table["n"]) == {100}
    with pytest.raises(RunError, match=r"'s0' and 's2' differ in level1\.width"):
        readme.write_gallery(runs, root)


def test_the_committed_texts_are_those_of_the_committed_files():
    root = repository()
    rows, kept = load_rows(root / readme.GALLERY / "study.csv"), read_json(root / readme.KEPT)
    text = (root / "README.md").read_text()
    blocks = readme.headline_block(rows), readme.pixels_block(kept)
    for name, block in zip(PARTS, blocks, strict=True):
        assert f"{readme.BEGIN.format(name)}\n{block}\n{readme.END.format(name)}" in text
    assert (root / readme.PAGE).read_text() == readme.results_page(rows, kept)
