"""The committed gallery: rows of finished runs, pooled, and the README's generated table."""

import pandas as pd
import pytest

from hjepa_lib import runs
from hjepa_lib.evaluation.rows import load_rows
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.reporting import gallery
from hjepa_lib.runs import RunError


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
