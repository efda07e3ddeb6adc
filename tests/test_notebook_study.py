import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_runs
import torch
from tiny import refused, tiny_config
from tiny_runs import ROOT, code_with, first, make_row

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.figures import plans, style
from hjepa_lib.figures.success import PRICES
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import verdict
from hjepa_lib.worlds import Layout, TwoRooms

PATH = ROOT / "notebooks" / "07_hierarchy_study.ipynb"
GROUPS = {
    "replan": ("planner.hierarchy.replan", (4, 8)),
    "step_skip": ("level2.step_skip", (4, 8)),
    "controls": ("control", ("none", "zero")),
    "macro": ("level2.actions", ("none", "learned")),
    "clip": ("planner.hierarchy.clip", (0, 3)),
}
execute = functools.partial(tiny_runs.execute, PATH)


def committed():
    found = []
    for seed in (0, 1):
        for method, cell in (("flat", verdict.FLAT), ("l1+l2", verdict.HIERARCHY)):
            more = {"group": "frontier", "method": method}
            for budget, rate in ((0.5, 10), (1.0, 20 if method == "flat" else 36)):
                row = make_row(f"f-{method}", seed, first(rate), 1e6 * budget, budget, **more)
                found.append(row)
            found.append(row | {"cell": cell, "group": "bar"})
        for name, (column, values) in GROUPS.items():
            for value in values:
                more = {"group": name, "method": "l1+l2", column: value}
                found.append(make_row(f"{name}-{value}", seed, first(20), **more))
    labels = {f"failure.{name}": 0 for name in LABELS}
    rows = [labels | row | {"failure.solved": row["successes"]} for row in found]
    return pd.DataFrame([row | {"failure.no_door": row["n"] - row["successes"]} for row in rows])


@pytest.fixture(scope="module")
def root(ws, gallery):
    """The outputs of a tiny trained run; the committed study lacks one row."""
    rows = committed()
    rows = rows[(rows["cell"] != "macro-learned") | (rows["seed"] == 0)]
    rows.to_csv(gallery / "study.csv", index=False)
    return ws.run.path.parent


@pytest.fixture(scope="module")
def done(root):
    return execute(run="trained")


def test_every_part_of_the_study_is_there(done, root):
    table = pd.read_csv(root / "trained" / "study" / "rows.csv")
    assert set(table["method"]) == {"random", "random-persistent", "oracle", "flat", "l1+l2"}
    assert set(table["control"].dropna()) == set(done["changes"])
    assert set(table["design"].dropna()) == {"4", "8", "prior z", "learned"}
    # a clip of 0 is none
    control = table[table["cell"] == "control-no-clip-latent"].iloc[0]
    assert control["planner.hierarchy.clip"] == 0
    drawn = {path.stem for path in (root / "trained" / "figures").glob("07_*.png")}
    own = {*PRICES, "levers", "failures", "controls", "replan", "step_skip", "macro_actions"}
    study = {f"study_{name}" for name in ("frontier", "failures", *GROUPS)}
    assert drawn == {f"07_{name}" for name in own | study}


def test_level_2_designs_share_the_frozen_level_1(done, root):
    (path,) = (root / "trained-variants").glob("skip8-s0-*/manifest.json")
    side = Run.at(path.parent)
    for stage in ("l1", "distance"):
        assert side.manifest["stages"][stage]["from"] == "trained"
    assert side.config.level2.step_skip == 8
    assert side.config.level2.optim.updates == 4


def test_a_second_run_plays_and_trains_nothing(done, monkeypatch, capsys):

    def never(*_, **__):
        raise AssertionError("played or trained again")

    monkeypatch.setattr(scoring, "run_episodes", never)
    monkeypatch.setattr(stages, "train_level2", never)
    again = execute(run="trained")
    assert again["made"]["solved"].tolist() == done["made"]["solved"].tolist()
    assert set(again["groups"]) == {"frontier", "bar", *GROUPS}
    said = capsys.readouterr().out
    assert "unfinished: macro-learned 1.0" in said
    assert "latent: ratio of compute, all seeds in [" in said


def test_a_mixed_committed_study_is_refused(done, tmp_path):
    rows = committed()
    rows.loc[0, "trials_hash"] = "34"
    (tmp_path / "outputs/gallery").mkdir(parents=True)
    rows.to_csv(tmp_path / "outputs/gallery/study.csv", index=False)
    names = done | {"repository": lambda: tmp_path}
    refused(
        WorkbookError, "rows differ in trials_hash", exec, code_with("load_rows(path)", 7), names
    )


def test_without_level_2_there_is_nothing_to_compare(root, config):
    Run.create("flat", config.override("level2.disable_l2=true"))
    with pytest.raises(ConfigError, match="this chapter compares two levels"):
        execute(stop="workspace.start(", run="flat")


