"""What the README keeps of a finished run of notebooks 10-15: a crafted run, and its tables."""

import copy

import pytest
from tiny import tiny_config

from hjepa_lib import pixelgallery
from hjepa_lib.files import read_json, write_json
from hjepa_lib.grids import measures as grid
from hjepa_lib.grids.results import section
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import maskedplanner

CELL = {"mean": 1.0, "low": 0.5, "high": 1.5, "seeds": 3, "text": "1 (0.5 to 1.5)"}
CLAIM = {
    "model": "jepa", "score": "reward MLP", "seeds": 3, "blocks": 9, "difference": -0.3,
    "low": -0.4, "high": -0.2, "against": "mean_reward", "verdict": "beats",
}  # fmt: skip
COMPARISON = {
    "environment": "hjepa/Drift-v0",
    "n": {"training": 2400, "validation": 600, "episodes": 24},
    "seeds": [0, 1, 2],
    "models": {"jepa": dict.fromkeys(pixelgallery.COLUMNS, CELL)},
    "claims": [CLAIM, CLAIM | {"against": "random encoder", "verdict": "no difference shown"}],
    "notes": ["Updates: 600 for jepa."],
    "rows": [{"model": "jepa"}],
}
HEAD = {"r2": 0.5, "note": "", "transitions": 600, "seeds": 5}
AHEAD = {"model": "jepa", "look_ahead": [-0.02, -0.03, -0.01]}
AHEAD |= {"heads": {"reward_mlp": HEAD, "larp": HEAD}}
LOOK_AHEAD = {"drift": [AHEAD], "push": [AHEAD | {"look_ahead": [0.0, -0.01, 0.01]}]}


def planner(method):
    return {"method": method, "success_rate": 0.5, "ci95": [0.4, 0.6], "n": 100}


def grid_rows(seeds=3):
    """JEPA's reward error is a tenth below its twin's in every seed, whose level differs a lot."""
    rows = []
    for seed in range(seeds):
        level = 0.03 * 2.0**seed
        for model, factor in (("jepa", 0.9 + 0.002 * seed), ("generative", 1.0), ("random", 1.0)):
            row = {"model": model, "seed": seed, "std": 0.4, "effective_rank": 30.0}
            row |= {"collapsed": model == "jepa" and seed == 0, "reward_mse": factor * level}
            row |= {"reward_r2": None if model == "random" else 0.1, "mean_reward_mse": 0.0355}
            if model != "generative":
                row |= {"error": 0.6, "copy_error": 0.5, "jepa_cosine_sim": 0.9}
            rows.append(row)
    return rows


@pytest.fixture
def finished(tmp_path):
    """A run that has everything which the gallery keeps."""
    run = Run.create("all", tiny_config(), tmp_path / "runs")
    parts = {"comparison": COMPARISON, "look_ahead": LOOK_AHEAD, "grid": grid_rows()}
    parts["planning"] = [planner("random"), planner("oracle")]
    for name, content in parts.items():
        write_json(run.path / pixelgallery._PARTS[name], content)
    for name, seconds in (("10_gym_data", 30.0), ("13_reward_predictors", 600.0), ("05_x", 9e9)):
        run.record_notebook(name, {"ok": True, "seconds": seconds})
    run.folder("figures").joinpath(pixelgallery.PICTURES[0]).write_bytes(b"png")
    (tmp_path / "outputs" / "gallery").mkdir(parents=True)
    return run


def test_everything_of_a_finished_run_is_kept(finished, tmp_path):
    kept = read_json(pixelgallery.keep(finished, tmp_path))
    assert kept["look_ahead"] == LOOK_AHEAD and kept["grid"] == grid_rows()
    assert kept["notebook_seconds"] == {"10_gym_data": 30.0, "13_reward_predictors": 600.0}
    assert "rows" not in kept["comparison"] and kept["comparison"]["notes"]
    text = pixelgallery.markdown(kept)
    assert "- Updates: 600 for jepa." in text
    ahead = "| jepa | 0.500 / 0.500 | -0.0200 (-0.0300 to -0.0100) | look-ahead helps | 600 (5) |"
    assert ahead in text and "| within noise | 600 (5) |" in text
    assert "| 10_gym_data | 0.5 |" in text and "| all of them | 10.5 |" in text
    assert "2 comparisons in all" in text and "1 'no difference shown'" in text


