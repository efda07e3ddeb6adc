import numpy as np
import pandas as pd
import pytest
from tiny import refused
from tiny_runs import TRIALS, first, make_row

from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.files import WorkbookError
from hjepa_lib.workbench import rows as fr
from hjepa_lib.workbench import verdict
from hjepa_lib.workbench.rows import check_rows, compute_ratio, pack_solved, unpack_solved


def curve(cell, rates, flops, **more):
    return pd.DataFrame(
        make_row(cell, seed, first(round(rate * TRIALS)), x, budget=x / 1e6, **more)
        for seed in (0, 1, 2)
        for rate, x in zip(rates, flops, strict=True)
    )


FLOPS = (1e6, 1e7, 1e8)
FLAT = curve("flat", (0.1, 0.2, 0.3), FLOPS)
TWO = curve("two", (0.5, 1.0, 0.9), FLOPS, method="l1+l2")
EASY = curve("easy", (0.9, 0.9, 0.9), FLOPS)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 500])
def test_solved_survives_the_table(n):
    solved = np.random.default_rng(n).integers(0, 2, n)
    text = pack_solved(solved.astype(float))
    assert unpack_solved(text, n).tolist() == solved.tolist()
    for wrong in (text + "ff", "zz" * (len(text) // 2)):
        refused(
            WorkbookError, rf"{len(text)} hexadecimal digits for n={n}", unpack_solved, wrong, n
        )


def test_load_rows_keeps_digits_text(tmp_path):
    path = tmp_path / "rows.csv"
    pd.DataFrame([make_row("walk", 0, np.zeros(8, int), cost="none")]).to_csv(path, index=False)
    row = fr.load_rows(path).iloc[0]
    assert (row["revision"], row["trials_hash"], row["solved"]) == ("1e5", "12", "00")
    assert (row["cost"], row["grid"]) == ("none", "")
    with pytest.raises(WorkbookError, match="does not exist: run the experiment first"):
        fr.load_rows(tmp_path / "none.csv")
    path.write_text("a\n1\n")
    refused(WorkbookError, "column 'cell' is missing", fr.load_rows, path)
    row = make_row("walk", 0, np.zeros(8, int))
    for name in ("solved", "revision", "seconds_per_episode", "planner.steps"):
        pd.DataFrame([row]).drop(columns=[name, "group"]).to_csv(path, index=False)
        refused(WorkbookError, rf"rows.csv .* it lacks group.* {name}$", fr.load_rows, path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("protocol", "p2_seen", "differ in protocol"),
        ("dynamics", "blocked", "differ in dynamics"),
        ("planner.steps", 100, "differ in planner.steps"),
        ("successes", 39, "flat seed 0: solved and"),
        ("cost", "distance", "mixes settings: cost is"),
        ("planner.flat.horizon", 48, "mixes settings: planner.flat"),
        ("planner.truth", "dynamics", "planner.truth is dynamics and none"),
        ("level1.width", 99, "mixes settings: level1.width is 99.* and 32"),
        ("recipe.l1", 2, "mixes settings: recipe.l1 is 2.* and 1"),
        ("seed", 7, "unfinished: seed 0 is missing"),
        ("seed", 1, "has seed 1 twice"),
    ],
)
def test_mixed_sets_are_refused_by_name(column, value, message):
    rows = pd.concat([FLAT, TWO], ignore_index=True)
    assert check_rows(rows).equals(rows) and check_rows(rows.to_dict("records")).equals(rows)
    rows.loc[0, column] = value
    refused(WorkbookError, message, check_rows, rows)


def test_unfinished_sets_are_refused_or_split():
    short = FLAT[~((FLAT["seed"] == 2) & (FLAT["budget"] == 1))]
    refused(WorkbookError, r"flat 1\.0 is unfinished: seed 2 is missing", check_rows, short)
    refused(WorkbookError, "no row to compare", check_rows, FLAT[:0])
    whole, left = fr.split_finished(short)
    assert left == ["flat 1.0"] and sorted(whole["budget"].unique()) == [10, 100]


def test_frontier_pools_seeds():
    rows = pd.DataFrame(make_row("flat", seed, first(10 + 10 * seed)) for seed in (2, 0, 1))
    line = fr.frontier(rows, "seconds_per_episode", ("protocol",)).iloc[0]
    assert line["rate"] == pytest.approx(0.5)
    assert line["seconds_per_episode"] == pytest.approx(1)
    assert line["low"] < 0.4 < 0.6 < line["high"]  # the seeds differ, so the interval is wide
    assert (line["seeds"], line["n"], line["protocol"]) == (3, TRIALS, "p1")
    assert fr.outcomes(rows).sum(1).tolist() == [10, 20, 30]
    alike = fr.frontier(FLAT)
    assert alike["rate"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (alike["high"] - alike["low"]).max() < line["high"] - line["low"]


@pytest.mark.parametrize(
    ("rates", "bound", "price"),
    [((0.1, 0.2, 0.3), "lower", 1e8), ((0.1, 0.6, 0.9), "", 10 ** (7 + 2 / 3))],
)
def test_ratio_is_measured_or_a_bound_where_flat_never_gets_there(rates, bound, price):
    found = compute_ratio(curve("flat", rates, FLOPS), TWO, resamples=50)
    assert found.pooled.level == pytest.approx(0.8)
    assert found.pooled.bound == bound
    assert found.pooled.value == pytest.approx(price / 10**6.6)  # 0.8, on the way from 0.5 to 1
    assert found.per_seed == dict.fromkeys((0, 1, 2), found.pooled)
    assert found.low <= found.pooled.value <= found.high
    said = verdict._ratio_sentence(pd.concat([curve("flat", rates, FLOPS), TWO]), "latent")
    assert np.isinf(found.high) == ("without an upper end" in said) == (bound == "lower")


def test_ratio_says_where_the_smallest_budget_is_enough():
    for flat, two, bound in (
        (EASY, TWO, "upper"), (FLAT, EASY, "lower"), (EASY, EASY.assign(cell="same"), "open"),
    ):  # fmt: skip
        assert compute_ratio(flat, two, resamples=5).pooled.bound == bound
    nothing = compute_ratio(FLAT, curve("nothing", (0, 0, 0), FLOPS), resamples=5)
    assert np.isnan([nothing.pooled.value, nothing.low, nothing.high]).all()
    assert nothing.pooled.bound == "open"


def test_ratio_needs_the_same_seeds_and_trials():
    refused(WorkbookError, "unfinished: seed 2", compute_ratio, FLAT[FLAT["seed"] < 2], TWO)
    refused(
        WorkbookError, "differ in trials_hash", compute_ratio, FLAT, TWO.assign(trials_hash="34")
    )


def test_pairs_per_seed_and_over_all():
    two, flat = TWO[TWO["budget"] == 10], FLAT[FLAT["budget"] == 1]
    table = verdict.pair_table({"L1+L2 against flat": verdict.paired(two, flat)})
    assert table["seed"].tolist() == ["0", "1", "2", "all"]
    assert table["difference"].to_list() == pytest.approx([0.9] * 4)
    assert table["only_first"].tolist() == [36, 36, 36, 108] and not table["only_second"].any()
    assert table["mcnemar_p"][0] == pytest.approx(2 * 0.5**36)
    assert (table["difference_low"] > 0.7).all()
    assert (table["difference"] <= table["difference_high"]).all()


def test_pairs_follow_the_trials_not_the_counts():
    one = pd.DataFrame([make_row("a", 0, first(20))])
    test = verdict.paired(one, pd.DataFrame([make_row("b", 0, 1 - first(20))])).iloc[-1]
    assert (test["difference"], test["only_first"], test["only_second"]) == (0, 20, 20)
    refused(WorkbookError, "compares two points", verdict.paired, FLAT, TWO[TWO["budget"] == 1])
    with pytest.raises(WorkbookError, match="differ in n"):
        verdict.paired(one, pd.DataFrame([make_row("b", 0, first(3, 24))]))


def test_shares_of_failures_are_means_over_seeds_in_the_order_of_the_labels():
    counts = dict(zip((f"failure.{name}" for name in LABELS), (4, 3, 0, 1, 2, 0), strict=True))
    rows = pd.DataFrame([make_row("flat", seed, first(4, 10), **counts) for seed in (0, 1)])
    shares = fr.failure_shares(rows.assign(planner="flat, latent"), "planner")
    assert shares.loc["flat, latent"].tolist() == pytest.approx([0.4, 0.3, 0, 0.1, 0.2, 0])
    assert list(shares) == list(LABELS.values())
