import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from tiny import refused, tiny_config
from tiny_runs import Said, cut

from hjepa_lib.config import ConfigError, PlanningConfig, leaves, profile, read_yaml
from hjepa_lib.config.fields import gone_from
from hjepa_lib.evaluation import Case, played_cap, results
from hjepa_lib.evaluation.episodes import LatentPolicy, run_episodes
from hjepa_lib.files import FileError, plain, read_json
from hjepa_lib.runs import notebooks, report, score, stages
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.report import build_summary, keep_tuned, read_sections, verdict
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import CONFIGS, STUDY
from hjepa_lib.workbench.rows import load_rows
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.worlds.trials import load_trials

CAP = 1.8365


@pytest.fixture(scope="module")
def rows(ws):
    agent = stages.load_trained(ws)
    return [score.play(ws, agent, case).row for case in score.cases_of(ws.config)]


def test_rows_are_valid_summary_entries(ws, rows):
    """F12, F15, Q10."""
    rows = json.loads(json.dumps(build_summary(ws.run, plain(rows)), allow_nan=False))["results"]
    assert len(rows) == len({(row["method"], row["cost"]) for row in rows}) == 7
    for row in rows:
        named = ("method", "cost", "protocol", "layouts", "dynamics", "budget", "split", "planner")
        assert {*named, "weights", "data", "seed", "version"} <= row.keys()
        assert row["success_rate"] == row["successes"] / row["n"]
        assert row["ci95"][0] <= row["success_rate"] <= row["ci95"][1] <= 1
        assert row["n"] == ws.config.evaluation.trials
        assert row["trials_hash"] == load_trials("p1", "test", 3).sha256
        planned = row["method"] in ("flat", "l1+l2")
        measured = ("flops_per_step", "parameters", "train_seconds", "probe_px_encoder")
        for name in (*measured, "latency_single_episode"):
            assert (row[name] is not None) == planned, name
        assert (row["planner"]["action_cap"], row["planner"]["steps"]) == (CAP, 6)
        if planned:  # the farthest plan's, Q9
            assert row["init_plan_reach"] == {"flat": 5, "l1+l2": 12}[row["method"]]
    cells = read_yaml(CONFIGS / "study.yaml", "experiment")["cells"]
    headline = [one for one in cells if one["group"] in ("p1", "bar", "p2_heldout", "p2_seen")]
    assert len(headline) == 6 and all(one["latency"] for one in headline)  # Q10


def test_parameters_and_training_time_count_the_parts_that_were_used(ws, rows):
    agent = stages.load_trained(ws)
    sizes = {"l1": agent.level1, "l2": agent.level2, "distance": agent.distance}
    for row in rows:
        if row["method"] in ("flat", "l1+l2"):
            used = Case.of(ws.config, row["method"], row["cost"]).stages
            assert row["parameters"] == sum(score.count_all(sizes[name]) for name in used)
            needed = {*used, *["distance"] * ("l2" in used)}  # level 2 learns where it may be
            seconds = sum(ws.run.manifest["stages"][name]["seconds"] for name in needed)
            assert row["train_seconds"] == pytest.approx(seconds)


def test_another_question_is_another_file(ws, rows):
    """I8."""
    config = ws.config
    planning = dataclasses.replace(config.planning, replan=1)
    changes = [
        {}, {"cost": "distance"}, {"split": "validation"}, {"trials": 2}, {"planning": planning},
        {"budget": 0.5}, {"dynamics": "blocked"},
    ]  # fmt: skip
    others = ["seed=1", "evaluation.steps=5", "evaluation.protocol=p2_seen,planning.action_cap=0"]
    cases = [Case.of(config, "flat", **{"cost": "latent"} | one) for one in changes]
    cases += [Case.of(config.override(one), "flat", "latent") for one in others]
    assert len({case.name for case in cases}) == len({case.digest for case in cases}) == len(cases)
    unused = config.override("planning.hierarchy.replan=1,level2.z_dim=3")
    assert Case.of(unused, "flat", "latent").name == cases[0].name
    agent = stages.load_trained(ws)
    before = {path: path.stat().st_mtime_ns for path in (ws.run.path / "results").iterdir()}
    score.play(ws, agent, cases[0])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = score.play(ws, agent, Case.of(config, "flat", "latent", split="validation", trials=2))
    assert len(found.success) == 2 and len(score.play(ws, agent, cases[0]).success) == 3
    assert found.header["weights"] == {"l1": {"from": "this run", "key": ws.run.key("l1")}}
    other = Workspace("test", Run.create("taken", config, ws.run.path.parent))
    row = score.play(other, stages.load_trained(other, ("l1",)), cases[0]).row
    assert not other.run.done("data") and row["data"]["hash"] == found.row["data"]["hash"]


