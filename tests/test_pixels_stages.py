import dataclasses
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import digest, refused
from tiny_pixels import (
    SHAPES,
    TINY_GRID,
    collected,
    descend,
    dotted,
    fresh,
    skilled,
    tiny_config,
    tiny_pixels,
    tiny_transitions,
    tiny_workspace,
    under,
)
from tiny_runs import ROOT, code_with, execute
from tiny_settings import SETTINGS, base_of, other_values

from hjepa_lib.config import ConfigError, flatten, from_dict
from hjepa_lib.config.pixels import MODELS, EpochsConfig, RewardConfig
from hjepa_lib.files import FileError
from hjepa_lib.grids import buffer as buffers
from hjepa_lib.grids.models import KINDS, build_grid_model
from hjepa_lib.grids.stages import fit_grid, grid_stages
from hjepa_lib.models.checkpoint import load_module
from hjepa_lib.pixels import makers, models, training
from hjepa_lib.pixels.collect import acquire, collect
from hjepa_lib.pixels.compare import COMPARED
from hjepa_lib.pixels.measures import transition_errors
from hjepa_lib.pixels.models import FILES, VJepa2, build_pixel_model, fill_model, save_model
from hjepa_lib.pixels.networks import parameter_counts
from hjepa_lib.pixels.results import measure_row
from hjepa_lib.pixels.stages import (
    DECODED,
    fresh_model,
    load_decoder,
    load_heads,
    load_model,
    load_result,
    load_transitions,
    make_transitions,
    pixel_stages,
    stage_of,
    train,
)
from hjepa_lib.pixels.training import RewardHead
from hjepa_lib.pixels.vjepa2 import MaskedPrediction, encode_states
from hjepa_lib.runs.keys import key
from hjepa_lib.training.loop import Fit


