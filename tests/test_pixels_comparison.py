"""MET-2 and section 0: fair sets only, baselines, intervals, claims derived (F12, F15)."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_pixels import tiny_config

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, over_seeds, unestimable
from hjepa_lib.files import WorkbookError, read_json, write_json
from hjepa_lib.pixels import compare, figures, results, stages
from hjepa_lib.pixels.compare import COLUMNS, COMPARED, NOT_APPLICABLE, NOTES, UNTRAINED, Row, score
from hjepa_lib.runs.notebooks import finish
from hjepa_lib.runs.report import check_summary, leave_section
from hjepa_lib.runs.run import Run

SEEDS, BLOCKS, EPISODES = (0, 1, 2), 12, 4
PAIR = {"enc_dec_jepa": 1000, "jepa + decoder": 1005}


def row(model="jepa", seed=0, factor=0.5):
    """A whole row whose errors are `factor` times those of the trivial guesses."""
    rng = np.random.default_rng(seed)
    floor, untrained = rng.uniform(0.5, 1.5, BLOCKS), model in UNTRAINED
    facts = {
        "model": model, "seed": seed, "data_sha256": "d" * 64, "environment": "world",
        "batches_sha256": "" if untrained else f"batches{seed}", "mean_reward_r2": -0.01,
        "n": {"training": 80, "validation": 20, "episodes": EPISODES},
        "updates": 0 if untrained else 600, "loaded": False, "early_stopping": False,
    }  # fmt: skip
    if model == "vjepa2":
        facts |= {"updates": 1750, "stage_updates": [600, 1150]}
    scores = {name: 0.1 * seed + len(model) for name in COLUMNS}
    noise = factor * floor * rng.uniform(0.95, 1.05, (4, BLOCKS))
    errors = dict.fromkeys(("copy_last_frame", "mean_frame", "mean_reward"), floor)
    errors["reward_mlp"] = noise[0]
    if untrained:
        lacking = ("latent_error", "frame_mse", "frame_error", "larp_mse", "larp_r2", "larp_gain")
        scores |= dict.fromkeys(lacking, NOT_APPLICABLE)
    else:
        errors |= dict(zip(("frame", "latent", "larp"), noise[1:], strict=True))
        errors |= {"copy_last_latent": floor, "larp_copy": floor}
    return Row(facts, scores, errors)


def rows_of(factor=0.5, seeds=SEEDS, **facts):
    """Rows of all models; `facts` replace those of jepa."""
    rows = [row(m, seed, 1.0 if m in UNTRAINED else factor) for seed in seeds for m in COMPARED]
    for one in of(rows, "jepa"):
        one.facts.update(facts)
    return rows


def of(rows, model):
    return [one for one in rows if one.facts["model"] == model]


def verdicts(found, **wanted):
    kept = [c for c in found["claims"] if all(c[k] == v for k, v in wanted.items())]
    assert kept
    return {claim["verdict"] for claim in kept}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 100)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"data_sha256": "e" * 64}, "mixed: jepa seed 0 has other data_sha256 than enc_dec seed 0"),
        ({"environment": "moon"}, "other environment .*moon and world"),
        ({"batches_sha256": "x"}, "0 has other batches_sha256"),
        ({"updates": 599}, "other updates than enc_dec seed 0 .599 and 600"),
    ],
)
def test_mixed_sets_are_refused_with_the_mismatch(facts, message):
    with pytest.raises(WorkbookError, match=message):
        compare.build(rows_of(**facts))


def test_only_one_training_must_have_equal_updates():
    """Section 0; two stages, loaded weights and early stops have numbers of their own."""
    first, *said = compare.build(rows_of())["notes"]
    assert "enc_dec 600" in first and "vjepa2 1,750" in first
    assert any("2 stages (600 + 1,150)" in text for text in said)
    assert any(text.startswith("latent_error of enc_dec_jepa is not applicable") for text in said)
    loaded = compare.build(rows_of(loaded=True, updates=0))
    assert "jepa has weights from a file, so nothing is claimed from it." in loaded["notes"]
    early = compare.build(rows_of(early_stopping=True, updates=599))
    assert "jepa 599" in early["notes"][0] and "may stop early" in " ".join(early["notes"])
    rows = rows_of()
    of(rows, "vjepa2")[0].facts["updates"] = 5
    with pytest.raises(WorkbookError, match="vjepa2 seed 1 has other updates than vjepa2 seed 0"):
        compare.build(rows)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "lost"])
def test_scores_must_be_finite(value):
    rows = rows_of()
    rows[0].scores["reward_r2"] = value
    with pytest.raises(WorkbookError, match=f"enc_dec seed 0: reward_r2 is {value!r}"):
        compare.build(rows)


def test_a_set_is_whole_and_each_row_once():
    rows = rows_of()
    for wrong, message in (
        (rows[1:], "enc_dec seed 0 is in the comparison 0 times"),
        ([*rows, rows[-1]], "random_vit seed 2 is in the comparison 2 times"),
        ([*rows, row("dreamer")], "dreamer seed 0 is in the comparison 1 times"),
        ([*rows[1:], rows[0]._replace(scores={"loss": 1.0} | rows[0].scores)], "not have, loss"),
    ):
        with pytest.raises(WorkbookError, match=message):
            compare.build(wrong)


def test_every_score_has_n_seeds_intervals_and_baselines(tmp_path):
    """F12, F15; no ranking across models may use a loss, which has a latent's own unit."""
    found = json.loads(write_json(tmp_path / "c.json", compare.build(rows_of())).read_text())
    assert found["seeds"] == [0, 1, 2]
    assert found["n"] == {"training": 80, "validation": 20, "episodes": EPISODES}
    assert list(found["models"]) == list(COMPARED)
    for name in COLUMNS:
        assert "loss" not in name
        assert (compare.floor(found, name) is not None) == (name in compare.RANKED)
        for cells in found["models"].values():
            cell = cells[name]
            assert cell["seeds"] == 3
            assert cell["text"] in NOTES or cell["low"] <= cell["mean"] <= cell["high"]
    floors = [compare.floor(found, name) for name in ("latent_error", "larp_gain", "larp_r2")]
    assert floors == [1, 0, -0.01]
    for name in ("frame_mse", "reward_mse"):
        guess = compare.RANKED[name][1]
        assert compare.floor(found, name) == found["baselines"][guess] == row().errors[guess].mean()


