"""MET-2 and section 0: fair sets only, baselines, intervals, claims derived (F12, F15)."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from tiny_pixels import tiny_pixels, tiny_transitions
from tiny_runs import result
from torch import nn

from hjepa_lib.config import profile
from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE
from hjepa_lib.files import FileError, read_json, write_json
from hjepa_lib.pixels import compare, figures, results, tables
from hjepa_lib.pixels import stages as pixelstages
from hjepa_lib.pixels.compare import (
    COLUMNS,
    COMPARED,
    NOT_APPLICABLE,
    NOTES,
    UNTRAINED,
    ComparisonError,
    Row,
    check_rows,
)
from hjepa_lib.pixels.measures import update_megabytes
from hjepa_lib.pixels.tables import comparison_section
from hjepa_lib.runs.notebooks import finish
from hjepa_lib.runs.report import check_summary, leave_section
from hjepa_lib.runs.run import Run

SEEDS = (0, 1, 2)
BASELINES = {
    "copy_last_latent": 1.0, "copy_last_frame": 0.02, "mean_frame": 0.03, "mean_reward": 0.2,
    "mean_reward_r2": -0.01,
}  # fmt: skip
BLOCKS, EPISODES = 12, 4
LAST = COMPARED[-1]


def row(model="jepa", seed=0, factor=0.5, **changes):
    """A whole row whose errors are `factor` times those of the trivial guesses."""
    rng = np.random.default_rng(seed)
    floor = rng.uniform(0.5, 1.5, BLOCKS)
    facts = {
        "model": model, "seed": seed, "data_sha256": "d" * 64,
        "batches_sha256": "" if model in UNTRAINED else f"batches{seed}", "environment": "world",
        "n": {"training": 80, "validation": 20, "episodes": EPISODES},
        "updates": 0 if model in UNTRAINED else 600,
    }  # fmt: skip
    if model == "vjepa2":
        facts |= {"updates": 1750, "stage_updates": [600, 1150]}
    scores = {name: 0.1 * seed + len(model) for name in COLUMNS}
    noise = rng.uniform(0.95, 1.05, (4, BLOCKS))
    errors = {
        "copy_last_frame": floor, "mean_reward": floor, "reward_mlp": factor * floor * noise[0],
    }  # fmt: skip
    if model in UNTRAINED:
        for name in (
            "latent_error",
            "frame_mse",
            "frame_error",
            "larp_mse",
            "larp_r2",
            "larp_gain",
        ):
            scores[name] = NOT_APPLICABLE
    else:
        errors |= {"copy_last_latent": floor, "frame": factor * floor * noise[1]}
        errors |= {"latent": factor * floor * noise[2], "larp": factor * floor * noise[3]}
    if model == "enc_dec_jepa":
        scores["latent_error"] = NOT_APPLICABLE
    for key, value in changes.items():
        (facts if key in facts else scores)[key] = value
    return Row(facts, scores, errors)


def rows_of(factor=0.5, seeds=SEEDS, models=COMPARED):
    return [
        row(model, seed, 1.0 if model in UNTRAINED else factor)
        for seed in seeds
        for model in models
    ]


def build(rows, seeds=SEEDS, **options):
    return tables.build(rows, seeds, BASELINES, **options)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(tables, "RESAMPLES", 100)


# --- fair sets only ---------------------------------------------------------------------------
def test_unfinished_and_mixed_sets_are_refused_with_the_mismatch():
    rows = rows_of()
    cases = (
        (rows[:-1], "unfinished: random_vit seed 2 is missing"),
        ([*rows, row("jepa", 1)], "jepa seed 1 is there twice"),
        ([*rows, row("jepa", 7)], "jepa seed 7 does not belong"),
        ([*rows, row("gan", 1)], "gan seed 1 does not belong"),
        ([*rows[:-1], row(LAST, 2, data_sha256="e" * 64)],
         r"mixed: random_vit seed 2 has other data than enc_dec seed 0 \(eeeeeeeeeeee and dddd"),
        ([*rows[:-1], row(LAST, 2, environment="moon")], "other environment .*moon and world"),
        ([*rows[:-1], row(LAST, 2, batches_sha256="x")], "2 saw other batches than"),
    )  # fmt: skip
    build(rows)
    for bad, message in cases:
        with pytest.raises(ComparisonError, match=message):
            build(bad)


def test_models_with_one_training_must_have_equal_updates():
    """Section 0: the number of updates is compared, not only stated."""

    def changed(model, seeds=SEEDS, **facts):
        rows = rows_of()
        for one in rows:
            if one.facts["model"] == model and one.facts["seed"] in seeds:
                one.facts.update(facts)
        return rows

    for model, seeds in (("jepa", SEEDS), ("enc_dec_jepa", (1,)), ("vjepa2", (2,))):
        with pytest.raises(ComparisonError, match=r"mixed: .* made other updates than .*599"):
            build(changed(model, seeds, updates=599))
    loaded = build(changed("jepa", updates=0, loaded=True))  # claims nothing, hides nothing
    assert "jepa has weights from a file, so nothing is claimed" in " ".join(loaded["notes"])
    rows = changed("jepa", updates=599)
    for one in rows:
        one.facts["early_stopping"] = True
    assert "599 for jepa" in build(rows)["notes"][0]
    assert "may stop early" in build(rows)["notes"][0]


def test_exceptions_of_the_rules_are_sentences_of_the_report():
    """The two-stage model's updates, and a latent that is no encoding: said, never silent."""
    updates, latent = build(rows_of())["notes"]
    assert updates == (
        "Updates: 600 for enc_dec, enc_dec_jepa and jepa; 1,750 for vjepa2. vjepa2 is trained in "
        "2 stages (600 + 1,150): the rule of equal updates does not hold for it."
    )
    assert latent.startswith("latent_error of enc_dec_jepa is not applicable: ")
    assert "never to equal the encoding" in latent
    alone = [one for one in rows_of() if one.facts["model"] != "vjepa2"]
    rest = [name for name in COMPARED if name != "vjepa2"]
    assert "stages" not in " ".join(build(alone, models=rest)["notes"])


