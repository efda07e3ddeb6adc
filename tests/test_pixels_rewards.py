"""Reward heads compared: scores, paired differences of look-ahead, and their figures."""

import math

import numpy as np
import pytest

from hjepa_lib.evaluation.statistics import Interval, unestimable
from hjepa_lib.files import WorkbookError
from hjepa_lib.pixels import results
from hjepa_lib.pixels import score_figures as figures
from hjepa_lib.pixels.compare import score
from hjepa_lib.pixels.results import difference, reward_comparison, table
from hjepa_lib.pixels.tables import verdict


# --- scores -----------------------------------------------------------------------------------
def cells(shift: float, seeds: int = 5, n: int = 200) -> list[dict]:
    """LARP's squared errors are smaller than the reward MLP's by about `shift`."""
    reward = np.random.default_rng(0).normal(size=n)
    found = []
    for seed in range(seeds):
        noise = np.random.default_rng(seed + 1).normal(0, 0.1, (4, n))
        found.append(
            {
                "reward": reward,
                "episode": np.arange(n) // 10,
                "reward_mlp": reward + math.sqrt(shift) + noise[0],
                "larp": reward + noise[1],
                "larp_copy": reward + math.sqrt(shift) + noise[2],
                "mean_reward": np.full(n, 0.3),
            }
        )
    return found


def test_scores_and_r2_of_known_predictions():
    reward = np.array([0.0, 1.0, 2.0, 3.0])
    assert score(reward, reward) == (0.0, 1.0, "")
    mean = score(np.full(4, 1.5), reward)
    assert mean.mse == pytest.approx(1.25) and mean.r2 == pytest.approx(0)
    with pytest.raises(WorkbookError, match=r"must be \(n,\)"):
        score(reward[:3], reward)
    with pytest.raises(WorkbookError, match="NaN"):
        score(reward * math.nan, reward)


def test_r2_is_not_estimable_from_few_rewards():
    dense, sparse = np.ones(100) + np.arange(100), np.zeros(100)
    sparse[:49] = 1
    assert unestimable(dense, dense) == ""
    note = unestimable(dense, sparse)
    assert note == "not estimable: 49 non-zero rewards in the validation part"
    assert "training part" in unestimable(sparse, dense)
    assert "equal" in unestimable(dense, np.ones(100))
    scored = score(np.zeros(100), sparse, note)
    assert scored.r2 is None and scored.mse == pytest.approx(0.49)
    sparse[49] = 1
    assert unestimable(dense, sparse) == ""


def test_look_ahead_is_paired_and_has_an_interval():
    gain = difference(cells(0.5), "larp", "reward_mlp")
    assert gain.low < gain.estimate < gain.high < 0
    assert gain.estimate == pytest.approx(-0.5, abs=0.05)
    assert verdict(gain) == "look-ahead helps"
    none = difference(cells(0.0), "larp", "reward_mlp")
    assert none.low < 0 < none.high and verdict(none) == "within noise"
    assert verdict(Interval(1, 0.5, 2)) == "look-ahead hurts"
    assert verdict(None) == "not applicable"


def test_intervals_know_that_neighbouring_transitions_resemble_each_other():
    """A difference that is one draw per episode must not look like one draw per transition."""
    found = cells(0.0, seeds=3)
    shared = np.repeat(np.random.default_rng(9).normal(0, 0.3, 20), 10)  # the same for all seeds
    for cell in found:
        cell["larp"] = cell["reward"] + np.sqrt(np.abs(shared))
        cell["reward_mlp"] = cell["reward"].copy()
    wide = difference(found, "larp", "reward_mlp")
    for cell in found:
        cell["episode"] = np.arange(200)
    narrow = difference(found, "larp", "reward_mlp")
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_only_equal_transitions_can_be_paired():
    odd = cells(0.1)
    odd[3]["reward"] = odd[3]["reward"] + 1
    with pytest.raises(WorkbookError, match="different transitions"):
        difference(odd, "larp", "reward_mlp")
    with pytest.raises(WorkbookError, match="different transitions"):
        difference(cells(0.1), "larp", "larp", cells(0.1, n=150))


