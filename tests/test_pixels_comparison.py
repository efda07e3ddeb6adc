import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_pixels import seeded, tiny_config, tiny_transitions

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation.compute import update_bytes
from hjepa_lib.evaluation.statistics import NOT_ESTIMABLE, over_seeds, unestimable
from hjepa_lib.files import read_json, write_json
from hjepa_lib.pixels import compare, figures, measures, results, stages
from hjepa_lib.pixels.compare import COLUMNS, COMPARED, NOT_APPLICABLE, NOTES, UNTRAINED, Row, score
from hjepa_lib.runs.notebooks import finish
from hjepa_lib.runs.report import leave_section
from hjepa_lib.runs.run import Run
from hjepa_lib.training.probes import collapse

SEEDS, BLOCKS, EPISODES = (0, 1, 2), 12, 4
PAIR = {"enc_dec_jepa": 1000, "jepa + decoder": 1005}


def row(model="jepa", seed=0, factor=0.5):
    """A row whose errors are `factor` times those of the guesses."""
    rng = np.random.default_rng(seed)
    floor, untrained = rng.uniform(0.5, 1.5, BLOCKS), model in UNTRAINED
    px = {"guess": [1.0, 2.0], "encoded": [0.1, 0.1], "last": [1.0, 2.0], "mean": [3.0, 3.0]}
    facts = {
        "model": model, "seed": seed, "data_sha256": "d" * 64, "environment": "world",
        "mean_reward_r2": -0.01, "learning_rates": [1e-3], "reads": [64],
        "n": {"training": 80, "test": 20, "episodes": EPISODES, "windows": 1_000},
        "updates": 0 if untrained else 600, "loaded": False, "early_stopping": False,
        "collapsed": "", "px": px if untrained else px | {"imagined": [0.5, 0.6]},
    }  # fmt: skip
    if model == "vjepa2":
        facts |= {"updates": 1750, "stage_updates": [600, 1150], "reads": [64, 256]}
    scores = {name: 0.1 * seed + len(model) for name in COLUMNS}
    noise = factor * floor * rng.uniform(0.95, 1.05, (6, BLOCKS))
    guesses = ("copy_last_frame", "mean_frame", "mean_reward", "frame_guess", "px_guess_first",
               "px_guess_last")  # fmt: skip
    errors = dict.fromkeys(guesses, floor) | {"reward_mlp": noise[0]}
    if untrained:
        lacking = ("latent_error", "frame_error", "larp_r2", "larp_gain", "px_first", "px_last")
        scores |= dict.fromkeys(lacking, NOT_APPLICABLE)
    else:
        kinds = ("frame", "latent", "larp", "px_first", "px_last")
        errors |= dict(zip(kinds, noise[1:], strict=True))
        errors |= {"latent_guess": floor, "larp_copy": floor, "px_permuted": floor}
    return Row(facts, scores, errors)


def rows_of(factor=0.5, **facts):
    """Rows of all models; `facts` replace those of jepa."""
    rows = [row(m, seed, 1.0 if m in UNTRAINED else factor) for seed in SEEDS for m in COMPARED]
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


def test_where_models_differ_by_design_is_said():
    """Section 0; two stages, loaded weights, early stops and collapse."""
    first, *said = compare.build(rows_of())["notes"]
    assert "enc_dec 600" in first and "vjepa2 1,750" in first
    assert any("2 stages (600 + 1,150): the rule of equal" in text for text in said)
    assert "Learning rates" not in " ".join(said)
    rows = rows_of(learning_rates=[6e-3])
    for one in of(rows, "vjepa2"):
        one.facts.update(updates=600, stage_updates=[300, 300])
    told = " ".join(compare.build(rows)["notes"])
    assert "2 stages (300 + 300): as many updates as the others, of 64 and 256 trans" in told
    assert "rule of equal" not in told
    assert "enc_dec_jepa 0.001, jepa 0.006, vjepa2 0.001; what differs may be" in told
    assert any(text.startswith("latent_error of enc_dec_jepa is not applicable") for text in said)
    for facts, text in (
        ({"loaded": True, "updates": 0}, "jepa has weights from a file, so nothing is claimed"),
        ({"early_stopping": True}, "The budget of jepa is in epochs and may stop early."),
        ({"collapsed": "rank 1"}, "jepa has collapsed: rank 1."),
    ):
        assert text in " ".join(compare.build(rows_of(**facts))["notes"])
        assert text not in " ".join(said)


def test_every_score_has_n_seeds_ranges_and_baselines(tmp_path):
    """F12, F15."""
    found = json.loads(write_json(tmp_path / "c.json", compare.build(rows_of())).read_text())
    assert found["seeds"] == [0, 1, 2]
    assert found["n"] == row().facts["n"]
    assert list(found["models"]) == list(COMPARED) == list(found["curves"])
    for name in COLUMNS:
        assert "loss" not in name
        assert (compare.floor(found, name) is not None) == (name in compare.RANKED)
        for cells in found["models"].values():
            cell = cells[name]
            assert cell["seeds"] == 3
            assert cell["text"] in NOTES or cell["low"] <= cell["mean"] <= cell["high"]
    floors = [compare.floor(found, name) for name in ("latent_error", "larp_gain", "larp_r2")]
    assert floors == [1, 0, -0.01]
    guess = row().errors["px_guess_last"].mean() ** 0.5
    assert compare.floor(found, "px_last") == pytest.approx(guess)