def test_round_trip_of_one_result(agent, config, tmp_path):
    config = config.override("planning.cost=latent")
    case = Case.of(config, "l1+l2", "distance", split="validation", trials=3)
    policy = LatentPolicy(agent, "l1+l2", case.planning)
    outcome = run_episodes(policy, case.tasks, "bounce", 6, CAP, 0)
    path = results.save_result(tmp_path, case, outcome, {"note": None})
    found = results.load_result(path)
    # every leaf that was used, with the case's cost and cap
    used = dataclasses.asdict(dataclasses.replace(config.planning, cost="distance"))
    unused = ("flat", "level3", "idm_steps", "ahead", "truth")
    used = {name: value for name, value in used.items() if name not in unused}
    # and those that are gone, so that digests of before stay
    gone = {name: one for name, one in gone_from(PlanningConfig).items() if name[:4] == "hier"}
    fixed = gone | {"action_cap": CAP, "steps": 6, "seed": 0}
    assert case.settings == leaves(used) | fixed and len(gone) == 6
    assert found.header == case.header | {"case": case.digest, "note": None}
    for name in ("positions", "actions", "goal", "layout", "oracle", "lost"):
        np.testing.assert_array_equal(found.arrays[name], getattr(outcome, name))
    for name, values in outcome.seen.items():
        np.testing.assert_allclose(found.arrays[f"plan_{name}"], values, rtol=1e-6)
    for header, message in (
        ({}, r"x\.npz is no result file: it has no header"),
        ({"header": "{}"}, "a result of an earlier version"),
    ):
        np.savez(tmp_path / "x.npz", positions=np.zeros(3), **header)
        refused(FileError, message, results.load_result, tmp_path / "x.npz")


def test_protocols_fix_their_caps():
    def cap(protocol, wanted=0.0):
        return played_cap(tiny_config(evaluation__protocol=protocol), wanted)

    assert cap("p1") == cap("p1", CAP) == CAP
    for name in ("p1", "p3_dim"):
        refused(ConfigError, f"{name} fixes planning", cap, name, 2.0)
    for name in ("p2_seen", "p2_heldout"):
        assert (cap(name), cap(name, CAP)) == (2.45, CAP)


def test_level1_is_the_same_with_and_without_level2(trained, config, workspace_of):
    ws = workspace_of(config.override("level2.disable_l2=true,level2.train=joint", strict=False))
    for stage in ("l1", "distance"):
        list(stages.train(ws, stage))
    for name in ("model", "last", "probe", "distance"):
        found, wanted = (path / f"l1/{name}.safetensors" for path in (ws.run.path, trained))
        assert found.read_bytes() == wanted.read_bytes()
    assert list(stages.train(ws, "l2")) == []
    assert stages.load_trained(ws).level2 is None


def test_interrupted_stages_resume_to_the_same_run(trained, config, workspace_of):
    """PL8, EB5, PL2, PL6."""
    ws, whole = workspace_of(config), Run.at(trained)
    torch.manual_seed(99)
    np.random.seed(99)
    data = stages.make_data(ws)
    assert data.hash() == json.loads((trained / "data" / "meta.json").read_text())["hash"]
    for stage in ("l1", "distance", "l2"):
        cut(stages.train(ws, stage), 3)  # one update after the checkpoint
        assert not ws.run.done(stage)
        assert len(list(stages.train(ws, stage))) == 2
        assert ws.run.records(stage) == whole.records(stage)  # each step once
        steps = [row["step"] for row in ws.run.records(stage)]
        assert len(steps) == len(set(steps))
        assert list(stages.train(ws, stage)) == []  # done: nothing runs twice
    names = ("model", "last", "probe", "distance")
    for name in (*(f"l1/{one}.safetensors" for one in names), "l2/model.safetensors"):
        assert (ws.run.path / name).read_bytes() == (trained / name).read_bytes(), name