@pytest.fixture
def ws(pixel_run, monkeypatch):
    """The whole tiny run, in the outputs folder where it was made."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(pixel_run.run.path.parent))
    return pixel_run


def beside(ws, name, root=None, **changes):
    """A run of the same data with some settings of `pixels` changed."""
    return tiny_workspace(root or ws.run.path.parent, ws.config.override(dotted(changes)), name)


def weights(ws):
    return digest(load_model(ws, "jepa", 0))


@functools.cache
def keys_of(seed=0, **changes):
    config = tiny_config(**changes).override({"seed": seed})
    return {name: key(one, config) for name, one in pixel_stages(config).items()}


def changed(**changes):
    before, after = keys_of(), keys_of(**changes)
    return {name for name in before if before[name] != after.get(name)}


def test_a_stage_is_shaped_by_all_that_its_inputs_were_shaped_by():
    """I2."""
    whole = {"comparison", "rewards"}
    assert changed(seed=1) == changed(data__episodes=9) == set(keys_of())
    jepa = {"jepa_s0", "heads_jepa_s0", "decoder_jepa_s0"} | whole
    assert changed(jepa__target="none") == jepa | {"enc_dec_jepa_s0", "heads_enc_dec_jepa_s0"}
    two = {f"{kind}{name}_s0" for kind in ("", "heads_") for name in ("vjepa2", "random_vit")}
    two |= whole | {"decoder_vjepa2_s0"}
    assert changed(vjepa2__stage1__mask=0.7) == two | {"vjepa2_stage1_s0"}
    assert changed(vjepa2__stage2__dropout=0.5) == two
    assert changed(reward__dropout=0.5) == {f"heads_{name}_s0" for name in COMPARED} | whole
    assert changed(reward__labels=(30,)) == set()
    decoders = {f"decoder_{name}_s0" for name in DECODED}
    assert changed(decoder__source="online") == decoders | {"comparison"}
    assert changed(log_every=7, reward__log_every=7, grid__size=9) == set()


def test_the_table_has_the_order_of_the_seed():
    """TRAIN-1."""
    stages = pixel_stages(tiny_config(seeds=2))
    parts = [*MODELS[:3], "vjepa2_stage1", "vjepa2", "random", "random_vit"]
    parts += [f"heads_{name}" for name in COMPARED] + [f"decoder_{name}" for name in DECODED]
    per_seed = [f"{name}_s{n}" for n in (0, 1) for name in parts]
    assert [*stages] == ["pixel_data", *per_seed, "rewards", "comparison"]
    ws, name = SimpleNamespace(config=tiny_config()), "decoder_enc_dec_s0"
    refused(ConfigError, f"no stage '{name}' with these settings", stage_of, ws, name)


def test_a_model_is_judged_as_far_as_the_run_says_that_judges_it(ws):
    """Not as its own run says: a table would hold models after other steps."""
    shorter = beside(ws, "shorter", data__sequence=4)
    found = measure_row(shorter, "enc_dec", 0, rewards=False).facts
    assert shorter.origin("enc_dec_s0") == "tiny" and len(found["px"]["imagined"]) == 4


@pytest.fixture
def chapter(ws, monkeypatch):
    """Plays a chapter on the data of the run, with other settings."""
    monkeypatch.setenv("HJEPA_HEADLESS", "1")

    def play(number, **changes):
        config = ws.config.override(dotted(changes), strict=False)
        name = tiny_workspace(ws.run.path.parent, config, f"chapter{number}").run.name
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        execute(path, run=name)

    return play


def test_drawing_or_naming_holds_where_models_differ_by_wish(chapter, ws, capsys):
    """Loaded weights, a decoder that reads the answer, no possible encoder, no auxiliary loss."""
    path = str(ws.run.stage_folder("jepa_s0"))
    chapter(11, loading__path=path, loading__skip_training=True, decoder__source="online",
            encoder__patch=5, auxiliary__weight=0.0)  # fmt: skip
    said = capsys.readouterr().out
    assert "vit: images of 16 x 16 px do not divide into 5 px patches" in said
    assert "jepa draws the next frame, from its encoding, with" in said
    assert "enc_dec draws the next frame with" in said and "checks passed" in said


def test_a_model_trained_elsewhere_has_no_curves():
    silent = SimpleNamespace(run=SimpleNamespace(records=lambda _: []))
    names = {"ws": silent, "name_of": lambda *_: "", "two_stages": SimpleNamespace(STAGES=[0, 0])}
    exec(code_with("records1 =", 12), names)
    assert names["records1"] == []


@pytest.mark.parametrize("name", [*MODELS, "random", "random_vit"])
def test_a_stored_model_gives_equal_outputs(ws, name):
    """TRAIN-5."""
    folder, model = ws.run.stage_folder(f"{name}_s0"), load_model(ws, name, 0)
    assert (folder / f"{FILES[name]}.safetensors").is_file()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert list(train(ws, f"{name}_s0")) == []
    other = build_pixel_model(name, ws.config.pixels, tiny_transitions())
    fill_model(folder, other)
    state = tiny_transitions().batch(torch.arange(4)).state
    assert torch.equal(other.eval().encode(state), model.encode(state))


def test_a_foreign_file_is_one_sentence(tmp_path):
    save_model(tmp_path, fresh("enc_dec"))
    (tmp_path / "best_stage1_model.json").write_text('{"kind": "level1"}')
    for name in ("enc_dec_jepa", "stage1"):
        refused(FileError, f"does not describe a pixel {name}", models.load_model, tmp_path, name)
    other = fresh("enc_dec", action_dim=9)
    refused(FileError, "was made for another config", fill_model, tmp_path, other)


def test_results_say_what_makes_them_comparable(ws):
    """Rule 1 and MET-2."""
    rows = [load_result(ws, f"{name}_s0") for name in MODELS[:3]]
    for name in ("data_sha256", "batches_sha256", "updates", "transitions", "seed"):
        assert len({json.dumps(row[name]) for row in rows}) == 1, name
    assert rows[0]["data_sha256"] == tiny_transitions().sha256 and rows[0]["updates"] == 10
    for row in rows:
        assert row["parameters"]["total"] > 0 and row["seconds"] > 0
        assert row["skipped"] == 0 and not row["loaded"]


def test_frame_errors_stand_next_to_guesses_that_need_no_model():
    data = tiny_transitions()

    def means(data, predict):
        found = transition_errors(data, data, "cpu", predict=predict)
        return {kind: errors.mean() for kind, errors in found.items()}

    perfect = means(data, lambda batch: batch.next_state[:, -1] / 255)
    assert perfect["frame"] == 0 < perfect["copy_last_frame"]
    assert perfect["mean_frame"] > 0
    assert perfect["frame_guess"] == min(perfect["mean_frame"], perfect["copy_last_frame"])
    still = dataclasses.replace(data, frames=data.frames[:1].repeat(len(data.frames), 1, 1, 1))
    found = means(still, lambda batch: torch.ones(()))
    assert found["copy_last_frame"] == 0 < found["frame"]
    assert found["mean_frame"] == pytest.approx(0, abs=1e-10)


def test_what_chooses_weights_never_scores_them(ws):
    """X4."""
    parts = make_transitions(ws)
    episodes = [set(part.episodes.tolist()) for part in parts]
    assert sum(map(len, episodes)) == len(set.union(*episodes)) == 6 and all(episodes)


def test_untrained_encoders_are_those_that_the_models_begin_with(ws):
    data = make_transitions(ws).train
    plain, vit = (load_model(ws, name, 0) for name in ("random", "random_vit"))
    assert not any(p.requires_grad for p in fresh("random").parameters())
    for name in MODELS[:3]:
        first, other = (fresh_model(ws, name, seed, data).encoder for seed in (0, 1))
        assert digest(plain.encoder) == digest(first) != digest(other)
    torch.manual_seed(ws.config.seed)
    first = MaskedPrediction(ws.config.pixels, SHAPES).online
    assert digest(vit.encoder.vit) == digest(first.vit)


WANTED = {
    "enc_dec_s0": "vicreg_cov", "enc_dec_jepa_s0": "vicreg_cov", "jepa_s0": "vicreg_total",
    "decoder_jepa_s0": "mse_reconstruction", "heads_jepa_s0_reward_mlp": "lr",
    "heads_jepa_s0_larp": "grad_norm", "vjepa2_stage1_s0": "latent", "vjepa2_s0": "rollout",
}  # fmt: skip


@pytest.mark.parametrize("stage", WANTED)
def test_the_log_has_losses_and_terms(ws, stage):
    """LOG-2, LOG-3."""
    found = {name for row in ws.run.records(stage) for name in row}
    assert {"loss", "validation_loss", WANTED[stage]} <= found


def test_pictures_of_every_epoch_are_in_the_run_folder(ws):
    """FIG-1."""
    for folder in ("enc_dec", "enc_dec_jepa", "decoder_jepa"):
        found = {p.name for p in (ws.run.path / "decoder_plots" / folder).iterdir()}
        epochs = {int(name.split("_")[1]) for name in found}
        assert found == {f"epoch_{e}_sample_{n}_comparison.png" for e in epochs for n in range(5)}
        assert min(epochs) == 1


def test_every_model_is_drawn_on_the_same_samples(ws, monkeypatch):
    seen = []
    monkeypatch.setattr(makers, "film", lambda frames, _: seen.append(frames[0]) or b"")
    for seed, (name, epoch) in enumerate((("enc_dec", 1), ("enc_dec_jepa", 1), ("enc_dec", 2))):
        torch.manual_seed(seed)
        makers.draw(ws, name, epoch, load_model(ws, name, 0).predict_frame)
    one, two, other = torch.stack(seen).unflatten(0, (3, 5))
    assert torch.equal(one, two) and not torch.equal(two, other)


def test_the_decoder_learns_and_leaves_the_model_alone(ws):
    """MOD-10."""
    changes = under("decoder.optim", updates=120, lr=3e-3) | {"decoder__source": "online"}
    own = beside(ws, "longer", **changes)
    before = weights(own)
    reports = list(train(own, "decoder_jepa_s0"))
    assert weights(own) == before
    losses = [report.loss for report in reports]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])
    result = load_result(own, "decoder_jepa_s0")
    assert result["frames"]["frame"] == pytest.approx(result["best_loss"], rel=0.5)


def test_what_the_decoder_reads_is_a_setting(ws):
    found = [digest(load_decoder(ws, "jepa", 0))]
    for source in ("online", "target"):
        own = beside(ws, source, decoder__source=source)
        found.append(digest(load_decoder(own, "jepa", 0)))
    assert len(set(found)) == 3


@pytest.mark.parametrize("skip", [False, True])
def test_training_starts_from_a_loaded_file_and_may_be_skipped(ws, tmp_path, skip):
    loading = under("loading", path=str(ws.run.stage_folder("jepa_s0")), skip_training=skip)
    other = beside(ws, "other", tmp_path, **loading, optim__updates=3)
    assert (list(train(other, "jepa_s0")) == []) == skip
    assert (weights(other) == weights(ws)) == skip
    assert list(train(other, "enc_dec_s0"))  # another kind
    result, plain = (load_result(other, f"{name}_s0") for name in ("jepa", "enc_dec"))
    assert result["updates"] == (0 if skip else 3)
    # Other batches made these weights: no hash, and no claims.
    assert result["loaded"] and result["batches_sha256"] == ""
    assert not plain["loaded"] and plain["batches_sha256"]


def test_the_kind_of_loaded_weights_decides_which_model_takes_them(tmp_path):
    """TRAIN-6, F9."""
    stored = fresh("jepa")
    path, found = tmp_path / "weights.v1.safetensors", {}  # a name with a dot of its own
    for end in (".json", ".safetensors"):
        Path(f"{save_model(tmp_path, stored)}{end}").rename(path.with_suffix(end))
    for kind in ("jepa", "std_enc_dec"):
        config = tiny_config(loading__path=str(path), loading__kind=kind)
        model = fresh("jepa", seed=1)
        makers.start_from_file(tiny_workspace(tmp_path, config, kind), model)
        found[kind] = digest(model) == digest(stored)
    assert found == {"jepa": True, "std_enc_dec": False}


def test_a_bad_path_is_warned_about_and_trained_without(tmp_path):
    config = tiny_config(loading__path="/nowhere", loading__skip_training=True)
    with pytest.warns(UserWarning, match="cannot read .*; jepa is trained from its start"):
        assert list(train(tiny_workspace(tmp_path, config), "jepa_s0"))


def test_loaded_weights_are_scored_without_dropout(ws, tmp_path):
    path = str(ws.run.stage_folder("enc_dec_s0"))
    loading = under("loading", path=path, kind="std_enc_dec", skip_training=True)
    own = beside(ws, "loaded", tmp_path, **loading)
    assert list(train(own, "enc_dec_s0")) == []
    found, wanted = (load_result(one, "enc_dec_s0")["frames"] for one in (own, ws))
    assert found == pytest.approx(wanted)


def test_heads_score_every_model_alike_and_leave_it_unchanged(ws):
    found, facts = {}, {}
    for name in COMPARED:
        found[name], facts[name] = load_heads(ws, name, 0)
        ws.run.verify(f"heads_{name}_s0")
        ws.run.verify(f"{name}_s0")
    assert {fact["data_sha256"] for fact in facts.values()} == {load_transitions(ws).sha256}
    assert len({fact["heads"]["reward_mlp"]["initial_sha256"] for fact in facts.values()}) == 1
    assert {name for name in COMPARED if "larp" in found[name]} == {*MODELS} - {"enc_dec"}
    reward = make_transitions(ws).test.reward.numpy()
    assert all(np.array_equal(cell["reward"], reward) for cell in found.values())


def test_stored_heads_predict_what_was_scored(ws):
    cell, _ = load_heads(ws, "jepa", 0)
    features = training.encode(load_model(ws, "jepa", 0), make_transitions(ws).test)

    def build(meta):
        return RewardHead(from_dict(RewardConfig, meta["config"]), meta["width"])

    for kind in ("reward_mlp", "larp"):
        path = ws.run.stage_folder("heads_jepa_s0") / kind
        predicted = load_module(path, "reward head", build)(features.inputs(kind))
        assert np.allclose(predicted.numpy(), cell[kind], atol=1e-5)


def test_a_model_may_have_a_learning_rate_of_its_own(tmp_path):
    """TRAIN-2, F9."""
    config = tiny_config(jepa__lr=5e-3, enc_dec_lr=2e-3, optim__updates=2, optim__lr=1e-3)
    assert {r.lr for r in train(tiny_workspace(tmp_path, config), "jepa_s0")} == {5e-3}
    rates = {name: config.pixels.optim_of(name).lr for name in MODELS}
    assert rates == {"enc_dec": 2e-3, "enc_dec_jepa": 1e-3, "jepa": 5e-3, "vjepa2": 1e-3}
    shared = tiny_pixels(jepa__lr=0.0, enc_dec_lr=0.0, optim__lr=1e-3)
    assert {shared.optim_of(name).lr for name in MODELS} == {1e-3}
    one, other = tiny_config(), tiny_config(enc_dec_lr=1e-4)
    keys = {name: [key(pixel_stages(c)[f"{name}_s0"], c) for c in (one, other)] for name in MODELS}
    assert [name for name, (before, after) in keys.items() if before != after] == ["enc_dec"]


TWO_STAGES = {
    "pixels.encoder.kind": "vit",
    "pixels.vjepa2.stage1.optim.updates": 2,
    "pixels.vjepa2.stage2.optim.updates": 2,
}
SHORT = {"data__episodes": 5}
CONTEXT = [
    (r".*encoder\.(heads|head_dim|mlp_dim|(embedding_)?dropout)", {"pixels.encoder.kind": "vit"}),
    (r".*auxiliary\..*", {"pixels.jepa.target": "default"}),  # two views
    (r".*(vjepa2\..*|data\.sequence)", TWO_STAGES),
    (r".*(environment|data)\.(?!sequence).*", dotted(SHORT | {
        "environment__id": "hjepa/Drift-v0", "environment__max_steps": 12})),
    (r".*grid\..*", dotted({f"grid__{k}": v for k, v in TINY_GRID.items()}
                           | {"grid__episodes": 3, "grid__steps": 3})),
]  # fmt: skip
"""The mode in which a setting is changed, where it acts in one only."""
ELSEWHERE = re.compile(
    r"(?!pixels\.).*|.*log_every"  # test_config.py; below
    r"|.*\b(optim|ppo|reward|loading|seeds|method|path|read|checkpoint|checkpoint_every|source|(enc_dec_)?lr)\b.*"
)
"""Leaves that other tests below tests/ change: budgets and cadences here, heads, stages, PPO."""
BASE = tiny_config()
ACTING = [
    pytest.param(leaf, value, id=f"{leaf}={value}")
    for leaf in SETTINGS
    if not ELSEWHERE.fullmatch(leaf)
    for value in other_values(leaf, flatten(base_of(leaf, BASE, CONTEXT))[leaf])
]


def trained(module, data, optim):
    """Losses and weights of two updates."""
    fit = training.fit(module, data, None, optim, seed=0)
    return [report.loss for report in fit], digest(module)


def model_print(leaf, config):
    """Parameters, losses and weights after three updates, or why there are none."""
    name = "enc_dec_jepa" if re.search(r"pixels\.(en|de)coder", leaf) else "jepa"
    name = "enc_dec" if leaf.endswith("use_for_enc_dec") else name
    torch.manual_seed(0)
    try:
        model = build_pixel_model(name, config, SHAPES)
    except ConfigError as error:
        return str(error)
    losses = descend(model, torch.optim.SGD, 3, 0.1)
    return parameter_counts(model), repr(losses), digest(model)


def grid_print(config):
    """Data and weights after two updates of both models."""
    data = buffers.play(config.grid, 0)
    found = [data.sha256]
    for kind in KINDS:
        model = build_grid_model(kind, config.grid, data.size, 0)
        list(fit_grid(model, data, EpochsConfig(updates=2, batch=4), dict, seed=0))
        found.append(digest(model))
    return found


def stage1_print(config):
    torch.manual_seed(0)
    model = MaskedPrediction(config, SHAPES)
    return trained(model, tiny_transitions(), config.vjepa2.stage1.optim)


def stage2_print(config):
    """On the latents of an encoder as it was drawn."""
    torch.manual_seed(0)
    model = VJepa2(config, SHAPES)
    windows = encode_states(model, tiny_transitions(), config.data.sequence)
    return trained(model.world.requires_grad_(True), windows, config.vjepa2.stage2.optim)


def data_print(config):
    """What is collected, and how it is cut."""
    data = collect(config, 0)
    parts = data.split(config.data.validation_split, 0)
    return data.sha256, data.state_shape, [len(part) for part in parts]


@functools.cache
def fingerprint(leaf, config):
    """What a setting of `pixels` acts on."""
    prints = {"stage1": stage1_print, "stage2": stage2_print, "sequence": stage2_print}
    prints |= {"environment": data_print, "data": data_print, "grid": grid_print}
    parts = leaf.split(".")
    for part in (parts[-1], *parts[-2::-1]):
        if part in prints:
            return prints[part](config)
    return model_print(leaf, config)


@pytest.mark.parametrize(("leaf", "value"), ACTING)
def test_every_setting_acts(leaf, value):
    """F9, VJ-2 to VJ-11, ENV-1 to ENV-7, DATA-1, DATA-4, DATA-10."""
    base = base_of(leaf, BASE, CONTEXT)
    changed = base.override({leaf: value}, strict=False)
    assert fingerprint(leaf, changed.pixels) != fingerprint(leaf, base.pixels)


def test_a_loaded_data_set_names_every_setting_that_it_overrules(tmp_path):
    """DATA-6."""
    path = str(tmp_path / "data")
    made = skilled()
    data = collect(collected(**SHORT), 0)
    stored = {"method": "ppo", "max_steps": 12, "frame_skip": 0, "action_repeat": 2}
    data.meta |= stored | {"ppo": dataclasses.asdict(made.ppo) | {"n_envs": 3}}
    data.save(tmp_path / "data")

    def notes(**changes):
        return acquire(skilled(data__path=path, **changes), 0).meta["notes"]

    assert notes() == notes(ppo__n_envs=7) == [f"loaded from {path}"]
    for name, found in {
        "ppo__action_repeat": "action_repeat=2",
        "ppo__steps": "ppo.steps=128",
        "ppo__n_steps": "ppo.n_steps=64",
        "environment__max_steps": "max_steps=12",
    }.items():
        (_, note) = notes(**{name: 4})
        assert note == f"{path} was collected with {found}, the setting 4 has no effect"


SECTIONS = ("optim", "decoder.optim", "reward.optim", "vjepa2.stage1.optim", "vjepa2.stage2.optim",
            "grid.optim")  # fmt: skip
"""Every section of the type EpochsConfig."""


def marked(number):
    """Values that no other section has."""
    return EpochsConfig(
        epochs=2, updates=7, batch=4 + number, lr=1e-4 * (number + 1), weight_decay=0.02,
        schedule="plateau", clip=0.5, patience=1, delta=2e-3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """(sections asked for a budget, settings of all loops, workspace) of a tiny run."""
    asked, fitted = [], []
    optim, make = EpochsConfig.optim, Fit.__init__

    def ask(self, rows):
        asked.append((self, optim(self, rows)))
        return asked[-1][1]

    def fit(self, task, settings, **options):
        fitted.append(settings)
        make(self, task, settings, **options)

    changes = {f"pixels.{name}.{key}": value for number, name in enumerate(SECTIONS)
               for key, value in dataclasses.asdict(marked(number)).items()}  # fmt: skip
    grid = {f"pixels.grid.{key}": value for key, value in TINY_GRID.items()}
    logs = {"pixels.log_every": 2, "pixels.reward.log_every": 3, "pixels.grid.log_every": 2}
    config = tiny_config().override(TWO_STAGES | grid | logs | changes, strict=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochsConfig, "optim", ask)
        patch.setattr(Fit, "__init__", fit)
        ws = tiny_workspace(tmp_path_factory.mktemp("reached"), config)
        list(train(ws, "decoder_jepa_s0", "heads_jepa_s0", "vjepa2_s0"))
        list(ws.make(grid_stages(ws.config)["grid_s0"]))
    return asked, fitted, ws


@pytest.mark.parametrize("number", range(len(SECTIONS)), ids=SECTIONS)
def test_every_section_of_a_budget_reaches_its_own_loop(number, reached):
    """F9."""
    asked, fitted, _ = reached
    budgets = [found for section, found in asked if section == marked(number)]
    assert budgets
    whole = {dataclasses.replace(found, patience=0) for found in budgets}  # updates are counted
    assert whole & set(fitted)


def test_jepa_stops_on_its_full_validation_loss():
    """TRAIN-4, F9."""
    config = tiny_pixels(auxiliary__weight=3.0, optim__updates=0, optim__epochs=2, optim__batch=16)
    train, validation = tiny_transitions().split(0.3, 0)
    torch.manual_seed(0)
    model = build_pixel_model("jepa", config, train)
    fit = training.fit(model, train, validation, config.optim, seed=0)
    checks = [report.validation for report in fit if report.validation]
    assert len(checks) == 2
    for found in checks:
        whole = found["prediction"] + 3.0 * found["vicreg_total"]
        assert found["loss"] == pytest.approx(whole, rel=1e-5)
        assert found["vicreg_total"] > 0 and found["loss"] > found["prediction"]
    assert fit.best_loss == min(found["loss"] for found in checks)


def test_the_log_cadences_are_settings(reached):
    """TRAIN-2, MOD-11, GRID-5."""
    for stage in ("jepa_s0", "decoder_jepa_s0", "vjepa2_stage1_s0", "heads_jepa_s0_reward_mlp",
                  "grid_s0"):  # fmt: skip
        every = 3 if "mlp" in stage else 2
        logged = {row["step"] for row in reached[2].run.records(stage) if "loss" in row}
        assert {*range(every, 7, every)} <= logged