def test_interval_over_seeds_is_students():
    cell = over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx((2, 2 - half, 2 + half))
    single = over_seeds([2.0])
    assert single["low"] is None and single["text"] == "2 (1 seed)"
    assert over_seeds([1200.0, 1200.0])["text"] == "1,200"
    noted = over_seeds([1.0, NOT_ESTIMABLE, 2.0])
    assert noted["mean"] is None and noted["text"] == NOT_ESTIMABLE and noted["seeds"] == 3


def test_scores_and_r2_of_known_predictions():
    reward = np.array([0.0, 1.0, 2.0, 3.0])
    assert score(reward, reward) == {"mse": 0.0, "r2": 1.0, "note": ""}
    mean = score(np.full(4, 1.5), reward)
    assert mean["mse"] == pytest.approx(1.25) and mean["r2"] == pytest.approx(0)
    assert score(reward, reward, "why") == {"mse": 0.0, "r2": None, "note": "why"}


def test_r2_is_not_estimable_from_few_rewards():
    dense, sparse = np.arange(1.0, 101), np.zeros(100)
    sparse[:49] = 1
    assert unestimable(dense, sparse).endswith("49 non-zero rewards in the validation part")
    assert "training part" in unestimable(sparse, dense)
    assert "equal" in unestimable(dense, np.ones(100))
    sparse[49] = 1
    assert unestimable(dense, sparse) == unestimable(dense, dense) == ""


def test_claims_follow_the_paired_interval():
    better, worse, equal = (compare.build(rows_of(factor)) for factor in (0.5, 2.0, 1.0))
    for model in MODELS:
        for against in ("copy_last_latent", "copy_last_frame", "mean_reward"):
            for found, verdict in (
                (better, "beats"), (worse, "loses to"), (equal, "no difference shown")
            ):  # fmt: skip
                assert verdicts(found, model=model, against=against) == {verdict}
        assert verdicts(better, model=model, against="larp_copy") == {"beats"}
    claim = next(c for c in better["claims"] if c["against"] == "copy_last_latent")
    assert claim["difference"] == pytest.approx(-0.5, abs=0.03)
    assert claim["seeds"] == 3 and claim["blocks"] == BLOCKS
    assert claim["low"] < claim["difference"] < claim["high"] < 0
    assert {c["score"] for c in better["claims"] if c["model"] in UNTRAINED} == {"reward MLP"}
    texts = compare.sentences(better["claims"])
    one = next(text for text in texts if text.startswith("jepa: imagined latent"))
    assert "beats copy last latent: error -" in one and "seeds: 3, blocks: 12" in one


