"""Rows of a study: what is refused, pooling, compute to reach a level, ratios, pairs, figures."""

import numpy as np
import pandas as pd
import pytest

from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.files import WorkbookError
from hjepa_lib.workbench import rows as fr
from hjepa_lib.workbench import verdict
from hjepa_lib.workbench.rows import (
    check_rows,
    load_rows,
    outcomes,
    pack_solved,
    unpack_solved,
    with_price,
)

N = 40


def make_row(cell, seed, solved, flops=1e6, budget=1.0, method="flat", cost="latent", **more):
    solved = np.asarray(solved)
    row = {
        "cell": cell, "group": "p1", "model": "base", "grid": "", "training": "abc",
        "revision": "1e5", "method": method, "cost": cost, "seed": seed, "budget": budget,
        "protocol": "p1", "split": "test", "layouts": "fixed", "dynamics": "bounce",
        "n": len(solved), "trials_hash": "12", "planner.steps": 200, "solved": pack_solved(solved),
        "successes": int(solved.sum()), "success_rate": solved.mean(), "path_efficiency": 0.5,
        "flops_per_step": flops, "model_transitions_per_step": flops / 1e3,
        "seconds_per_episode": flops / 1e6, "planner.flat.horizon": 8,
    }  # fmt: skip
    return row | more


def first(count, n=N):
    return (np.arange(n) < count).astype(int)


def curve(cell, rates, flops, seeds=(0, 1, 2), **more):
    """Rows of one planner: at each budget the first `rate` of the trials are solved."""
    return with_price(
        pd.DataFrame(
            make_row(cell, seed, first(round(rate * N)), x, budget=x / 1e6, **more)
            for seed in seeds
            for rate, x in zip(rates, flops, strict=True)
        )
    )


FLOPS = (1e6, 1e7, 1e8)
FLAT = curve("flat", (0.1, 0.2, 0.3), FLOPS)
TWO = curve("two", (0.5, 1.0, 0.9), FLOPS, method="l1+l2")


# --- rows -------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 7, 8, 9, 500])
def test_solved_survives_the_table(n):
    solved = np.random.default_rng(n).integers(0, 2, n)
    text = pack_solved(solved.astype(float))
    assert unpack_solved(text, n).tolist() == solved.tolist()
    assert len(text) == 2 * -(-n // 8)


def test_solved_of_another_length_is_refused():
    with pytest.raises(WorkbookError, match="holds 8 bits, which is not n=9"):
        unpack_solved("ff", 9)
    with pytest.raises(WorkbookError, match="must be hexadecimal"):
        unpack_solved("zz", 8)


def test_load_rows_keeps_digits_text(tmp_path):
    """A revision 1e5, a digest 12 and outcomes 00 are no numbers; "none" is a cost."""
    path = tmp_path / "rows.csv"
    pd.DataFrame([make_row("walk", 0, np.zeros(8, int), cost="none")]).to_csv(path, index=False)
    row = load_rows(path).iloc[0]
    assert (row["revision"], row["trials_hash"], row["solved"]) == ("1e5", "12", "00")
    assert (row["cost"], row["grid"]) == ("none", "")
    assert row["seconds_per_step"] == pytest.approx(1 / 200)
    with pytest.raises(WorkbookError, match="does not exist: run the experiment first"):
        load_rows(tmp_path / "none.csv")
    path.write_text("a\n1\n")
    with pytest.raises(WorkbookError, match="column 'cell' is missing"):
        load_rows(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("protocol", "p2_seen", "differ in protocol: p1 and p2_seen"),
        ("split", "validation", "differ in split: test and validation"),
        ("dynamics", "blocked", "differ in dynamics: blocked and bounce"),
        ("n", 39, "differ in n: 39 and 40"),
        ("trials_hash", "34", "differ in trials_hash: 12 and 34"),
        ("planner.steps", 100, "differ in planner.steps"),
        ("successes", 39, "flat seed 0: solved and successes disagree"),
        ("cost", "distance", "mixes settings: cost is distance and latent"),
        ("model", "other", "mixes settings: model is other and base"),
        ("planner.flat.horizon", 48, "mixes settings: planner.flat.horizon is 48 and 8"),
        ("seed", 7, "is unfinished: seed"),
        ("seed", 1, "has seed 1 twice"),
    ],
)
def test_mixed_sets_are_refused_by_name(column, value, message):
    rows = pd.concat([FLAT, TWO], ignore_index=True)
    assert check_rows(rows) is rows
    rows.loc[0, column] = value
    with pytest.raises(WorkbookError, match=message) as caught:
        check_rows(rows)
    assert len(str(caught.value).splitlines()) == 1


def test_unfinished_sets_are_refused_by_name():
    with pytest.raises(WorkbookError, match=r"flat 1\.0 is unfinished: seed 2 is missing"):
        check_rows(FLAT[~((FLAT["seed"] == 2) & (FLAT["budget"] == 1))])
    with pytest.raises(WorkbookError, match="is unfinished: seed 3 is missing"):
        check_rows(FLAT, seeds=(0, 1, 2, 3))
    with pytest.raises(WorkbookError, match="has seed 2, which was not asked for"):
        check_rows(FLAT, seeds=(0, 1))
    with pytest.raises(WorkbookError, match="3 of 4 points are there"):
        check_rows(FLAT, points=4)
    with pytest.raises(WorkbookError, match="no row to compare"):
        check_rows(FLAT[:0])