def test_a_range_over_seeds_stays_inside_its_quantity():
    """X16."""
    cell = over_seeds([1.0, 2.0, 9.0])
    assert (cell["mean"], cell["low"], cell["high"]) == (4, 1, 9)
    assert cell["text"] == "4 [1 to 9]"
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
        for against in ("the better guess", "permuted actions", "mean_reward"):
            for found, verdict in (
                (better, "beats"), (worse, "loses to"), (equal, "no difference shown")
            ):  # fmt: skip
                assert verdicts(found, model=model, against=against) == {verdict}
        assert verdicts(better, model=model, against="larp_copy") == {"beats"}
    claim = next(c for c in better["claims"] if c["score"] == "imagined latent")
    assert claim["difference"] == pytest.approx(-0.5, abs=0.03)
    px = next(c for c in better["claims"] if c["score"].startswith("state px"))
    assert px["difference"] == pytest.approx(0.5**0.5 - 1, abs=0.03)  # of px, not of px^2 (X1)
    assert claim["low"] < claim["difference"] < claim["high"] < 0
    assert {c["score"] for c in better["claims"] if c["model"] in UNTRAINED} == {"reward MLP"}
    texts = compare.sentences(better["claims"])
    one = next(text for text in texts if text.startswith("jepa: imagined latent"))
    assert "beats the better guess: error -" in one and "seeds: 3, blocks: 12" in one


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
    """The seeds differ far more than the twins do."""
    rows, rng = rows_of(1.0), np.random.default_rng(5)
    for one in rows:
        model, seed = one.facts["model"], one.facts["seed"]
        level = np.random.default_rng(seed).uniform(0.5, 1.5, BLOCKS) * 3.0**seed
        better = 0.9 if model == "enc_dec_jepa" else 1.0
        for kind in ("frame", "reward_mlp"):
            one.errors[kind] = better * level * rng.uniform(0.99, 1.01, BLOCKS)
    claims = [c for c in compare.build(rows, [PAIR])["claims"] if c["against"] == "JEPA"]
    assert [c["score"] for c in claims] == ["state px, one step", "decoded frame", "reward MLP"]
    for claim in claims[1:]:
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
    run = Run.create("pixels", tiny_config(), tmp_path)
    leave_section(run, "20-pixels", results.comparison_section(compare.build(rows_of(), [PAIR])))
    page = finish(run, say=lambda *_: None).read_text()
    found = read_json(run.path / "summary.json")
    assert found["results"] == [] and found["pixels"]["seeds"] == [0, 1, 2]
    for text in (
        "4 world models", "World models on pixels", "trivial guess, permuted actions", "-0.01",
        "20 in 4 episodes to be judged on, px on 1,000 windows of them", "seeds: 3, blocks: 12",
        "0.50 % apart, matched", "paired comparisons",
        "random ViT encoder", "latent_error of enc_dec_jepa is not applicable",
    ):  # fmt: skip
        assert text in page


def test_rows_come_from_the_run_and_its_stored_weights(pixel_run):
    ws = pixel_run
    found = results.load_comparison(ws)
    assert list(found["models"]) == list(COMPARED) and found["matched"][0]["ok"]
    assert "(6 + 6)" in " ".join(found["notes"])
    assert {one["model"]: one["reads"] for one in found["rows"]}["vjepa2"] == [8, 8 * 6]
    train, _, test = stages.make_transitions(ws)
    sha256 = stages.load_transitions(ws).sha256
    for one in found["rows"]:
        assert one["data_sha256"] == sha256 and one["n"]["test"] == len(test)
        own = f"{one['model']}_s0", f"heads_{one['model']}_s0"
        said = {name: {"from": "this run", "key": ws.run.key(name)} for name in own}  # I4
        assert said.items() <= one["weights"].items()
    texts = {m: {c: cell["text"] for c, cell in own.items()} for m, own in found["models"].items()}
    # The twin imagines no encoding: copying one is no rival of it.
    for name in ("enc_dec", "enc_dec_jepa", *UNTRAINED):
        assert texts[name]["latent_error"] == NOT_APPLICABLE
    for name in UNTRAINED:
        assert texts[name]["frame_error"] == texts[name]["px_last"] == NOT_APPLICABLE
    assert texts["enc_dec"]["larp_gain"] == NOT_APPLICABLE
    assert texts["jepa"]["reward_r2"] == texts["jepa"]["larp_gain"] == NOT_ESTIMABLE  # few rewards

    # The stored error is that of the stored weights, computed otherwise.
    means = {name: own["mean"] for name, own in found["models"]["jepa"].items()}
    jepa = stages.load_model(ws, "jepa", 0)
    batch, seen = (part[torch.arange(len(part))] for part in (test, train))
    now, after = jepa.encode_target(batch.state), jepa.encode_target(batch.next_state)
    centre = jepa.encode_target(seen.next_state).mean(0)
    guess = min((one - after).square().sum() for one in (now, centre))
    gap = (jepa.imagine(jepa.encode(batch.state), batch.action) - after).square().sum()
    assert means["latent_error"] == pytest.approx(float(gap / guess), rel=1e-4)
    heads = {(one["model"], one["head"]): one for one in results.load_rewards(ws)["heads"]}
    cell, _ = stages.load_heads(ws, "jepa", 0)
    mse = pytest.approx(np.square(cell["larp"] - cell["reward"]).mean(), rel=1e-5)
    assert heads["jepa", "larp"]["mse"] == mse


