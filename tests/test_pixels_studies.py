import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_pixels import tiny_config, tiny_transitions, tiny_workspace

from hjepa_lib.config.pixels import MODELS
from hjepa_lib.evaluation import compute
from hjepa_lib.pixels import compare, results, seconds, stages, studies, tables, worlds
from hjepa_lib.pixels.measures import place_errors
from hjepa_lib.readme import section_text
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.schema import read_experiment


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 200)


def test_a_cell_has_a_row_per_model_with_the_numbers_of_the_comparison(pixel_run):
    rows = studies.score_models(pixel_run, {"training": True})
    assert [row["learner"] for row in rows] == list(MODELS)
    for row in rows:
        name = row["learner"]
        same = results.measure_row(pixel_run, name, 0)
        for column in ("px_first", "ratio_last", "action_use", "px_encoded", "frame_error",
                       "effective_rank", "parameters", "updates"):  # fmt: skip
            assert row[column] == pytest.approx(same.scores[column])
        assert row["imagined_first"] == row["px_first"] == same.facts["px"]["imagined"][0]
        assert row["ratio_first"] == pytest.approx(row["imagined_first"] / row["guess_first"])
        assert row["ratio_first_low"] <= row["ratio_first"] <= row["ratio_first_high"]
        assert row["frame"] / row["frame_error"] == pytest.approx(
            min(row["copy_last_frame"], row["mean_frame"])
        )
        assert ("latent_error" in row) == (name in ("jepa", "vjepa2"))
        assert row["weights.model.key"] == pixel_run.run.key(f"{name}_s0")
        assert ("weights.decoder.key" in row) == (name in stages.DECODED)
        assert row["n.test"] == 10 and row["n.windows"] == 5 and row["minutes"] > 0
        assert row["training.px_first"] != row["px_first"]
        (blocks,) = compare.unpack([row["errors.px_first"]])
        assert blocks.mean() ** 0.5 == pytest.approx(row["px_first"], rel=1e-3)
        assert "reward_r2" not in row and "closed" not in row and "possible_first" not in row


def test_a_position_of_many_numbers_is_scored_by_each_of_them(tmp_path):
    """As Breakout's paddle and ball; without a decoder no frame is judged."""
    ws, data = tiny_workspace(tmp_path), tiny_transitions(12)
    data.position = torch.cat([data.position, data.position[:, :1] * 0 + 7], 1)
    stage = stages.pixel_stages(ws.config)[stages.DATA]
    with ws.run.stage(stage.name, stage.folder, ws.key(stage)) as folder:
        data.save(folder)
    (row,) = studies.score_models(ws, {"models": ["jepa"], "draw": False})
    assert "frame" not in row and "decoder_jepa_s0" not in ws.run.manifest["stages"]
    assert row["latent"] > 0 and "training.px_first" not in row
    train, _, test = stages.make_transitions(ws)
    one, two = (dataclasses.replace(x, position=x.position[:, [1]]) for x in (train, test))
    found, _ = place_errors(stages.load_model(ws, "jepa", 0), one, two, 0, 6)
    px = {kind: np.sqrt(errors.mean(0)) for kind, errors in found.items()}
    for kind in ("imagined", "guess"):
        assert row[f"{kind}_last_1"] == pytest.approx(px[kind][-1])
    assert row["ratio_last_1"] == pytest.approx(px["imagined"][-1] / px["guess"][-1])
    assert "ratio_first_2" not in row  # the third number stays: copying it is without error
    assert len(row["errors.px_first_0"].split()) == len(row["errors.px_guess_first_0"].split()) > 0