# --- frontiers --------------------------------------------------------------------------------
def test_frontier_pools_seeds():
    rows = pd.DataFrame(make_row("flat", seed, first(10 + 10 * seed)) for seed in (2, 0, 1))
    line = fr.frontier(with_price(rows), "seconds_per_step").iloc[0]
    assert line["rate"] == pytest.approx(0.5)
    assert line["x"] == pytest.approx(1 / 200)
    assert line["low"] < 0.4 < 0.6 < line["high"]  # the seeds differ, so the interval is wide
    assert (line["seeds"], line["n"]) == (3, N)
    assert outcomes(rows).sum(1).tolist() == [10, 20, 30]
    alike = fr.frontier(FLAT)
    assert alike["rate"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (alike["high"] - alike["low"]).max() < line["high"] - line["low"]


def test_ratio_is_a_bound_where_flat_never_gets_there():
    found = fr.compute_ratio(FLAT, TWO, resamples=50)
    need = 10 ** (6 + 0.6)  # 0.8, on the way from 0.5 to 1
    assert found.pooled.level == pytest.approx(0.8)
    assert found.pooled.bound == "lower"
    assert found.pooled.value == pytest.approx(1e8 / need)
    assert set(found.per_seed) == {0, 1, 2}
    assert all(one == found.pooled for one in found.per_seed.values())
    assert found.low <= found.pooled.value <= found.high


def test_ratio_is_measured_where_both_get_there():
    flat = curve("flat", (0.1, 0.6, 0.9), FLOPS)
    found = fr.compute_ratio(flat, TWO, resamples=20).pooled
    assert found.bound == ""
    assert found.value == pytest.approx(10 ** (7 + 2 / 3) / 10**6.6)


def test_ratio_says_where_the_smallest_budget_is_enough():
    easy = curve("easy", (0.9, 0.9, 0.9), FLOPS)
    assert fr.compute_ratio(easy, TWO, resamples=5).pooled.bound == "upper"
    assert fr.compute_ratio(FLAT, easy, resamples=5).pooled.bound == "lower"
    assert fr.compute_ratio(easy, easy.assign(cell="same"), resamples=5).pooled.bound == "open"
    nothing = fr.compute_ratio(FLAT, curve("nothing", (0, 0, 0), FLOPS), resamples=5)
    assert np.isnan([nothing.pooled.value, nothing.low, nothing.high]).all()
    assert nothing.pooled.bound == "open"


def test_ratio_needs_the_same_seeds_and_trials():
    with pytest.raises(WorkbookError, match="unfinished: seed 2"):
        fr.compute_ratio(FLAT[FLAT["seed"] < 2], TWO)
    with pytest.raises(WorkbookError, match="differ in trials_hash"):
        fr.compute_ratio(FLAT, TWO.assign(trials_hash="34"))


# --- pairs ------------------------------------------------------------------------------------
def test_pairs_per_seed_and_over_all():
    two, flat = TWO[TWO["budget"] == 10], FLAT[FLAT["budget"] == 1]
    pairs = verdict.paired(two, flat)
    assert [pair.seed for pair in pairs] == ["0", "1", "2", "all"]
    for pair in pairs:
        assert pair.difference.estimate == pytest.approx(0.9)
        assert pair.difference.low > 0.7
        assert pair.test.only_second == 0
    assert [pair.test.only_first for pair in pairs] == [36, 36, 36, 108]
    assert pairs[0].test.p_value == pytest.approx(2 * 0.5**36)
    table = verdict.pair_table({"L1+L2 against flat": pairs})
    assert table["seed"].tolist() == ["0", "1", "2", "all"]
    assert (table["difference_low"] <= table["difference"]).all()


def test_pairs_follow_the_trials_not_the_counts():
    """Equal success on different trials is a tie with much evidence, not agreement."""
    one = pd.DataFrame([make_row("a", 0, first(20))])
    two = pd.DataFrame([make_row("b", 0, 1 - first(20))])
    test = verdict.paired(one, two)[-1].test
    assert (test.both, test.only_first, test.only_second, test.neither) == (0, 20, 20, 0)


def test_pairs_of_several_points_or_other_trials_are_refused():
    with pytest.raises(WorkbookError, match="compares two points"):
        verdict.paired(FLAT, TWO[TWO["budget"] == 1])
    with pytest.raises(WorkbookError, match="differ in n"):
        verdict.paired(
            pd.DataFrame([make_row("a", 0, first(3))]),
            pd.DataFrame([make_row("b", 0, first(3, 24))]),
        )


def test_choice_takes_the_best_point_within_the_budget():
    """Validation rows alone choose; a better point that costs more is out, ties go to cheaper."""
    rates = (0.2, 0.5, 0.5, 0.9)
    rows = curve("tried", rates, (1e6, 1e7, 2e7, 1e8), group="choose", split="validation")
    test = curve("test", (1.0,), (1e6,), group="choose")
    found = verdict.choose(pd.concat([rows, test]), "flat", "latent", 3e7)
    assert (found.budget, found.rate, found.flops, found.tried) == (10, 0.5, 1e7, 3)
    with pytest.raises(WorkbookError, match="no validation point of flat, latent takes 5e"):
        verdict.choose(rows, "flat", "latent", 5e5)
    with pytest.raises(WorkbookError, match="seed 2 is missing"):
        verdict.choose(rows[:-1], "flat", "latent", 3e7)


# --- figures ----------------------------------------------------------------------------------
def test_shares_of_failures_are_means_over_seeds_in_the_order_of_the_labels():
    counts = {
        f"failure.{name}": number for name, number in zip(LABELS, (4, 3, 0, 1, 2, 0), strict=True)
    }
    rows = pd.DataFrame([make_row("flat", seed, first(4, 10), **counts) for seed in (0, 1)])
    shares = fr.failure_shares(rows.assign(planner="flat, latent"), "planner")
    assert shares.loc["flat, latent"].tolist() == pytest.approx([0.4, 0.3, 0, 0.1, 0.2, 0])
    assert list(shares) == list(LABELS.values())