def test_comparison_has_every_baseline_and_leaves_out_what_a_model_lacks(monkeypatch):
    monkeypatch.setattr(results, "RESAMPLES", 100)
    plain = [{k: v for k, v in cell.items() if "larp" not in k} for cell in cells(0.5)]
    rows = reward_comparison({"jepa": cells(0.0), "enc_dec": plain, "random": plain}, "")
    by_name = {row["model"]: row for row in rows}
    jepa = by_name["jepa"]
    assert set(jepa["heads"]) == {"reward_mlp", "larp", "larp_copy", "mean_reward"}
    assert jepa["heads"]["larp"]["seeds"] == 5 and jepa["heads"]["larp"]["transitions"] == 200
    assert jepa["over_mean"].high < 0 and jepa["over_random"].high < 0
    assert jepa["over_copy"] is not None
    assert by_name["enc_dec"]["look_ahead"] is None and by_name["enc_dec"]["heads"]["larp"] == {}
    assert by_name["random"]["over_random"] is None
    models = {"vjepa2": cells(0.0), "random": plain, "random_vit": cells(0.5)}
    other = {row["model"]: row for row in reward_comparison(models, "")}
    own = difference(cells(0.0), "reward_mlp", "reward_mlp", cells(0.5))
    assert other["vjepa2"]["over_random"] == own  # its encoder is another network than `random`'s
    assert other["random_vit"]["over_random"] is None
    del models["random_vit"]
    assert reward_comparison(models, "")[0]["over_random"] is None
    read = table(rows)
    assert read.loc["enc_dec", "LARP R2"] == read.loc["enc_dec", "LARP MSE"] == "not applicable"
    assert read.loc["jepa", "n"] == "5 seeds x 200"
    assert read.loc["jepa", "LARP - reward MLP"].endswith("]")
    note = "not estimable: too few"
    blind = reward_comparison({"jepa": cells(0.0)}, note)[0]["heads"]["larp"]
    assert blind["r2"] is None and blind["note"] == note and blind["mse"] > 0
    blind = table(reward_comparison({"jepa": cells(0.0)}, note))
    assert blind.loc["jepa", "LARP R2"] == "not estimable"


# --- figures ----------------------------------------------------------------------------------
def test_scatter_files_show_the_diagonal_and_the_score(tmp_path):
    reward = np.linspace(0, 1, 40)
    part = (reward, reward**2, score(reward**2, reward))
    paths = figures.save_scatters(tmp_path, "larp", {"jepa": part})
    assert paths == [tmp_path / "larp_plots/jepa.png"] and paths[0].stat().st_size > 1000
    figure = figures.reward_scatter({"JEPA": part})
    axis = figure.axes[0]
    assert any("R²" in text.get_text() for text in axis.texts)
    line = axis.lines[0]
    assert list(line.get_xdata()) == list(line.get_ydata())
    paths = figures.save_scatters(tmp_path, "reward_mlp", {"enc_dec": part})
    assert paths[0].parent.name == "reward_plots"


def test_gain_figure_draws_one_interval_per_model_with_an_imagined_latent(monkeypatch):
    monkeypatch.setattr(results, "RESAMPLES", 100)
    plain = [{k: v for k, v in cell.items() if "larp" not in k} for cell in cells(0.5)]
    rows = reward_comparison({"jepa": cells(0.5), "random": plain}, "")
    figure = figures.look_ahead_gain({"drift": rows, "push": rows})
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["JEPA"] and len(figure.axes) == 2
    alone = figures.look_ahead_gain({"drift": rows})  # one panel is narrower than its legend's line
    alone.canvas.draw()
    place = alone.legends[0].get_window_extent()
    assert place.x0 >= 0 and place.x1 <= alone.bbox.width
    with pytest.raises(figures.FigureError, match="no model has an imagined latent"):
        figures.look_ahead_gain({"drift": rows[1:]})