def test_grid_models_stand_beside_copy_untrained_and_mean(finished, tmp_path):
    text = pixelgallery.markdown(read_json(pixelgallery.keep(finished, tmp_path)))
    rows = {row["model"]: row for row in pixelgallery._grid(grid_rows()).to_dict("records")}
    assert rows["jepa"]["latent error / copy"].startswith("1.2 ")
    assert rows["generative"]["latent error / copy"] == "not applicable"
    assert rows["generative"]["cosine"] == "not applicable"
    assert rows["untrained"]["reward R2"] == "not estimable"
    assert rows["jepa"]["collapsed"] == "1 of 3" and rows["generative"]["collapsed"] == "0 of 3"
    assert "Guessing the mean reward has the MSE 0.0355." in text
    assert "jepa beats generative: reward error -9.8 %" in text
    assert "generative against random, no difference shown: reward error +0.0 %" in text


def test_grid_models_are_paired_by_seed():
    """Their levels differ by seed far more than they do: separate means would overlap."""
    rows = grid_rows()
    gap = grid.paired_error(rows, "jepa", "generative")
    assert gap["verdict"] == "beats" and gap["difference"] == pytest.approx(-0.098)
    assert gap["seeds"] == 3 and gap["low"] < gap["difference"] < gap["high"] < -0.08
    means = {
        name: grid.mean_interval([row["reward_mse"] for row in rows if row["model"] == name])
        for name in ("jepa", "generative")
    }
    assert means["jepa"].high > means["generative"].low
    assert grid.paired_error(rows[::-1], "jepa", "generative") == gap  # by seed, not by place
    few = grid.paired_error(grid_rows(2), "jepa", "generative")
    assert few["verdict"] == "nothing claimed: 2 of 3 seeds"
    single = grid.sentence(grid.paired_error(grid_rows(1), "jepa", "generative"))
    assert single.endswith("reward error -10.0 % (1 seed)")
    with pytest.raises(grid.GridMetricError, match="same training seeds"):
        grid.paired_error(rows[1:], "jepa", "generative")
    lists = section(rows)["lists"]
    assert "jepa beats generative" in lists["Paired by training seed, interval over seeds alone"][0]


def test_floor_levels_and_ceiling_are_always_shown(finished, tmp_path):
    """Also for a run that planned with one of them only."""
    kept = read_json(pixelgallery.keep(finished, tmp_path))
    table = pixelgallery._planning(kept["planning"])
    order = ["random", *maskedplanner.LABELS.values(), "oracle"]
    assert list(table["planner"]) == order
    shown = list(table["success (Wilson 95 %)"])
    assert shown == ["50 % (40-60)", "not in this run", "not in this run", "50 % (40-60)"]
    whole = [planner(name) for name in reversed(order)]
    assert list(pixelgallery._planning(whole)["planner"]) == order
    assert "not in this run" not in str(pixelgallery._planning(whole))


def test_a_run_without_the_studies_leaves_them_out(finished, tmp_path):
    for name in pixelgallery._OPTIONAL:
        (finished.path / pixelgallery._PARTS[name]).unlink()
    kept = read_json(pixelgallery.keep(finished, tmp_path))
    text = pixelgallery.markdown(kept)
    assert "Look-ahead" not in text and "grid world" not in text
    old = copy.deepcopy(kept)
    del old["notebook_seconds"], old["comparison"]["notes"]  # a file kept before they were
    assert "Minutes" in text and "Minutes" not in pixelgallery.markdown(old)