@pytest.mark.parametrize("encoder", ["vit", "place"])
def test_no_row_is_called_convolutional_that_is_not(encoder, capsys):
    """A local level 1 was played under that name, or refused after an hour."""
    level1 = SimpleNamespace(level1=SimpleNamespace(encoder=encoder))
    names = {"TwoRooms": TwoRooms, "train": SimpleNamespace(world=TwoRooms), "smoke": True}
    names |= {"ws": SimpleNamespace(config=level1), "variants": None}
    exec(code_with("variants.encoders(", 8), names)
    assert "not asked here" in capsys.readouterr().out


def test_the_best_planner_meets_the_rule_of_its_data():
    """Of sliding or bouncing data it was said of the blocked one."""
    code = code_with("matched.append(", 4).partition("ws.figure(")[0]
    row, played = {"method": "flat", "dynamics": "bounce"}, []
    play = SimpleNamespace(
        cases_of=lambda config: [None], tuned_pair=lambda config: [], FLOORS=scoring.FLOORS,
        play=lambda ws, agent, case, *_: played.append(case) or SimpleNamespace(row=row),
    )  # fmt: skip
    for rule, count in (("slide", 4), ("bounce", 0)):
        config = tiny_config(data__dynamics=rule)
        ws = SimpleNamespace(config=config, progress=lambda cases, _: cases)
        names = {"score": play, "ws": ws, "evaluation": config.evaluation, "agent": None}
        played.clear()
        exec(code, names | {"best": ("flat", "latent"), "Case": Case})
        assert [case.dynamics for case in played[1:]] == [rule] * count


def test_the_plans_that_are_looked_at_keep_the_cap_of_their_world(agent):
    """Those of a maze or of P2 were planned with the cap of P1."""
    agent, asked = dataclasses.replace(agent, planning=PlanningConfig(action_cap=2.45)), []

    def replace(one, **changes):
        asked.append(changes.get("planning"))
        return 1 / 0 if one is agent else dataclasses.replace(one, **changes)

    names = {"replace": replace, "agent": agent, "planning": PlanningConfig(), "plans": plans}
    exec("def fan(" + code_with("def fan(", 4).partition("def fan(")[2], names)
    with pytest.raises(ZeroDivisionError):
        names["fan"]("flat", "latent")
    assert asked[-1].action_cap == 2.45


def test_a_solved_trial_is_not_called_missed():
    """P2 asks for 4.5 px at the end, P3 for five steps in a row."""
    one = {"positions": np.zeros((3, 11, 2)), "goal": np.zeros((3, 2)), "layout": np.ones((3, 2))}
    one["trial_success"], one["trial_termination_step"] = np.array([[1, 1, 0], [4, 11, 4]])
    drawn = []
    names = {
        "results": {("flat", "latent"): SimpleNamespace(arrays=one)}, "cost": "latent",
        "pair_names": [("flat", "latent")], "find_world": lambda _: None, "panels": 3,
        "figures": SimpleNamespace(room_of=lambda _: np.zeros((3, 65, 65), np.uint8)),
        "plans": plans, "kind": "test", "style": style,
        "ws": SimpleNamespace(config=tiny_config(), figure=lambda *_: drawn.append(_)),
        "np": np, "torch": torch, "TwoRooms": TwoRooms, "Layout": Layout,
    }  # fmt: skip
    exec(code_with("plans.episode_paths(", 5), names)
    titles = [axis.get_title("left") for axis in drawn[0][0].axes]
    assert titles == ["reached at 4", "reached at 10", "missed by 0.0 px"]


def test_the_clip_shows_planners_tuned_alike_where_they_were_played():
    """Flat, untuned, at 68 MFLOP a step stood beside L1+L2 at 179."""
    names = ("flat tuned, latent", "l1+l2 tuned, latent", "flat, distance", "l1+l2, distance")
    played, drawn = {}, []
    for name in (*names, "flat, latent", "l1+l2, latent"):
        one = SimpleNamespace(success=np.array([1, "l1" in name]), arrays={})
        played[tuple(name.split(", "))] = one
        one.header = {"flops_per_step": 68.4e6}
    figures = SimpleNamespace(
        clip_of=lambda *_: drawn.append(_[1:]) or SimpleNamespace(title=""), comparison_gif=len
    )
    ws = SimpleNamespace(config=tiny_config(), animation=lambda *_: None)
    about = {"results": played, "plans": figures, "ws": ws, "np": np, "score": scoring}
    about |= {"pair_names": [("flat", "latent"), ("l1+l2", "latent")], "rooms": [0, 1]}
    exec(code_with("plans.comparison_gif(", 5), about | {"trial": -1, "kind": "test"})
    assert drawn == [(1, 1, f"{name}, 68.4 MFLOP") for name in names]


def test_planning_collapse_runs_beside_the_run(root, recwarn):
    (root / "latest").write_text("another\n")
    tiny_runs.execute(PATH.with_name("08_planning_collapse.ipynb"), run="trained")
    tables = {file.stem for file in (root / "trained" / "collapse").glob("*.csv")}
    assert tables == {"planning", "variants", "verdicts"}
    (side,) = (root / "trained-variants").glob("size-20312-s0-*/manifest.json")
    assert Run.at(side.parent).config.data.transitions == 20_312
    assert (root / "latest").read_text() == "another\n"
    assert [str(one.message) for one in recwarn] == []
