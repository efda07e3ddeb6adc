"""The committed gallery: rows of finished runs, pooled, and the README's generated table."""

import pandas as pd
import pytest
from tiny import tiny_config

from hjepa_lib import runs
from hjepa_lib.evaluation.rows import load_rows
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.files import read_json, write_json
from hjepa_lib.reporting import gallery, pixelgallery
from hjepa_lib.runs import Run, RunError, repository


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


def test_the_readme_shows_the_committed_study():
    """The table in README.md is the one that the committed rows give."""
    root = runs.repository()
    study = load_rows(root / "outputs" / "gallery" / "study.csv")
    shown = study[(study["split"] == "test") & study["group"].isin(gallery.GROUPS)]
    assert gallery.markdown(gallery.pooled(shown)) in (root / "README.md").read_text()


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