def test_every_model_is_held_against_the_untrained_encoder_of_its_own_architecture():
    rows = rows_of(0.5)
    for one in of(rows, "random_vit"):  # knows the reward as well as the models do
        one.errors["reward_mlp"] *= 0.5
    found = compare.build(rows)
    held = {c["model"]: c for c in found["claims"] if c["against"].startswith("random")}
    assert {name: c["against"] for name, c in held.items()} == dict.fromkeys(
        MODELS, "random encoder"
    ) | {"vjepa2": "random ViT encoder"}
    assert [held[name]["verdict"] for name in MODELS] == ["beats"] * 3 + ["no difference shown"]


def test_the_matched_pair_is_paired_by_seed_and_block():
    """The seeds differ far more than the twins: separate means would show nothing."""
    rows, rng = rows_of(1.0), np.random.default_rng(5)
    for one in rows:
        model, seed = one.facts["model"], one.facts["seed"]
        level = np.random.default_rng(seed).uniform(0.5, 1.5, BLOCKS) * 3.0**seed
        better = 0.9 if model == "enc_dec_jepa" else 1.0
        for kind in ("frame", "reward_mlp"):
            one.errors[kind] = better * level * rng.uniform(0.99, 1.01, BLOCKS)
    found = compare.build(rows, [PAIR])
    claims = [c for c in found["claims"] if c["against"] == "JEPA"]
    assert [c["score"] for c in claims] == ["decoded frame", "reward MLP"]
    for claim in claims:
        assert claim["verdict"] == "beats" and claim["high"] < -0.05
        assert claim["difference"] == pytest.approx(-0.1, abs=0.01)
    for one in of(rows, "jepa"):  # the same means, other partners
        one.errors["frame"] = np.sort(one.errors["frame"])
    shuffled = verdicts(compare.build(rows), against="JEPA", score="decoded frame")
    assert shuffled == {"no difference shown"}
    assert compare.build(rows, [PAIR | {"jepa + decoder": 1020}])["matched"][0]["ok"]
    unmatched = compare.build(rows, [PAIR | {"jepa + decoder": 1021}])
    assert unmatched["matched"][0]["gap"] == pytest.approx(0.021)  # two per cent at most
    assert verdicts(unmatched, against="JEPA") == {"nothing claimed: the pair is not matched"}


def test_loaded_weights_claim_nothing():
    """Three loads of one file are no three seeds."""
    found = compare.build(rows_of(loaded=True))
    for who in ({"model": "jepa"}, {"against": "JEPA"}):
        assert verdicts(found, **who) == {"nothing claimed: the weights were loaded"}
    assert "beats" in verdicts(found, model="enc_dec_jepa")


def test_seeds_that_disagree_leave_the_difference_open():
    """Two seeds of three far better: resampling three seeds alone would claim too much."""
    rows = rows_of(1.0)
    for one in of(rows, "jepa"):
        one.errors["latent"] *= (0.4, 0.5, 0.95)[one.facts["seed"]]
    found = verdicts(compare.build(rows), model="jepa", against="copy_last_latent")
    assert found == {"no difference shown"}


def test_blocks_of_an_episode_are_the_unit_and_keep_the_mean():
    errors = np.arange(100.0)
    table = compare.by_block(errors, np.repeat([7, 4, 9], [62, 30, 8]))
    assert table.mean() == pytest.approx(errors.mean())
    parts = np.split(errors, [30, 60, 62, 92])  # 30 at a time, never across an episode
    assert table == pytest.approx(np.array([part.sum() for part in parts]) * 5 / 100)


def test_update_memory_counts_weights_moments_and_activations():
    layer, x = torch.nn.Linear(10, 5, bias=False), torch.ones(8, 10)
    found = update_bytes(layer, lambda: layer(x).square().sum())
    assert found == 4 * (50 + 3 * 50 + 80 + 40)  # weights, gradient and moments, input, output
    layer.requires_grad_(False)
    assert update_bytes(layer, lambda: layer(x).sum()) == 4 * 50


def test_a_run_of_the_pixel_notebooks_alone_has_summary_and_report(tmp_path):
    """No planner was evaluated: nothing fails, and the comparison is what the report is about."""
    run = Run.create("pixels", tiny_config(), tmp_path)
    section = results.comparison_section(compare.build(rows_of(), [PAIR]))
    leave_section(run, "20-pixels", section)
    page = finish(run, say=lambda *_: None).read_text()
    found = check_summary(read_json(run.path / "summary.json"))
    assert found["results"] == [] and found["pixels"]["seeds"] == [0, 1, 2]
    for text in (
        "4 world models", "World models on pixels", "copy last latent: 1", "mean reward: -0.01",
        "seeds: 3, blocks: 12", "0.50 % apart, matched", "paired comparisons",
        "random ViT encoder", "latent_error of enc_dec_jepa is not applicable",
    ):  # fmt: skip
        assert text in page
    assert "best model" not in page and "ranking" not in page


