"""Policies without a world model, and the search one step ahead: training, rows, compute.

Resuming: test_training.py.
"""

import numpy as np
import pytest
import torch
from tiny import digest, make_policy, seeded, tiny_config, tiny_data

from hjepa_lib.config import ConfigError
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import ClonedPolicy, run_episodes
from hjepa_lib.evaluation.openloop import wall_leak
from hjepa_lib.files import FileError
from hjepa_lib.models.checkpoint import load_policy, save_policy
from hjepa_lib.runs import score, stages
from hjepa_lib.runs.keys import core_stages, key, wanted_stages
from hjepa_lib.training import policies as training
from hjepa_lib.training.policies import draw_pairs, train_policy
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.trials import load_trials
from hjepa_lib.worlds.two_rooms import step


def policy_of(**changes):
    return make_policy(tiny_config(**{f"policies__{key}": one for key, one in changes.items()}))


def test_goals_are_later_states_of_the_same_trajectory():
    """No state is one without an action; half of the rows are told no steps."""
    lengths = torch.tensor([2, 5, 30])
    nothing = torch.zeros(37, 2)
    data = Trajectories(nothing, nothing, lengths, torch.zeros(3, 2, dtype=torch.int16))
    now, goal, steps = draw_pairs(data, 4000, seeded())
    place = torch.arange(3).repeat_interleave(lengths)
    assert torch.equal(place[now], place[goal])
    assert torch.equal(steps[2000:], (goal - now)[2000:]) and not steps[:2000].any()
    assert (goal > now).all() and set(now.tolist()) == {*range(36)} - {1, 6}
    early = now == 7  # 29 later states
    for part, few in ((slice(2000), 0.17), (slice(2000, None), 0.53)):  # 5 of 29; log 6 / log 30
        share = ((goal - now)[part][early[part]] <= 5).float().mean()
        assert abs(share - few) < 0.15


def test_training_learns_the_way_to_the_goal(monkeypatch):
    """Of straight walks in four directions the action is the direction of the goal."""
    monkeypatch.setattr(training, "VALIDATION_PAIRS", 32)
    heading = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    walk = 20 + 1.5 * heading[:, None] * torch.arange(8.0)[:, None]  # (4, 8, 2)
    actions = 1.5 * heading.repeat_interleave(8, 0)
    layout = torch.tensor([[32, 10]] * 4, dtype=torch.int16)
    data = Trajectories(walk.flatten(0, 1), actions, torch.full((4,), 8), layout)
    model = policy_of(optim__updates=60, optim__batch=32, optim__validate_every=60, optim__lr=3e-3)
    reports = list(train_policy(model, data, data, seed=0))
    first, last = reports[0], reports[-1]
    assert set(last.terms) == {"gcbc", "idm"} and set(last.validation) == {"gcbc", "idm", "loss"}
    assert first.loss == pytest.approx(sum(first.terms.values()) / 2)
    assert max(last.validation.values()) < 0.3 * min(first.terms.values())


def test_it_is_stored_with_all_that_it_needs(tmp_path):
    model = policy_of(encoder="impala")
    save_policy(tmp_path, model)
    loaded = load_policy(tmp_path)
    assert digest(loaded) == digest(model) and loaded.config == model.config
    frames = torch.randint(0, 256, (3, 2, 2, 65, 65), generator=seeded(), dtype=torch.uint8)
    now, goal = frames.unbind(1)
    assert torch.equal(loaded.act(now, goal, 4), model.eval().act(now, goal, 4))
    assert loaded.act(now, goal).shape == (3, 2)
    for other in (loaded.act(now, goal), loaded.act(now, goal, 5), loaded.act(goal, now, 4)):
        assert not torch.equal(loaded.act(now, goal, 4), other)
    with pytest.raises(ValueError, match="frames must be uint8"):
        loaded.act(now.float(), goal)
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(FileError, match="does not describe a policy"):
        load_policy(tmp_path)


def test_it_plays_within_the_cap_and_counts_its_one_pass():
    trials = load_trials("p1", "validation", 5)
    policy = ClonedPolicy(policy_of(), 0.01, 4)  # tiny: the cap binds
    outcome = run_episodes(policy, trials, "slide", 3, 0.01, 0)
    norms = np.linalg.norm(outcome.actions, axis=-1)
    assert norms.max() <= 0.01 * (1 + 1e-4) and norms.min() > 0.009
    alone = run_episodes(policy, trials.pick([2]), "slide", 3, 0.01, 0)
    np.testing.assert_allclose(alone.positions[0], outcome.positions[2], atol=1e-5)
    large = ClonedPolicy(policy_of(hidden=32), 1.0)
    # 18 x 16 + 16 x 16 + 16 x 2 weights against 18 x 32 + 32 x 32 + 32 x 2, two FLOPs each
    assert large.flops_per_step - policy.flops_per_step == 2 * (1664 - 576)