class Oracle:
    """Its latent is the square's true place, however far it imagines."""

    config, background = tiny_config().pixels, torch.zeros(1)
    steps = torch.tensor([[2, 0], [-2, 0], [0, 2], [0, -2]])

    def __init__(self, believes=True, draws=False, tags=False):
        self.believes, self.predicts_latents, self.tags = believes, not draws, tags

    def encode_target(self, state):
        light = (state[:, -1, 0] > 100).float()
        return torch.stack([light.amax(axis).argmax(1).float() for axis in (2, 1)], 1)

    def unroll(self, state, actions):
        place, found = self.encode_target(state), []
        for action in actions.unbind(1):
            place = (place + self.steps[action] * self.believes).clamp(0, 12)
            found.append(place)
        if self.tags:  # it knows nothing of what an action does, but holds it
            return torch.stack(found, 1) + self.steps[actions].cumsum(1).flip(-1)
        return torch.stack(found, 1)


def test_state_px_of_a_model_that_knows_and_of_one_that_copies(monkeypatch):
    """X19."""
    monkeypatch.setattr(measures, "STEPS", 4)
    train, test = tiny_transitions(20).split(0.4, 0)
    train.episode -= 99  # a stranger's numbers
    found, episode = measures.place_errors(Oracle(), train, test, 0, 6)
    px = {kind: measures.rms(errors) for kind, errors in found.items()}
    assert px["imagined"].max() < 0.05 and px["encoded"].max() < 0.05
    assert px["permuted"].min() > 1 and len(episode) == len(found["guess"])
    assert px["guess"] == pytest.approx(np.min([px[n] for n in ("last", "mean", "between")], 0))
    for draws, guess in ((False, "last"), (True, "between")):  # its read-out wins nothing over it
        lazy, _ = measures.place_errors(Oracle(False, draws), train, test, 0, 6)
        for kind in ("imagined", "permuted"):
            assert measures.rms(lazy[kind]) == pytest.approx(px[guess], abs=0.05)
    # A ridge of its own would read steps out of a latent that holds the action.
    tagged, _ = measures.place_errors(Oracle(False, tags=True), train, test, 0, 6)
    assert (measures.rms(tagged["imagined"]) > px["guess"]).all()
    blind = dataclasses.replace(train, position=None)
    assert measures.place_errors(Oracle(), blind, test, 0, 6)[0] == {}


def test_the_one_rule_of_collapse_is_free_of_units():
    """X5."""
    white = torch.randn(200, 16, generator=seeded(0))
    line = torch.randn(200, 1, generator=seeded(1)) * torch.randn(16, generator=seeded(2))
    assert collapse(1e-4 * white, 50 * white)["collapsed"] == ""
    for broken, why in (
        (torch.ones(200, 16), "varying"), (500 + white, "varying"), (line, "effective rank"),
        (white * float("nan"), "not finite"),
    ):  # fmt: skip
        assert why in collapse(broken, white)["collapsed"]
    dull = 100 + white  # an encoder that begins so has not collapsed where it stays so
    assert collapse(dull, dull)["collapsed"] == ""


def test_every_look_of_a_line_of_the_horizon_is_in_its_legend():
    curves = {name: [row(name).facts["px"]] for name in ("jepa", "random")}
    (axis,) = figures.horizon({"curves": curves}).axes
    looks = {line.get_linestyle() for line in axis.lines}
    assert looks == {"-", ":", "--", "-."}
    named = {line.get_label(): line.get_linestyle() for line in axis.get_legend().get_lines()}
    assert set(named.values()) == looks and named["from true frames"] == ":"
    assert [*named].count("JEPA") == 1 and not any(name.startswith("_") for name in named)


def test_scatters_show_the_diagonal_and_the_score():
    reward = np.linspace(0, 1, 40)
    part = (reward, reward**2)
    for note, said in (((), f"R² {score(*part[::-1])['r2']:.3f}"), (("few",), "not estimable")):
        (axis,) = figures.reward_scatter({"jepa": part}, *note).axes
        assert said in axis.get_title("left")
    assert list(axis.lines[0].get_xdata()) == list(axis.lines[0].get_ydata())