def test_rows_must_be_whole_and_finite():
    for changes, message in (
        ({"reward_r2": math.nan}, "jepa seed 0: reward_r2 is nan"),
        ({"reward_r2": "great"}, "reward_r2 is 'great', no number of the table"),
        ({"validation_loss": 0.1}, "validation_loss is 0.1, no number of the table"),
        ({"parameters": True}, "parameters is True"),
    ):
        with pytest.raises(ComparisonError, match=message):
            check_rows([row(**changes)], (0,), ("jepa",))
    lacking = row()
    del lacking.scores["larp_gain"]
    with pytest.raises(ComparisonError, match="larp_gain is None"):
        check_rows([lacking], (0,), ("jepa",))


# --- the report's schema ------------------------------------------------------------------------
def test_report_has_n_seeds_intervals_and_baselines(tmp_path):
    """F12, F15: every score of every model states its seeds, its interval and a trivial guess."""
    found = json.loads(write_json(tmp_path / "c.json", build(rows_of())).read_text())
    assert found["seeds"] == [0, 1, 2]
    assert found["n"] == {"training": 80, "validation": 20, "episodes": EPISODES}
    assert found["models"].keys() == set(COMPARED)
    for name, column in found["columns"].items():
        if column["better"]:
            assert column["baseline"] in (*found["baselines"], "reward_mlp"), name
        for cells in found["models"].values():
            cell = cells[name]
            assert cell["seeds"] == 3 and cell["text"]
            noted = cell["text"] in NOTES
            assert noted or cell["low"] <= cell["mean"] <= cell["high"]
    assert {"copy_last_latent", "copy_last_frame", "mean_reward"} <= found["baselines"].keys()
    assert {row["data_sha256"] for row in found["rows"]} == {found["data_sha256"]}
    assert all("batches_sha256" in row for row in found["rows"])


def test_no_loss_is_in_the_table():
    """Losses live in different latents: no ranking across models may use one."""
    assert not [name for name in COLUMNS if "loss" in name]