def test_rows_come_from_the_run_and_its_stored_weights(pixel_run):
    ws = pixel_run
    found = results.load_comparison(ws)
    assert list(found["models"]) == list(COMPARED) and found["matched"][0]["ok"]
    assert "(6 + 6)" in " ".join(found["notes"])
    _, validation = stages.make_transitions(ws)
    sha256 = stages.load_transitions(ws).sha256
    for one in found["rows"]:
        assert one["data_sha256"] == sha256 and one["n"]["validation"] == len(validation)
        own = f"{one['model']}_s0", f"heads_{one['model']}_s0"
        said = {name: {"from": "this run", "key": ws.run.key(name)} for name in own}  # I4
        assert said.items() <= one["weights"].items()
    texts = {m: {c: cell["text"] for c, cell in own.items()} for m, own in found["models"].items()}
    # The twin imagines what its decoder likes to read, no encoding: copying one is no rival of it.
    for name in ("enc_dec", "enc_dec_jepa", *UNTRAINED):
        assert texts[name]["latent_error"] == NOT_APPLICABLE
    for name in UNTRAINED:
        assert texts[name]["frame_mse"] == texts[name]["larp_mse"] == NOT_APPLICABLE
    assert texts["enc_dec"]["larp_gain"] == NOT_APPLICABLE
    assert texts["jepa"]["reward_r2"] == texts["jepa"]["larp_gain"] == NOT_ESTIMABLE  # few rewards

    # The stored error is that of the stored weights, by another way of computing it.
    means = {name: own["mean"] for name, own in found["models"]["jepa"].items()}
    jepa = stages.load_model(ws, "jepa", 0)
    batch = validation[torch.arange(len(validation))]
    now, after = jepa.encode_target(batch.state), jepa.encode_target(batch.next_state)
    ratio = (jepa.imagine(now, batch.action) - after).square().sum() / (now - after).square().sum()
    assert means["latent_error"] == pytest.approx(float(ratio), rel=1e-4)
    copied = (batch.state[:, -1] / 255 - batch.next_state[:, -1] / 255).square().mean()
    assert found["baselines"]["copy_last_frame"] == pytest.approx(float(copied), rel=1e-4)
    drawn = stages.load_result(ws, "enc_dec_s0")["frames"]["mse"]
    assert found["models"]["enc_dec"]["frame_mse"]["mean"] == pytest.approx(drawn, rel=1e-3)
    heads = {(one["model"], one["head"]): one for one in results.load_rewards(ws)["heads"]}
    assert ("jepa", "larp_copy") in heads and ("enc_dec", "larp") not in heads
    cell, _ = stages.load_heads(ws, "jepa", 0)
    mse = pytest.approx(np.square(cell["larp"] - cell["reward"]).mean(), rel=1e-5)
    assert heads["jepa", "larp"]["mse"] == mse == means["larp_mse"]


def test_scatter_files_show_the_diagonal_and_the_score(tmp_path):
    reward = np.linspace(0, 1, 40)
    part = (reward, reward**2)
    for head, folder in (("larp", "larp_plots"), ("reward_mlp", "reward_plots")):
        (path,) = figures.save_scatters(tmp_path, head, {"jepa": part})
        assert path == tmp_path / folder / "jepa.png" and path.stat().st_size > 1000
    for note, said in (((), f"R² {score(*part[::-1])['r2']:.3f}"), (("few",), "not estimable")):
        (axis,) = figures.reward_scatter({"jepa": part}, *note).axes
        assert said in axis.get_title("left")
    assert list(axis.lines[0].get_xdata()) == list(axis.lines[0].get_ydata())


def test_gain_figure_draws_one_interval_per_model_with_an_imagined_latent():
    claims = compare.build(rows_of())["claims"]
    figure = figures.look_ahead_gain({"drift": claims, "push": claims})
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [compare.LABELS[name] for name in MODELS] and len(figure.axes) == 2
    alone = figures.look_ahead_gain({"drift": claims})
    alone.canvas.draw()  # one panel is narrower than its legend's line
    place = alone.legends[0].get_window_extent()
    assert place.x0 >= 0 and place.x1 <= alone.bbox.width
