"""Which methods are compared, how the best is chosen, and where results are looked for."""

import shutil

import pytest
from tiny import tiny_config
from tiny_runs import Said

from hjepa_lib.config import profile
from hjepa_lib.files import read_json
from hjepa_lib.runs import notebooks, score
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import STUDY
from hjepa_lib.workbench.rows import load_rows
from hjepa_lib.workbench.schema import read_experiment

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
    with pytest.raises(RunError, match="no result of a planner"):
        score.best(rows[:1])


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
    score.find_results(first, score.tuned_pair(config), "tuned")
    page = notebooks.finish(first.run, Said()).read_text()
    summary = read_json(first.run.path / "summary.json")  # Q5: it holds what chapter 05 says
    assert {row["method"] for row in summary["tuned"]} == {"flat", "l1+l2"}
    assert "verdict, flat as validation trials chose it, latent cost: undecided; L1+L2 " in page
    monkeypatch.setattr(score, "run_episodes", None)  # nothing is played from here on
    second = Workspace("05_compare", Run.create("second", config))
    again = score.find_results(second, cases)
    assert {second.origin(stage) for stage in stages} == {"first"}
    for one, two in zip(played, again, strict=True):
        assert one.header == two.header
    with pytest.raises(TypeError):
        score.find_results(second, score.cases_of(config, trials=2))


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
    assert score.tuned_pair(profile("laptop").override("level2.disable_l2=true")) == []