def test_interval_over_seeds_is_students():
    cell = tables.over_seeds([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx((2, 2 - half, 2 + half))
    single = tables.over_seeds([2.0])
    assert single["low"] is None and single["text"] == "2 (1 seed)"
    assert tables.over_seeds([1.0, NOT_ESTIMABLE, 2.0]) == {
        "mean": None, "low": None, "high": None, "seeds": 3, "text": NOT_ESTIMABLE,
    }  # fmt: skip


# --- claims -----------------------------------------------------------------------------------
def verdicts(found, **wanted):
    kept = [c for c in found["claims"] if all(c[k] == v for k, v in wanted.items())]
    assert kept
    return {claim["verdict"] for claim in kept}


def test_claims_follow_the_paired_interval():
    better, worse, equal = (build(rows_of(factor)) for factor in (0.5, 2.0, 1.0))
    for model in MODELS:
        assert verdicts(better, model=model, against="copy_last_latent") == {"beats"}
        assert verdicts(worse, model=model, against="copy_last_frame") == {"loses to"}
        assert verdicts(equal, model=model, against="mean_reward") == {"no difference shown"}
    claim = next(c for c in better["claims"] if c["against"] == "copy_last_latent")
    assert claim["difference"] == pytest.approx(-0.5, abs=0.03)
    assert claim["seeds"] == 3 and claim["blocks"] == BLOCKS
    assert claim["low"] < claim["difference"] < claim["high"] < 0
    assert not [
        c for c in better["claims"] if c["model"] in UNTRAINED and c["score"] != "reward MLP"
    ]


def test_every_model_is_held_against_the_untrained_encoder_of_its_own_architecture():
    rows = rows_of(0.5)
    for one in rows:  # random_vit knows the reward as well as the models do, random does not
        if one.facts["model"] == "random_vit":
            one.errors["reward_mlp"] *= 0.5
    found = build(rows)
    own = {model: "random ViT encoder" if model == "vjepa2" else "random encoder"
           for model in MODELS}  # fmt: skip
    for model, against in own.items():
        verdict = "no difference shown" if model == "vjepa2" else "beats"
        assert verdicts(found, model=model, against=against) == {verdict}
    held = [claim for claim in found["claims"] if claim["against"] in own.values()]
    assert len(held) == len(MODELS)  # nobody against the other one's


def test_the_matched_pair_is_paired_by_seed_and_block():
    """The seeds differ far more than the twins: separate means would show nothing."""
    rows = rows_of(1.0)
    rng = np.random.default_rng(5)
    for one in rows:
        model, seed = one.facts["model"], one.facts["seed"]
        if model in ("enc_dec_jepa", "jepa"):
            level = np.random.default_rng(seed).uniform(0.5, 1.5, BLOCKS) * 3.0**seed
            better = 0.9 if model == "enc_dec_jepa" else 1.0
            for kind in ("frame", "reward_mlp"):
                one.errors[kind] = better * level * rng.uniform(0.99, 1.01, BLOCKS)
    found = build(rows, pairs=[{"enc_dec_jepa": 1000, "jepa + decoder": 1005}])
    for score, against in (("decoded frame", "jepa with its decoder"), ("reward MLP", "jepa")):
        (claim,) = [c for c in verdicts_of(found, "enc_dec_jepa", against) if c["score"] == score]
        assert claim["verdict"] == "beats"
        assert claim["difference"] == pytest.approx(-0.1, abs=0.01)
        assert (claim["seeds"], claim["blocks"]) == (3, BLOCKS) and claim["high"] < -0.05
    means = {name: [one.errors["frame"].mean() for one in rows if one.facts["model"] == name]
             for name in ("enc_dec_jepa", "jepa")}  # fmt: skip
    low, high = (f(np.ravel(list(means.values()))) for f in (np.min, np.max))
    assert high > 5 * low  # what separate means would have to see through
    for one in rows:  # the same means, other partners
        if one.facts["model"] == "jepa":
            one.errors["frame"] = np.sort(one.errors["frame"])
    (shuffled,) = verdicts_of(build(rows), "enc_dec_jepa", "jepa with its decoder")
    assert shuffled["verdict"] == "no difference shown"
    odd = rows_of(1.0)
    for one in odd:
        if one.facts["model"] == "jepa":
            one.errors.update({kind: values[:-1] for kind, values in one.errors.items()})
    with pytest.raises(ComparisonError, match="jepa seed 0 and random seed 0 were scored on diff"):
        build(odd)


def test_the_pair_claims_nothing_unmatched_or_loaded():
    unmatched = build(rows_of(), pairs=[{"enc_dec_jepa": 1000, "jepa + decoder": 2000}])
    assert verdicts(unmatched, model="enc_dec_jepa", against="jepa") == {
        "nothing claimed: the pair is not matched"
    }
    rows = rows_of()
    for one in rows:
        one.facts["loaded"] = one.facts["model"] == "jepa"
    assert verdicts(build(rows), model="enc_dec_jepa", against="jepa with its decoder") == {
        "nothing claimed: the weights were loaded"
    }


def test_loaded_weights_claim_nothing():
    """Three loads of one file are no three seeds."""
    rows = rows_of(0.5)
    for one in rows:
        one.facts["loaded"] = one.facts["model"] == "jepa"
    found = build(rows)
    assert verdicts(found, model="jepa") == {"nothing claimed: the weights were loaded"}
    assert "beats" in verdicts(found, model="enc_dec_jepa")


def verdicts_of(found, model, against):
    return [c for c in found["claims"] if (c["model"], c["against"]) == (model, against)]


def test_fewer_than_three_seeds_claim_nothing():
    found = build(rows_of(0.1, (0, 1)), (0, 1))
    assert verdicts(found) == {"nothing claimed: 2 of 3 seeds"}
    assert not [text for text in tables.sentences(found) if "beats" in text]


def test_a_perfect_guess_is_not_estimable():
    rows = rows_of()
    for one in rows:
        one.errors["copy_last_frame"][:] = 0  # frames that never change
    found = build(rows)
    assert verdicts(found, against="copy_last_frame") == {NOT_ESTIMABLE}


def test_sentences_say_n_and_interval():
    texts = tables.sentences(build(rows_of()))
    one = next(text for text in texts if text.startswith("jepa: imagined latent"))
    assert "beats copy last latent: error -" in one and "3 seeds, 12 blocks" in one


def test_blocks_of_an_episode_are_the_unit_and_keep_the_mean():
    errors = np.arange(100.0)
    episode = np.repeat([7, 4, 9], [62, 30, 8])
    table = compare.by_block(errors, episode)
    assert table.mean() == pytest.approx(errors.mean())
    parts = np.split(errors, [30, 60, 62, 92])  # 30 at a time, never across an episode
    assert table == pytest.approx(np.array([part.sum() for part in parts]) * 5 / 100)
    with pytest.raises(ComparisonError, match=r"must be \(M,\)"):
        compare.by_block(errors, episode[:3])


def test_few_validation_blocks_claim_nothing():
    rows = rows_of(0.1)
    short = [one._replace(errors={k: v[:7] for k, v in one.errors.items()}) for one in rows]
    assert verdicts(build(short)) == {"nothing claimed: 7 of 8 validation blocks"}


def test_seeds_that_disagree_leave_the_difference_open():
    """Two seeds of three far better: resampling three seeds alone would claim too much."""
    rows = rows_of(1.0)
    for one in rows:
        if one.facts["model"] == "jepa":
            one.errors["latent"] *= (0.4, 0.5, 0.95)[one.facts["seed"]]
    found = build(rows)
    assert verdicts(found, model="jepa", against="copy_last_latent") == {"no difference shown"}


def test_parameter_match_is_two_per_cent():
    assert tables.matched({"a": 1000, "b": 1020})["ok"]
    far = tables.matched({"a": 1000, "b": 1021})
    assert not far["ok"] and far["gap"] == pytest.approx(0.021)
    assert build(rows_of(), pairs=[{"a": 1, "b": 2}])["matched"][0]["ok"] is False


def test_tidy_has_a_line_per_model_and_column():
    table = tables.tidy(build(rows_of()))
    assert len(table) == len(COMPARED) * len(COLUMNS)
    assert set(table.columns) == {"model", "column", "mean", "low", "high", "seeds", "text"}
    noted = table[(table.model == "random") & (table.column == "latent_error")]
    assert noted.text.item() == NOT_APPLICABLE and noted["mean"].isna().all()


def test_update_memory_counts_weights_moments_and_activations():
    layer = nn.Linear(10, 5, bias=False)
    x = torch.ones(8, 10)
    found = update_bytes(layer, lambda: layer(x).square().sum())
    assert found == 4 * (50 + 3 * 50 + 80 + 40)  # weights, gradient and moments, input, output
    layer.requires_grad_(False)
    assert update_bytes(layer, lambda: layer(x).sum()) == 4 * 50


def test_memory_of_the_two_stage_model_is_that_of_its_true_update():
    """Stage 2 trains through its roll-out, whose steps are kept for the backward pass."""
    data, small = tiny_transitions(), {"vjepa2__stage1__optim__batch": 2}
    found = [
        update_megabytes("vjepa2", tiny_pixels(vjepa2__stage2__rollout_steps=steps, **small), data)
        for steps in (1, 2, 3)
    ]
    assert found[0] < found[1] < found[2]


# --- summary.json and report.html ---------------------------------------------------------------
@pytest.fixture
def compared():
    return build(rows_of(), pairs=[{"enc_dec_jepa": 1000, "jepa + decoder": 1005}])


@pytest.fixture
def run(tmp_path, compared):
    made = Run.create("pixels", profile("smoke").override("device=cpu,precision=fp32"), tmp_path)
    leave_section(made, "20-pixels", comparison_section(compared))
    return made


def test_a_run_of_the_pixel_notebooks_alone_has_summary_and_report(run):
    """No planner was evaluated: nothing fails, and the comparison is what the report is about."""
    page = finish(run, say=lambda *_: None).read_text()
    found = check_summary(read_json(run.path / "summary.json"))
    assert found["results"] == [] and found["pixels"]["seeds"] == [0, 1, 2]
    assert "4 world models" in page and "World models on pixels" in page
    assert "copy last latent: 1" in page and "mean reward: 0.2" in page
    assert "mean reward: -0.01" in page
    assert "3 seeds, 12 blocks" in page and "0.50 % apart, matched" in page
    assert "of 26 paired comparisons" in page
    assert "1,750 for vjepa2" in page and "latent_error of enc_dec_jepa is not applicable" in page
    assert "random ViT encoder" in page
    assert "best model" not in page and "ranking" not in page
    table = page[page.index("World models on pixels") :]
    assert "loss" not in table[: table.index("</details>")]


def test_planning_rows_are_shown_like_results(run):
    methods = (("random", 7), ("flat, transformer level 1", 61), ("oracle", 100))
    rows = [result(method, "none", successes) for method, successes in methods]
    leave_section(run, "40-planning", {"title": "Transformer", "results": rows, "data": rows})
    page = finish(run, say=lambda *_: None).read_text()
    assert "flat, transformer level 1" in page and "n = 100" in page
    assert len(read_json(run.path / "summary.json")["planning"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("baselines"), "lacks 'baselines'"),
        (lambda found: found["models"].pop("random"), "lacks the random encoder 'random'"),
        (lambda found: found["models"].pop("random_vit"), "random encoder 'random_vit'"),
        (lambda found: found["models"]["jepa"].update(val_loss={}), "val_loss is a loss"),
        (lambda found: found["models"]["jepa"]["reward_r2"].update(seeds=1), "every seed"),
        (lambda found: found["models"]["jepa"]["reward_r2"].update(low=None), "no interval"),
    ],
)
def test_scores_without_seeds_intervals_or_floors_are_refused(compared, change, message):
    broken = copy.deepcopy(compared)
    change(broken)
    with pytest.raises(FileError, match=message):
        comparison_section(broken)


# --- through the real stages --------------------------------------------------------------------
TINY = {
    "device": "cpu", "precision": "fp32", "pixels.seeds": 1,
    "pixels.environment.image_size": 16, "pixels.environment.max_steps": 12,
    "pixels.data.episodes": 6, "pixels.data.transitions": 60, "pixels.data.sequence": 4,
    "pixels.encoder.cnn_filters": 2, "pixels.encoder.latent_dim": 8, "pixels.encoder.mlp_dim": 8,
    "pixels.encoder.head_dim": 4, "pixels.decoder.dim": 8, "pixels.decoder.mlp_dim": 8,
    "pixels.optim.updates": 2, "pixels.decoder.optim.updates": 2, "pixels.reward.hidden": 8,
    "pixels.reward.optim.updates": 2, "pixels.vjepa2.stage1.optim.updates": 2,
    "pixels.vjepa2.stage2.optim.updates": 2, "pixels.vjepa2.stage2.mlp_dim": 8,
    "pixels.vjepa2.stage2.head_dim": 4, "pixels.vjepa2.stage2.heads": 2,
    "pixels.vjepa2.stage1.hidden": [8], "pixels.jepa.hidden": [8], "pixels.vjepa2.stage1.patch": 4,
}  # fmt: skip


def test_rows_come_from_the_run_and_models_keep_their_weights(workspace_of, monkeypatch):
    monkeypatch.setattr(figures, "write_comparisons", lambda *_: None)
    ws = workspace_of(profile("smoke").override(TINY))
    found = results.load_comparison(ws)
    assert list(found["models"]) == [*MODELS, *UNTRAINED] and found["matched"][0]["ok"]
    assert "(2 + 2)" in found["notes"][0] and "2 for enc_dec, enc_dec_jepa" in found["notes"][0]
    _, validation = pixelstages.make_transitions(ws)
    whole = pixelstages.load_transitions(ws)
    for one in found["rows"]:
        assert one["data_sha256"] == whole.sha256 and one["n"]["validation"] == len(validation)
    texts = {
        m: {c: cell["text"] for c, cell in cells.items()} for m, cells in found["models"].items()
    }
    assert texts["enc_dec"]["latent_error"] == NOT_APPLICABLE == texts["enc_dec"]["larp_gain"]
    # The twin imagines what its decoder likes to read, no encoding: copying one is no rival of it.
    assert texts["enc_dec_jepa"]["latent_error"] == NOT_APPLICABLE
    for name in UNTRAINED:
        assert texts[name]["frame_mse"] == texts[name]["larp_mse"] == NOT_APPLICABLE
        assert found["models"][name]["reward_mse"]["mean"] > 0
    assert texts["jepa"]["reward_r2"] == NOT_ESTIMABLE  # fewer than 50 rewards

    # The stored error is that of the stored weights, by another way of computing it.
    jepa = pixelstages.load_model(ws, "jepa", 0)
    batch = validation[torch.arange(len(validation))]
    now, after = jepa.encode_target(batch.state), jepa.encode_target(batch.next_state)
    ratio = (jepa.imagine(now, batch.action) - after).square().sum() / (now - after).square().sum()
    assert found["models"]["jepa"]["latent_error"]["mean"] == pytest.approx(float(ratio), rel=1e-4)
    scaled = batch.next_state[:, -1].float() / 255
    copied = (batch.state[:, -1].float() / 255 - scaled).square().mean()
    assert found["baselines"]["copy_last_frame"] == pytest.approx(float(copied), rel=1e-4)
    frame = found["models"]["enc_dec"]["frame_mse"]["mean"]
    result = pixelstages.load_result(ws, "enc_dec_s0")
    assert frame == pytest.approx(result["frames"]["mse"], rel=1e-3)
    assert found["models"]["enc_dec"]["train_seconds"]["mean"] == result["seconds"]

    path = ws.run.path / "pixels/comparison/comparison.csv"
    before = path.stat().st_mtime_ns
    assert results.load_comparison(ws) == found and path.stat().st_mtime_ns == before
    assert path.read_text().startswith("model,column,mean,low,high,seeds,text")