ROW = {"cost": "latent", "success_rate": 0.5, "path_efficiency": 0.4, "flops_per_step": 1e6}


def test_best_is_by_success_then_path_then_compute():
    rows = [
        {"method": "oracle", **ROW, "success_rate": 1.0, "flops_per_step": None},
        {"method": "a", **ROW},
        {"method": "b", **ROW, "flops_per_step": 1e5},
    ]
    assert score.best(rows) == ("b", "latent")
    assert score.best([*rows, {"method": "c", **ROW, "path_efficiency": 0.5}])[0] == "c"
    assert score.best([*rows, {"method": "d", **ROW, "success_rate": 0.6}])[0] == "d"
    refused(RunError, "no result of a planner", score.best, rows[:1])


def test_results_are_found_taken_over_or_played(trained, root, monkeypatch):
    monkeypatch.setattr("hjepa_lib.runs.run.repository", lambda: root / "nowhere")
    shutil.copytree(trained, root / "trained")
    config = tiny_config(evaluation__latency=False)
    first = Workspace("05_compare", Run.create("first", config))
    cases = score.cases_of(config)
    played = score.find_results(first, cases)
    stages = [f"results/{case.name}" for case in cases]
    assert len(list((first.run.path / "results").glob("*.npz"))) == 7
    assert {first.origin(stage) for stage in stages} == {"this run"}
    assert score.tuned_pair(config) == []  # nobody tuned these
    monkeypatch.setattr(score, "profile", lambda _: config)
    score.find_results(first, score.tuned_pair(config), "tuned")
    page = notebooks.finish(first.run, Said()).read_text()
    summary = read_json(first.run.path / "summary.json")  # Q5: it holds what chapter 05 says
    floor = next(row for row in summary["results"] if row["method"] == "random")
    keep_tuned(first.run, [*summary["results"], floor | {"dynamics": "blocked"}])
    beside = read_sections(first.run)["tuned"]["results"]  # of a control nobody was tuned for
    assert {row["method"] for row in beside[:2]} == {"random", "oracle"} and len(beside) == 4
    assert "verdict, flat as validation trials chose it, latent cost: undecided; L1+L2 " in page
    monkeypatch.setattr(score, "run_episodes", None)  # nothing is played from here on
    second = Workspace("05_compare", Run.create("second", config))
    again = score.find_results(second, cases)
    assert {second.origin(stage) for stage in stages} == {"first"}
    for one, two in zip(played, again, strict=True):
        assert one.header == two.header
    with pytest.raises(TypeError):
        score.find_results(second, score.cases_of(config, trials=2))
    second.run.note(stages[0], None, "stages")
    assert len(report.played(second.run)) == 6  # what was begun again is no result


def test_the_hierarchy_is_judged_against_flat_tuned_at_equal_compute():
    """Q5."""
    study = read_experiment(STUDY)
    units = {unit.cell.name: unit for unit in study.units}
    flat, two = score.tuned_pair(profile("laptop"))
    wanted = [units[name].case for name in ("bar_flat_latent", "bar_l1l2_latent")]
    for found, case in zip((flat, two), wanted, strict=True):
        assert found.settings | {"seed": 0} == case.settings | {"seed": 0}
    rows = load_rows(study.table).set_index("cell")["flops_per_step"]
    spent = [rows[name].mean() for name in ("bar_flat_latent", "bar_l1l2_latent")]
    assert abs(spent[0] / spent[1] - 1) < 0.05
    assert score.tuned_pair(profile("laptop", 2).override("planning.cost=latent,device=cpu"))
    # Nobody chose a flat planner elsewhere.
    others = ("data.source=maze", "evaluation.protocol=p2_seen", "preset=local", "level2.z_dim=4")
    others += ("level2.disable_l2=true", "planning.flat.samples=256", "level1.optim.updates=9")
    for change in others:
        assert score.tuned_pair(profile("laptop").override(change)) == [], change


@pytest.mark.parametrize(("flops", "said"), [(1.1, "L1+L2 better;"), (1.2, "undecided at unequal")])
def test_nobody_is_better_at_more_compute(flops, said):
    one, two = (
        results.Result(ROW | {"n": 9, "flops_per_step": spent}, {"trial_success": np.full(9, won)})
        for spent, won in ((1.0, 0), (flops, 1))
    )
    assert f"latent cost: {said}" in verdict("a pair", one, two)
