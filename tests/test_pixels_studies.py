"""Studies beside a run: labels, JEPA's variants, auxiliary losses side by side (MET-3)."""

import math

import numpy as np
import pytest
import torch
from tiny_pixels import tiny_config, tiny_transitions, tiny_workspace

from hjepa_lib.__main__ import main
from hjepa_lib.config.pixels import AuxiliaryConfig
from hjepa_lib.files import read_json
from hjepa_lib.pixels import figures, makers, stages, studies
from hjepa_lib.pixels.heads import HEADS

pytestmark = pytest.mark.filterwarnings("ignore:the gradient norm is")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(run, what its study of labels found)."""
    root = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        ws = tiny_workspace(root)
        data = tiny_transitions(12)
        data.reward[:] = torch.arange(len(data)) % 7
        stage = stages.pixel_stages(ws.config)[stages.DATA]
        with ws.run.stage(stage.name, stage.folder, ws.key(stage)) as folder:
            data.save(folder)
        yield ws, studies.load_labels(ws), data


def test_labels_are_counted_for_every_model_head_and_label(labelled):
    ws, found, _ = labelled
    cells = {(r["pays"], r["model"], r["head"], r["labels"]) for r in found["rows"]}
    assert len(cells) == 2 * len(studies.STUDIED) * len(HEADS) * 2 == len(found["rows"])
    assert {r["labels"] for r in found["rows"]} == set(ws.config.pixels.reward.labels)
    assert all(r["r2"] is not None for r in found["rows"])
    assert len(found["sentences"]) == 2 * 2 * len(studies.STUDIED) * 2
    assert any(text.startswith("present state, vjepa2, 20 labels: R2 ") for text in
               found["sentences"])  # fmt: skip
    section = read_json(ws.run.path / "sections/25-labels.json")
    assert [*section["lists"].values()] == [found["sentences"]]
    assert len(figures.label_curves(found["rows"], {"state and action": 0.5}).axes) == 2


def test_the_control_pays_for_the_present_state_alone(labelled):
    """X13: the label of a row is the reward of the row before, of the same episode."""
    _, _, data = labelled
    _, kept, (reward, before) = studies._labelled(data)
    assert len(kept) == len(data) - len(data.episodes)
    assert torch.equal(reward, data.reward[kept]) and torch.equal(before, data.reward[kept - 1])
    assert torch.equal(data.episode[kept], data.episode[kept - 1])


def test_its_key_knows_the_heads_and_the_weights_it_starts_from(tmp_path):
    """I2, I8."""

    names = iter("abcdef")

    def key(**changes):
        ws = tiny_workspace(tmp_path, tiny_config(**changes), next(names))
        return ws.key(studies.label_study(ws))

    plain = key()
    for changes in ({"reward__labels": (30,)}, {"jepa__ema_decay": 0.5}, {"seeds": 2}):
        assert key(**changes) != plain
    assert key(log_every=3) == plain


def test_losses_run_into_their_own_folders_and_are_ranked(tmp_path, monkeypatch):
    """On the same data; a loss that cannot train is reported and ends no other."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(makers, "acquire", lambda *_: tiny_transitions())
    losses = {kind: AuxiliaryConfig(kind) for kind in ("vicreg", "dino", "none")}
    config = tiny_config(optim__updates=3, jepa__target="default", encoder__kind="cnn")
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
