"""The README's generated parts and the results page: rows of the study, pooled, and sections."""

import shutil

import pandas as pd
import pytest
from PIL import Image
from tiny import tiny_config
from tiny_runs import floors

from hjepa_lib import readme
from hjepa_lib.config import profile
from hjepa_lib.files import WorkbookError, read_json
from hjepa_lib.runs.places import repository
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import Run, RunError
from hjepa_lib.workbench import verdict
from hjepa_lib.workbench.rows import load_rows

PARTS = ("results", "worlds", "pixels")
TABLES = ("study", "worlds", "own_mazes")


@pytest.fixture(scope="module")
def rows():
    return load_rows(repository() / readme.GALLERY / "study.csv")


@pytest.fixture(scope="module")
def headline(rows):
    return readme.headline_block(rows)


def test_the_committed_texts_are_those_of_the_committed_files(rows, headline):
    root = repository()
    text, kept = (root / "README.md").read_text(), read_json(root / readme.KEPT)
    worlds, mazes = (load_rows(root / readme.GALLERY / f"{name}.csv") for name in TABLES[1:])
    found = f"{readme.worlds_block(worlds)}\n\n{readme.own_mazes_block(mazes)}"
    blocks = headline, found, readme.pixels_block(kept)
    for name, block in zip(PARTS, blocks, strict=True):
        assert f"{readme.BEGIN.format(name)}\n{block}\n{readme.END.format(name)}" in text
    assert (root / readme.PAGE).read_text() == readme.results_page(rows, kept)


def test_the_headline_table_has_planners_tuned_alike_and_the_metrics_of_the_comparison(
    rows, headline
):
    """Q5, Q9; N10: an interval with every ratio."""
    table, _, said, _ = headline.split("\n\n")
    heads = "other room, % | first plan ends there, % | error, px^2 | RMSE, px"
    assert heads in table and "distance cost" not in table and len(table.splitlines()) == 2 + 5
    assert "flat is not tuned | p1 flat distance" in readme.lever_table(rows)
    for line in said.splitlines():
        assert "95 % interval" in line or "FLOPs of flat over those" not in line


def test_every_world_has_a_line_with_its_floors_and_oracle():
    rows = load_rows(repository() / readme.GALLERY / "worlds.csv")
    lines = readme.worlds_block(rows).split("\n\n")[0].splitlines()[2:]
    assert len(lines) == rows["world"].nunique()
    for line in lines:
        for name in ("random ", "random-persistent ", "oracle ", "flat (graph) "):
            assert name in line, line


def test_unfinished_points_are_left_out(rows):
    last = (rows["cell"] == verdict.FLAT) & (rows["seed"] == rows["seed"].max())
    text = readme.headline_block(rows[~last])
    assert "horizon 48" not in text and "McNemar" not in text
    assert readme.lever_table(rows[:0]) == ""


def test_the_bar_s_settings_are_those_that_validation_trials_choose(rows):
    """The best within a tenth more FLOPs than the hierarchy takes; ties go to the cheaper one."""
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


@pytest.fixture
def root(tmp_path):
    """A checkout with a README and a part of the study."""
    (tmp_path / readme.GALLERY).mkdir(parents=True)
    path = f"{readme.GALLERY}/study.csv"
    rows = pd.read_csv(repository() / path, dtype=str, keep_default_na=False)
    part = rows[rows["group"].isin(["floors", "p1", "controls"])]
    part.to_csv(tmp_path / path, index=False)
    for name in TABLES[1:]:
        shutil.copy(repository() / readme.GALLERY / f"{name}.csv", tmp_path / readme.GALLERY)
    parts = [f"{readme.BEGIN.format(name)}\nold\n{readme.END.format(name)}" for name in PARTS]
    (tmp_path / "README.md").write_text("\n".join(["before", *parts, "after\n"]))
    return tmp_path


def test_generated_parts_are_replaced_and_nothing_else(root, tmp_path):
    page = readme.refresh(root).read_text()
    text = (root / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "control zero" in page and "control zero" not in text and "World models" not in page

    run = Run.create("all", tiny_config(), tmp_path / "runs")
    with pytest.raises(RunError, match="'all' has no comparison on pixels"):
        readme.keep_pixels(run, root)
    about = {"title": "World models", "headline": "Two on a world.", "sentences": ["About them."]}
    leave_section(run, "20-pixels", about | {"data": {"many": [1, 2]}})
    leave_section(run, "40-planning", {"title": "Two Rooms", "results": floors()})
    for name, seconds in (("10_gym_data", 30.0), ("13_reward_predictors", 600.0), ("05_x", 9e9)):
        run.note(name, {"ok": True, "seconds": seconds}, "notebooks")
    Image.new("RGB", (4, 4)).save(run.folder("figures") / readme.PIXEL_PICTURES[0])
    for name in readme.PICTURES:
        (run.folder("figures") / name).write_bytes(name.encode())
    readme.keep_pictures(run, root)
    assert all((root / readme.GALLERY / name).read_text() == name for name in readme.PICTURES)
    with run.stage("comparison"):
        pass
    kept = read_json(readme.keep_pixels(run, root))
    assert kept["revision"] == run.manifest["stages"]["comparison"]["revision"]  # I10
    assert "data" not in kept["sections"][0]
    assert (root / readme.GALLERY / readme.PIXEL_PICTURES[0]).is_file()
    page = readme.refresh(root).read_text()
    again = (root / "README.md").read_text()
    assert "Two on a world." in again and "About them." not in again
    assert "## World models\n\nAbout them." in page and "| random | 7 (3-14) | 100 |" in page
    assert "| 10_gym_data | 0.5 |" in page and "| all of them | 10.5 |" in page
    readme.refresh(root)
    assert (root / "README.md").read_text() == again
    (root / "README.md").write_text("no markers")
    with pytest.raises(WorkbookError, match="two markers of the results"):
        readme.refresh(root)