def test_in_our_own_worlds_a_row_knows_the_best_possible_model(root, monkeypatch):
    config = tiny_config(environment__id=worlds.DRIFT_ID, environment__max_steps=10,
                         data__episodes=30, data__transitions=0)  # fmt: skip
    ws = Workspace("test", Run.create("drift", config, root))
    (row,) = studies.score_models(ws, {"models": ["jepa"], "draw": False})
    _, _, test = stages.make_transitions(ws)
    first = test.windows(6)
    places = (test.position[rows].numpy() for rows in (test.now[first], test.after[first]))
    start, after = places
    said = worlds.foresee(worlds.DRIFT_ID, start, test.action[first][:, None].numpy())[:, 0]
    least = np.square(after - said).sum(1).mean() ** 0.5
    assert row["possible_first"] == pytest.approx(least, rel=1e-3)
    (blocks,) = compare.unpack([row["errors.px_possible_first"]])
    assert blocks.mean() ** 0.5 == pytest.approx(least, rel=1e-2)
    assert 5 < row["ceiling_px"] < 6 and row["possible_first"] < row["possible_last"]
    data = stages.load_transitions(ws)  # the rules do not say what several steps lead to
    data.meta["frame_skip"] = 1
    monkeypatch.setattr(stages, "load_transitions", lambda _: data)
    (row,) = studies.score_models(ws, {"models": ["jepa"], "draw": False})
    assert "imagined_first" in row and not {"ceiling_px", "possible_first"} & row.keys()


def test_models_of_less_data_are_judged_on_the_same_episodes(tmp_path):
    rows = []
    given = {"models": ["jepa"], "draw": False, "training": True}
    given["judged"] = {"seed": 100, "pixels.data.transitions": 150}
    for count in (200, 100):
        config = tiny_config(data__transitions=count, data__episodes=20)
        ws = Workspace("test", Run.create(f"study/{count}", config, tmp_path))
        rows += studies.score_models(ws, given)
    same = ("guess_first", "guess_last", "last_last", "n.test", "n.windows")
    assert [rows[0][name] for name in same] == [rows[1][name] for name in same]
    assert rows[0]["training.px_first"] != rows[1]["training.px_first"]


def test_thin_blocks_keep_their_mean_and_ratios_their_range():
    blocks = np.random.default_rng(0).uniform(0, 2, 250)
    (few,) = compare.unpack([compare.pack(blocks)])
    assert len(few) == compare.KEPT and few.mean() == pytest.approx(blocks.mean(), rel=1e-3)
    assert compare.unpack([compare.pack(blocks[:7])])[0] == pytest.approx(blocks[:7], rel=1e-3)
    several = compare.unpack([compare.pack(few), compare.pack(few[:12])])
    assert several.shape == (2, 12) and several[0] == pytest.approx(few[:12], rel=1e-3)
    said = compare.ratio_of(0.25 * few, few * 1.0, power=0.5)
    assert said == {"": pytest.approx(0.5), "_low": pytest.approx(0.5), "_high": pytest.approx(0.5)}
    wild = compare.ratio_of(few**8, few)
    assert 0 < wild["_low"] < wild[""] < wild["_high"]
    assert compare.ratio_of(few, 0 * few) == {}


def test_nobody_foresees_more_than_the_rules_of_the_world():
    """In Calm all of it, in Drift what the gusts leave."""
    rng = np.random.default_rng(0)
    place, action = rng.uniform(worlds.LOW, worlds.HIGH, (2_000, 2)), rng.integers(0, 5, (2_000, 3))
    truth = []
    for taken in action.T:
        last = truth[-1] if truth else place
        truth.append(np.clip(last + worlds.STEP * worlds.ACTIONS[taken], worlds.LOW, worlds.HIGH))
    assert worlds.foresee(worlds.CALM_ID, place, action) == pytest.approx(np.stack(truth, 1))
    said = worlds.foresee(worlds.DRIFT_ID, place, action)
    gust = rng.normal(0, worlds.GUST, place.shape) * (rng.random((len(place), 1)) < 0.5)
    after = np.clip(place + worlds.STEP * worlds.ACTIONS[action[:, 0]] + gust, 6, 57)
    least = np.square(after - said[:, 0]).sum(1).mean() ** 0.5
    assert least == pytest.approx(worlds.ceilings(worlds.DRIFT_ID)["px"], rel=0.06)
    assert np.square(after - place).sum(1).mean() ** 0.5 > 1.1 * least
    assert worlds.foresee("hjepa/TwoRooms-v0", place, action) is None


