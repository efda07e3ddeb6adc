"""Studies beside a run: look-ahead, JEPA's variants, auxiliary losses side by side (MET-3)."""

import math

import numpy as np
import pytest
import torch
from tiny import digest
from tiny_pixels import tiny_config, tiny_transitions, tiny_workspace

from hjepa_lib.__main__ import main
from hjepa_lib.config import flatten, profile
from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.files import read_json
from hjepa_lib.pixels import compare, figures, makers, studies
from hjepa_lib.pixels.stages import load_heads, load_model, make_transitions
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:the gradient norm is")


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """(run, what its look-ahead study found)."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        patch.setattr(compare, "RESAMPLES", 50)
        ws = tiny_workspace(root)
        list(ws.make(studies.look_ahead(ws)))
        yield ws, studies.load_look_ahead(ws)


def world(ws, name):
    return Workspace("test", Run.open(f"tiny-variants/lookahead-{name}", ws.run.path.parent))


def test_look_ahead_has_runs_of_its_own_and_leaves_the_run_alone(looked):
    ws, found = looked
    assert ws.run.manifest["stages"].keys() == {"pixel_data", "lookahead"}
    ws.run.verify("pixel_data")
    assert list(ws.make(studies.look_ahead(ws))) == []  # done
    assert set(found) == set(studies.WORLDS)
    for report in found.values():
        assert {one["model"] for one in report["heads"]} == set(studies.STUDIED)
        held = {(one["model"], one["against"]) for one in report["claims"]}
        for name in studies.STUDIED:
            ahead = name != "random"
            assert ((name, "larp_copy") in held) == ((name, "reward_mlp") in held) == ahead
        assert ("jepa", "random encoder") in held and ("vjepa2", "random ViT encoder") not in held
    section = read_json(ws.run.path / "sections/25-lookahead.json")
    assert set(section["lists"]) == set(studies.WORLDS.values())


def test_the_reward_alone_differs_between_its_worlds(looked):
    """Base models are trained once, by this study's budget; the control takes them as they are."""
    ws, _ = looked
    drift, push = (world(ws, name) for name in studies.WORLDS)
    one, two = (make_transitions(side)[0] for side in (drift, push))
    for name in ("frames", "now", "after", "origin", "action", "episode"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(one.reward, two.reward)
    for name in studies.STUDIED:
        assert digest(load_model(drift, name, 0)) == digest(load_model(push, name, 0))
        assert push.origin(f"{name}_s0") == drift.run.name
        (_, seen), (_, held) = (load_heads(side, name, 0) for side in (drift, push))
        assert seen["data_sha256"] != held["data_sha256"]
    assert drift.config == studies.study_config(ws.config, "drift")


def test_its_key_knows_the_weights_it_starts_from(tmp_path):
    """I2, I8: by their content, wherever they come from."""
    path, plain = tmp_path / "weights.safetensors", tiny_workspace(tmp_path)
    settings = ("loading__path", "vjepa2__stage2__checkpoint")
    sides = [tiny_workspace(tmp_path, tiny_config(**{one: str(path)}), one) for one in settings]

    def keys():
        return [ws.key(studies.look_ahead(ws)) for ws in (plain, *sides)]

    path.write_text("one")
    first = keys()
    path.write_text("other")
    second = keys()
    assert first[0] == second[0] and keys() == second
    assert len({*first, *second}) == 5


def test_the_budget_of_the_study_is_cut_and_never_raised():
    config = profile("laptop").override("pixels.optim.updates=90,pixels.environment.id=x/Other-v0")
    study = studies.study_config(config, "push")
    assert study.pixels.environment.id == "hjepa/Push-v0"
    assert study.pixels.optim.updates == 90
    assert study.pixels.vjepa2.stage1.optim.updates == config.pixels.reward.study_updates
    free = studies.study_config(config.override("pixels.reward.study_updates=0"), "push")
    assert free.pixels.vjepa2.stage1.optim.updates == config.pixels.vjepa2.stage1.optim.updates
    assert studies.study_config(profile("full"), "drift").pixels.optim.updates == 0  # in epochs
    for field, leaf in (("seeds", "seeds"), ("study_transitions", "data.transitions")):
        value = getattr(config.pixels.reward, field) + 7
        other = studies.study_config(config.override({f"pixels.reward.{field}": value}), "drift")
        assert flatten(other)[f"pixels.{leaf}"] == value


def test_variants_start_alike_and_end_apart(tmp_path):
    rows = list(studies.try_variants(tiny_workspace(tmp_path), 3))
    assert [(row["target"], row["auxiliary"]) for row in rows] == list(studies.VARIANTS)
    assert len({row["std"] for row in rows}) == len(rows)
    assert all(row["std"] > 0 and 0 <= row["health"] <= 1 for row in rows)
    assert len(figures.variant_bars(rows, 8).axes) == 4


def test_losses_run_into_their_own_folders_and_are_ranked(tmp_path, monkeypatch):
    """On the same data; a loss that cannot train is reported and ends no other."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(makers, "acquire", lambda *_: tiny_transitions())
    losses = {kind: AuxiliaryConfig(kind) for kind in ("vicreg", "dino", "none")}
    config = tiny_config(optim__updates=3)
    table = studies.run_losses("losses", losses, config)
    *rows, last = table.to_dict("records")
    assert [row["rank"] for row in rows] == [1, 2]
    assert math.isnan(last["rank"]) and "through the auxiliary loss alone" in last["status"]
    for row in rows:
        values = [v for k, v in row.items() if k.startswith("downstream/")]
        assert row["status"] == "ok" and len(values) == 2 and np.isfinite(values).all()
        manifest = read_json(tmp_path / "losses" / row["name"] / "manifest.json")
        assert manifest["config"]["pixels"]["optim"]["updates"] == 3
        assert manifest["config"]["pixels"]["auxiliary"]["kind"] == row["type"]
    assert read_json(tmp_path / "losses/summary.json")["rows"][:2] == rows
    text = (tmp_path / "losses/summary.txt").read_text().splitlines()
    assert len(text) == 4 and "downstream/reconstruction_mse" in text[0]
    assert table.equals(studies.run_losses("losses", losses, config))


def test_rows_without_finite_numbers_are_ranked_last():
    """Published summaries of the seed's branch rank nothing but infinities and zeros."""
    rows = [
        {"name": "a", "downstream/x": 2.0, "downstream/y": 1},
        {"name": "b", "downstream/x": math.inf, "downstream/y": 0}, {"name": "c"},
        {"name": "d", "downstream/x": 1.0, "downstream/y": 0.5},
        {"name": "e", "downstream/x": 2.0, "downstream/y": 1},
    ]  # fmt: skip
    rows = [{"type": "vicreg", "status": ""} | row for row in rows]
    ranked = studies.rank_rows(rows)
    assert [*ranked["name"]] == [*"daebc"]
    assert [*ranked["rank"].fillna(0)] == [1, 2, 2, 0, 0]
    text = studies.summary_text(ranked)
    assert "inf" not in text and "nan" not in text.lower() and " - " in text


def test_the_command_ranks_what_it_is_given(tmp_path, monkeypatch, capsys):
    """A list from a file, or the three losses; a wrong list is one sentence."""
    given, path = [], tmp_path / "losses.yaml"

    def run_losses(study, losses, config):
        given.append((study, list(losses), config.profile))
        row = {"type": "x", "status": "", "downstream/x": 1.0}
        return studies.rank_rows([row | {"name": name} for name in losses])

    monkeypatch.setattr(studies, "run_losses", run_losses)
    path.write_text("- {name: weak, type: vicreg, params: {cov: 0.01}}\n- {name: b, type: dino}\n")
    assert main(["auxiliary", str(path), "--profile", "smoke", "--name", "mine"]) == 0
    assert main(["auxiliary", "--profile", "smoke"]) == 0
    assert given == [("mine", ["weak", "b"], "smoke"),
                     ("auxiliary", ["vicreg", "barlow_twins", "dino"], "smoke")]  # fmt: skip
    assert "downstream/x" in capsys.readouterr().out
    odd, empty = "is {name, type, params} with a name of its own", "must hold a list of auxiliary"
    for text, message in (
        ("[1", "is not valid YAML"), ("a: 1", empty), ("[]", empty), ("[1, 2]", odd),
        ("- {name: a}", odd), ("- {name: a, type: vicreg, weight: 1}", odd),
        ("[{name: a, type: dino}, {name: a, type: dino}]", odd),
        ("- {name: a, type: gan}", "kind must be one of none, vicreg"),
        ("- {name: a, type: vicreg, params: {covv: 1}}", "unknown key 'covv'"),
    ):  # fmt: skip
        path.write_text(text)
        assert main(["auxiliary", str(path), "--profile", "smoke"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main(["auxiliary", str(tmp_path / "none.yaml"), "--profile", "smoke"]) == 2
    assert "does not exist" in capsys.readouterr().err
