"""Notebook 07: a whole run on a tiny trained one, its second run, a committed study."""

import functools

import pandas as pd
import pytest
import tiny_runs
from tiny_runs import ROOT, cells, first, make_row

from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation.failures import LABELS
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import run as runs
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages

PATH = ROOT / "notebooks" / "07_hierarchy_study.ipynb"
execute = functools.partial(tiny_runs.execute, PATH)


@pytest.fixture(scope="module")
def root(ws):
    """An outputs folder with a tiny trained run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_HEADLESS", "1")
        yield ws.run.path.parent


@pytest.fixture(scope="module")
def done(root):
    return execute(run="trained")


def test_every_part_of_the_study_is_there(done, root):
    table = pd.read_csv(root / "trained" / "study" / "rows.csv")
    assert set(table["method"]) == {"random", "random-persistent", "oracle", "flat", "l1+l2"}
    assert table.groupby("split")["n"].unique().map(list).to_dict() == {
        "test": [3], "validation": [3]
    }  # fmt: skip
    assert set(table["control"].dropna()) == set(done["changes"])
    assert set(table["design"].dropna()) == {"4", "8", "prior z", "learned"}
    # a clip of 0 is none, and the swept planners are what their rows say
    control = table[table["cell"] == "control-no-clip-latent"].iloc[0]
    assert control["planner.hierarchy.clip"] == 0
    stale = table[table["cell"].str.startswith("replan-")].set_index("cell")
    assert stale["planner.hierarchy.replan"].to_dict() == {
        "replan-4-latent": 4, "replan-32-latent": 32
    }  # fmt: skip
    figures = {path.stem for path in (root / "trained" / "figures").glob("07_*.png")}
    assert figures >= {
        "07_flops_per_step", "07_seconds_per_step", "07_levers", "07_failures", "07_controls",
        "07_replan", "07_step_skip", "07_macro_actions",
    }  # fmt: skip


def test_level_2_designs_share_the_frozen_level_1(done, root):
    (path,) = (root / "trained-variants").glob("skip8-s0-*/manifest.json")
    side = runs.Run.at(path.parent)
    for stage in ("l1", "distance"):
        assert side.manifest["stages"][stage]["from"] == "trained"
    assert side.config.level2.step_skip == 8
    assert side.config.level2.optim.updates == 4


def test_a_second_run_plays_and_trains_nothing(done, monkeypatch):
    def never(*_, **__):
        raise AssertionError("played or trained again")

    monkeypatch.setattr(scoring, "run_episodes", never)
    monkeypatch.setattr(stages, "train_level2", never)
    again = execute(run="trained")
    assert again["made"]["solved"].tolist() == done["made"]["solved"].tolist()


def committed(**changes):
    """Rows of a whole small study, two seeds."""
    found = []
    for seed in (0, 1):
        for method in ("flat", "l1+l2"):
            for budget, rate in ((0.5, 10), (1.0, 20 if method == "flat" else 36)):
                more = {"group": "frontier", "cost": "latent", "budget": budget, "method": method}
                found.append(make_row(f"f-{method}", seed, first(rate), 1e6 * budget, **more))
        for name, column, values in (
            ("replan", "planner.hierarchy.replan", (4, 8)),
            ("step_skip", "level2.step_skip", (4, 8)),
            ("controls", "control", ("none", "zero")),
            ("macro", "level2.actions", ("none", "learned")),
        ):
            for value in values:
                more = {"group": name, "method": "l1+l2", column: value}
                found.append(make_row(f"{name}-{value}", seed, first(20), **more))
    labels = {f"failure.{name}": 0 for name in LABELS}
    rows = [labels | row | {"failure.solved": row["successes"]} for row in found]
    return pd.DataFrame([row | {"failure.no_door": row["n"] - row["successes"]} for row in rows])


def draw(rows, folder, names):
    """The cells of the committed study, with these rows."""
    path = folder / "outputs" / "gallery" / "study.csv"
    path.parent.mkdir(parents=True)
    rows.to_csv(path, index=False)
    names = names | {"repository": lambda: folder}
    sources = [cell.source for cell in cells(PATH)]
    (start,) = (i for i, source in enumerate(sources) if "load_rows(path)" in source)
    for source in sources[start:-1]:
        exec(compile(source, PATH.name, "exec"), names)
    return names


def test_the_committed_study_is_drawn(done, root, tmp_path, capsys):
    rows = committed()
    whole = (rows["cell"] != "macro-learned") | (rows["seed"] == 0)
    # The notebook's own execution drew whatever rows the repository holds today.
    folder = root / "trained" / "figures"
    for path in folder.glob("07_study_*.png"):
        path.unlink()
    names = draw(rows[whole], tmp_path, done)
    assert set(names["groups"]) == {"frontier", "replan", "step_skip", "controls", "macro"}
    figures = {path.stem for path in folder.glob("07_study_*.png")}
    assert figures == {
        f"07_study_{name}"
        for name in ("frontier", "replan", "step_skip", "controls", "macro", "failures")
    }
    said = capsys.readouterr().out
    assert "unfinished: macro-learned 1.0" in said
    assert "latent: ratio of compute, all seeds in [" in said


def test_a_mixed_committed_study_is_refused(done, tmp_path):
    rows = committed()
    rows.loc[0, "trials_hash"] = "34"
    with pytest.raises(WorkbookError, match="rows differ in trials_hash"):
        draw(rows, tmp_path, done)


def test_without_level_2_there_is_nothing_to_compare(root, config):
    runs.Run.create("flat", config.override("level2.disable_l2=true"))
    with pytest.raises(ConfigError, match="this chapter compares two levels"):
        execute(stop="workspace.start(", run="flat")