def test_worlds_are_cells_of_their_own_drift_first_and_breakout_has_one_seed():
    found = read_experiment(CONFIGS / "pixel_worlds.yaml")
    counts = {}
    for unit in found.units:
        counts.setdefault(unit.key["model"], []).append(unit.seed)
    assert [*counts.items()] == [
        ("drift", [0, 1, 2]), ("two_rooms", [0, 1, 2]), ("breakout", [0]),
    ]  # fmt: skip
    (one,) = found.select(models="drift", seeds=(1,))
    shaped = one.training()  # by no setting of a planner
    assert {key.split(".")[0] for key in shaped} == {"pixels", "precision", "recipe"}
    assert shaped["pixels.environment.id"] == worlds.DRIFT_ID
    for name in ("pixel_worlds", "noisy_tv", "pixel_ablations"):
        table = read_experiment(CONFIGS / f"{name}.yaml").table
        assert (table.parent.name, table.name) == ("gallery", f"{name}.csv")


# --- tables
def table_row(learner="jepa", seed=0, model="drift", scale=0.5, **more):
    """A row whose squared px are `possible`, and `scale` of the guess's rest."""
    rng = np.random.default_rng(seed)
    gap, possible = rng.uniform(8, 12, 20), rng.uniform(28, 32, 20)
    errors = {"px_guess_first": possible + gap, "px_possible_first": possible,
              "px_first": possible + gap * scale * rng.uniform(0.95, 1.05, 20)}  # fmt: skip
    errors |= {"px_last": errors["px_first"], "px_guess_last": 2 * errors["px_guess_first"],
               "px_permuted": 2 * errors["px_first"]}  # fmt: skip
    px = {
        kind: float(errors[f"px{of}_first"].mean() ** 0.5)
        for kind, of in (("imagined", ""), ("guess", "_guess"), ("possible", "_possible"))
    }
    row = {f"{kind}_{end}": value for kind, value in px.items() for end in results.ENDS}
    row |= {"learner": learner, "seed": seed, "model": model, "encoded_first": 0.7,
            "action_use": 2.0, "updates": 2000, "minutes": 6.0, "ceiling_px": 5.5}  # fmt: skip
    return row | {f"errors.{kind}": compare.pack(one) for kind, one in errors.items()} | more


def written(folder, name, rows):
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return {one["title"]: section_text(one) for one in tables.sections(folder)}


def test_tables_of_worlds_say_who_beats_the_guess_and_what_share_is_closed(tmp_path):
    assert tables.sections(tmp_path) == []
    (tmp_path / "noisy_tv.csv").touch()
    assert tables.sections(tmp_path) == []
    scales = {"enc_dec": 0.3, "enc_dec_jepa": 0.5, "jepa": 1.2, "vjepa2": 0.9}
    rows = [table_row(name, s, scale=scales[name]) for name in MODELS for s in range(3)]
    marked = {f"{kind}_{end}_{at}": 3.0 for kind in ("imagined", "guess", "encoded")
              for end in results.ENDS for at in range(3)}  # fmt: skip
    marked |= {f"errors.{kind}_{end}_{at}": "4 4 4 4" if kind == "px" else "1 1 1 1" for at in
               range(3) for end in results.ENDS for kind in ("px", "px_guess")}  # fmt: skip
    rows.append(table_row(model="breakout", **marked))
    (text,) = written(tmp_path, "pixel_worlds", rows).values()
    assert "is beaten by 3 of 4 models after one imagined step and by 4 after the last" in text
    few = "(seeds: 1, so nothing is claimed)"
    assert "is beaten by 0 of 1 models after one" in text and f"by 0 after the last {few}" in text
    assert "[lowest to highest]; ratios" in text and "over seeds, if several, and blocks" in text
    (one,) = written(tmp_path, "pixel_worlds", rows[-1:]).values()
    assert "step, of one training seed; ratios" in one and "over seeds" not in one
    order = [
        text.index(f"{compare.LABELS[name]} {share}")
        for name, share in (("enc_dec", 70), ("enc_dec_jepa", 50), ("vjepa2", 10), ("jepa", -20))
    ]
    assert order == sorted(order) and "30.2 over uniform states" in text
    assert "enc_dec: state px, one step beats the better guess" in text
    assert "| breakout, ball x | JEPA | 3 (1 seed) | 3 (1 seed) | 2.00 (2.00 to 2.00) |" in text
    assert "not matched" in text  # nobody has told the twins' sizes