def test_rows_on_demand(ws, capsys):
    """`evaluation.rows` adds rows to the table, and trains what they need; nothing else moves."""
    plain, config = tiny_config(), tiny_config(evaluation__rows="usual+gcbc+idm+hilp")
    added = ["gcbc", "idm", "hilp"]
    names = [one.name for one in wanted_stages(config)]
    assert names == [*(one.name for one in wanted_stages(plain)), "policies"]
    assert "policies" not in [s.name for s in wanted_stages(tiny_config(evaluation__rows="usual"))]
    usual = [case.digest for case in score.cases_of(plain)]
    cases = {case.method: case for case in score.cases_of(config) if case.method in added}
    assert [one.digest for one in score.cases_of(config) if one.method not in added] == usual
    assert {name: case.stages for name, case in cases.items()} == {
        "gcbc": ("policies",), "idm": ("policies",), "hilp": ("l1", "distance"),
    }  # fmt: skip
    ws.config = config
    for found in score.find_results(ws, cases.values()):
        row = found.row
        assert row["flops_per_step"] > 0 and row["replan"] == 1 and row["parameters"] > 0
        assert set(row["weights"]) == set(cases[row["method"]].stages)
        assert (row["model_transitions_per_step"] > 0) == (row["method"] == "hilp")
    assert "policies: no run holds it" in capsys.readouterr().out
    assert ws.run.records("policies")[-1]["step"] == config.policies.optim.updates
    trained = stages.load_trained(ws)  # what plans is loaded as before
    assert trained.level2 is not None


def test_settings_of_a_policy_move_its_own_rows_alone():
    def digests(**changes):
        config = tiny_config(evaluation__rows="usual+gcbc+idm+hilp", **changes)
        return {f"{one.method} {one.cost}": one.digest for one in score.cases_of(config)}

    def moved(**changes):
        before = digests()
        return {name for name, now in digests(**changes).items() if now != before[name]}

    assert moved(planning__idm_steps=3) == {"idm none"}
    assert moved(planning__replan=1) == {
        f"{method} {cost}" for method in ("flat", "l1+l2") for cost in score.COSTS
    }  # one step ahead there is nothing to replan
    one = Case.of(tiny_config(), "hilp", "distance")
    assert (one.planner, one.planning.flat.horizon, one.planning.replan) == ("flat", 1, 1)
    plain, other = tiny_config(), tiny_config(policies__hidden=24)
    names = [n for n, s in core_stages(plain).items() if key(s, plain) != key(s, other)]
    assert names == ["policies"]
    with pytest.raises(ConfigError, match="begin with usual"):
        tiny_config(evaluation__rows="gcbc")


def test_cells_of_an_experiment_name_them():
    about = {"protocol": "p1", "trials": 2, "steps": 4, "cost": "distance", "model": "base"}
    tree = {"name": "x", "base": {"profile": "smoke"}, "models": {"base": {}}, "defaults": about}
    cells = [
        {"name": "a", "method": "gcbc"},
        {"name": "b", "method": "idm", "grid": {"idm_steps": [4, 8]}},
        {"name": "c", "method": "hilp"},
    ]
    units = read_experiment(tree | {"cells": cells}).units
    assert [one.case.planning.idm_steps for one in units[1:3]] == [4, 8]
    assert [one.case.cost for one in units] == ["none", "none", "none", "distance"]
    shaped = units[0].training()
    assert {name.split(".")[0] for name in shaped} == {"data", "policies", "precision"}
    with pytest.raises(ConfigError, match="cost=latent does not go with method=gcbc"):
        read_experiment(tree | {"cells": [cells[0] | {"cost": "latent"}]})
    with pytest.raises(ConfigError, match="unknown model"):
        read_experiment(tree | {"cells": [cells[0] | {"model": "other"}]})


class Seer:
    """Stands for an agent: sees the dot's place, and imagines with or without walls."""

    seed, device = 0, torch.device("cpu")

    def __init__(self, walls):
        self.level1, self.walls = self, walls

    def encode(self, frames):
        dot, axis = frames[:, 0].float(), torch.arange(65.0)
        places = torch.stack([(dot.sum(1) * axis).sum(1), (dot.sum(2) * axis).sum(1)], 1)
        return places / dot.sum((1, 2))[:, None]

    def probe(self, latents):
        return latents

    def scene(self, frames):
        return None

    def rollout_members(self, start, pushes, scene):
        places, layout = [start], Layout.fixed(len(start))
        for push in pushes.unbind(1):
            here = places[-1]
            places.append(step(here, push, layout, "blocked") if self.walls else here + push)
        return torch.stack(places, 1)[None]


def test_the_leak_is_that_of_the_walls():
    """A model without walls leaks always, one that knows them never; free pushes count apart."""
    data = tiny_data()
    blind, seer = (wall_leak(Seer(walls), data, 1.8, 600) for walls in (False, True))
    assert (blind["leak"], seer["leak"]) == (1.0, 0.0)
    assert blind["stopped"] == seer["stopped"] > 50
    assert blind["low"] > 0.9 and seer["high"] < 0.1
    # A dot seen 0.1 px aside may pass a lip that it does not pass in truth, and few start in one.
    assert blind["free_off"] < 0.1 and seer["free_off"] < 0.02


def test_the_leak_of_a_run_is_a_row(ws):
    (row,) = score.leak_rows(ws, {"pushes": 64})
    assert row["pushes"] == 64 and row["world"] == "generated" and 0 <= row["leak"] <= 1