@pytest.mark.parametrize(
    ("at_75", "verdict"), [(2.0, "confirmed"), (0.5, "refuted"), (1.0, "open")]
)
def test_the_committed_prediction_meets_the_rows(tmp_path, at_75, verdict):
    """Of the ratio decoder over JEPA at 75 % of noise against that without."""
    rows = []
    for seed in range(3):
        for noise, ratio in (("0", 1.1), ("25", 9.0), ("75", 1.1 * at_75 * 1.01 ** (seed - 1))):
            rows += [table_row("jepa", seed, noise=noise, imagined_first=2.0)]
            for rival in tables.RIVALS:
                rows += [table_row(rival, seed, noise=noise, imagined_first=2.0 * ratio)]
    (text,) = written(tmp_path, "noisy_tv", rows).values()
    told = f"Prediction {verdict}: ratio of px errors, encoder-decoder over JEPA, at 75 %"
    assert told in text and f"{np.log(at_75):+.3f}" in text and "| 25 | JEPA |" in text
    assert "does not learn" not in text
    rows[1]["imagined_first"] = 0.83 * rows[1]["guess_first"]  # of the first rival at 0 %, seed 0
    (text,) = written(tmp_path, "noisy_tv", rows).values()
    assert text.count("But encoder-decoder does not learn without noise (ratio up to 0.83)") == 1
    (text,) = written(tmp_path, "noisy_tv", rows[: len(rows) // 3]).values()
    assert text.count("Prediction open") == 2 and "has 1 of 3 seeds" in text
    (text,) = written(tmp_path, "noisy_tv", [one for one in rows if one["noise"] == "0"]).values()
    assert "has 0 of 3 seeds" in text


# --- equal seconds
@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever somebody looks."""
    ticking = SimpleNamespace(perf_counter=map(float, itertools.count()).__next__)
    monkeypatch.setattr(seconds, "time", ticking)


def test_models_train_in_turn_as_long_as_each_other(root, clock, monkeypatch):
    """Updates follow from the measured pace; both stages of `vjepa2` share its seconds."""
    ws = tiny_workspace(root, name="study/run")
    turns, real = [], stages.train

    def train(own, *names):
        for report in real(own, *names):
            turns.append(names[-1])
            yield report

    monkeypatch.setattr(seconds.stages, "train", train)
    given = {"models": ["jepa", "vjepa2"], "seconds": 14.0, "pace": 3}
    rows = seconds.score_seconds(ws, given)
    # Every update takes a second of this clock, but for the first and second of a stage.
    assert [row["updates"] for row in rows] == [14, 2 * 7]
    assert [row["seconds"] for row in rows] == [12.0, 10.0]
    assert turns[9:35] == 11 * ["jepa_s0"] + 12 * ["vjepa2_s0"] + 3 * ["jepa_s0"]  # 1 counted each
    train = stages.make_transitions(ws).train
    model, batch = stages.fresh_model(ws, "jepa", 0, train), train[torch.arange(8)]
    forward = compute.count(lambda: model.loss(batch))  # a backward pass is about as much again
    assert 1.5 < rows[0]["teraflop"] * 1e12 / 14 / forward < 3 and rows[0]["wish"] == 14.0
    count = len(turns)
    again = seconds.score_seconds(ws, given)
    assert again[1]["seconds"] == 10.0 and len(turns) == count
    assert [row["teraflop"] for row in again] == [row["teraflop"] for row in rows]


def test_a_killed_training_counts_no_update_twice(root, clock, monkeypatch):
    """It goes on from a checkpoint: 14 updates are 12 counted ones."""
    runs = {"jepa": seconds._run(tiny_workspace(root, name="study/run"), "jepa", 14)}
    real = stages.train
    monkeypatch.setattr(seconds, "TURN", 1)

    def killed(*given):
        yield from itertools.islice(real(*given), 8)
        raise KeyboardInterrupt

    monkeypatch.setattr(seconds.stages, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        seconds.train_in_turn(runs)
    monkeypatch.setattr(seconds.stages, "train", real)
    assert seconds.train_in_turn(runs)["jepa"]["seconds"] == 12.0
