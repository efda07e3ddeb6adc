"""The form of every notebook; 01-05 in a smoke run, and variants."""

import ast
import importlib
import math
import re
import shutil
import sys
from dataclasses import replace

import pytest
from tiny import refused, tiny_config
from tiny_runs import CPU, LOADED, ROOT, Said, cells, code_of, execute, is_parameters, printed
from tiny_world import Lamp

import hjepa_lib
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.results import load_results
from hjepa_lib.files import read_json
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs import score
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.score import FLOORS, learned
from hjepa_lib.widgets import player, story
from hjepa_lib.workbench import compare
from hjepa_lib.worlds.trials import draw_trials, save_trials

NOTEBOOKS = runner.select_notebooks("01-05", ROOT / "notebooks")
NAMES = [path.stem for path in NOTEBOOKS]
CHAPTERS = runner.select_notebooks("01-16", ROOT / "notebooks")
"""Run by test_widgets.py (06), test_notebook_study.py, test_worlds_study.py (09),
test_pixels_notebooks.py and below (16)."""
TABLE = {*FLOORS, *learned(CPU)}
STANDARD = {"profile": "laptop", "run": "", "seed": 0, "overrides": ""}


@pytest.fixture(scope="module", autouse=True)
def root(outputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_HEADLESS", "1")
        yield outputs


@pytest.fixture(scope="module")
def finished(root):
    runner.prepare(CPU, NOTEBOOKS)
    run = Run.create("whole", CPU)
    runner.run_notebooks(run, NOTEBOOKS, threads=1, say=Said())
    runner.finish(run, say=Said())
    return Run.open("whole")


def shown_by(run, number, end="checks passed"):
    (path,) = (run.path / "notebooks").glob(f"{number:02d}_*.ipynb")
    text, data = printed(path, end)
    assert "Warning" not in text
    return sum("image/png" in one for one in data), text


@pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])
def test_a_chapter_has_its_form(path):
    """N1, N2, N15; other parameters than `run` are used in the start cell only."""
    code = cells(path)
    assert code[0].source == cells(NOTEBOOKS[0])[0].source.replace(NAMES[0], path.stem)
    assert f'colab.set_up("{path.stem}")' in code[0].source  # test_packaging.py tells what it does
    (tagged,) = filter(is_parameters, code)
    lines = tagged.source.splitlines()
    assert all(re.fullmatch(r"\w+: (str|int|bool) = .+  # .+", line) for line in lines)
    stored = {s.target.id: ast.literal_eval(s.value) for s in ast.parse(tagged.source).body}
    assert stored == STANDARD
    for cell in code:
        if "workspace.start(" not in cell.source and cell != tagged:
            nodes = ast.walk(ast.parse(code_of(cell)))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            assert not names & {"profile", "run", "overrides"}, cell.source
    written = ("picture = ", "maze = ")  # the file of a world, as text
    shown = "\n".join(cell.source for cell in code if not cell.source.startswith(written))
    assert len(re.findall(r"(?m)^ *def ", shown)) <= 2
    assert "!pip" not in path.read_text()

    prose = [cell.source for cell in cells(path, "markdown")]
    contract = ("**Question.**", "| Inputs |", "| Outputs |", "| Time |")
    assert all(part in prose[0] for part in contract)
    assert all(part in prose[-1] for part in ("## Recap", "**Limits.**", "**Exercises.**"))
    assert sum(len(text.split()) for text in prose) >= 300
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(prose))
    assert links
    for link in links:
        assert (path.parent / link).is_file(), link


def test_smoke_run_is_whole(finished):
    """N20."""
    entries = finished.manifest["notebooks"]
    assert list(entries) == NAMES and all(entry["ok"] for entry in entries.values())
    finished.verify("data")
    for stage in ("l1", "distance", "l2"):
        finished.verify(stage)
        rows = finished.records(stage)
        optim = getattr(CPU, {"l1": "level1", "l2": "level2"}.get(stage, stage)).optim
        assert rows[-1]["step"] == optim.updates
        assert all(math.isfinite(row["loss"]) for row in rows)
    assert not [*finished.path.glob("resume/*")]
    said = Said()
    runner.run_notebooks(finished, NOTEBOOKS, resume=True, say=said)
    assert said == [f"{name:<20} done before\n" for name in NAMES]


def test_results_of_every_method(finished):
    """F15."""
    results = load_results(finished.path / "results")
    played = {"bounce": set(), "blocked": set()}
    for one in results:
        played[one.header["dynamics"]].add((one.header["method"], one.header["cost"]))
    assert played["bounce"] == TABLE
    assert played["blocked"] >= set(FLOORS)
    assert len(played["blocked"] - set(FLOORS)) == 1
    table = read_json(finished.path / "summary.json")
    assert len(table["results"]) == len(results)
    budgets = load_results(finished.path / "budgets")
    validation = {one.header["trials_hash"] for one in budgets}
    test = {one.header["trials_hash"] for one in results}
    assert len(validation) == len(test) == 1
    assert validation != test  # nothing is chosen on test trials


def test_controls_reach_the_planner(finished):
    """F2."""
    settings = {}
    for control in ("none", "zero", "shuffle", "perturb"):
        (one,) = load_results(finished.path / "controls" / control)
        settings[control] = one.header["planner"].pop("hierarchy.control")
    assert settings == {control: control for control in settings}


def test_figures_and_report(finished):
    captions = finished.manifest["figures"]
    files = {path.name for path in (finished.path / "figures").iterdir()}
    assert files == set(captions)
    assert all(note["caption"] for note in captions.values())
    page = (finished.path / "report.html").read_text()
    assert page.count("<figure") == len(files)
    assert not LOADED.search(page)


def test_csv(finished):
    lines = (finished.path / compare.CSV).read_text().splitlines()
    assert lines[0] == "metric,l1,l2"
    assert any(line.startswith("success_rate,") for line in lines)


def test_executed_copies_show_pictures_and_one_clean_bar(finished):
    """N4, N6."""
    for number in range(1, 6):
        pictures, text = shown_by(finished, number)
        assert pictures >= 4 and text.count("100%") <= 4


def test_comparison_reads_results_only(finished, root):
    shutil.copytree(finished.path, root / "results-only")
    for folder in ("data", "l1", "l2", "figures", "controls"):
        shutil.rmtree(root / "results-only" / folder)
    names = execute(NOTEBOOKS[4], run="results-only")
    assert names["origins"] == {"this run"}
    assert 0 <= names["number"] < CPU.evaluation.trials
    assert len(names["rows"]) == len(TABLE)


def play(name, notebooks, changes):
    run = Run.create(name, CPU.override(changes))
    runner.run_notebooks(run, notebooks, threads=1, say=Said())
    runner.finish(run, say=Said())
    run.reload()
    return run


def test_the_recipe_of_random_layouts(capsys):
    small = "data.transitions=4000,level1.optim.updates=6,level1.refine_updates=6,"
    small += "level1.width=8,level1.hidden=16,distance.trajectories=30,distance.optim.updates=6"
    run = Run.create("layouts", CPU.override(f"preset=random_layouts,{small}"))
    for path in NOTEBOOKS[:2]:
        execute(path, run="layouts")
    figures = {path.stem for path in (run.path / "figures").glob("02_*.png")}
    assert {"02_losses", "02_refinement", "02_distance_losses"} <= figures
    assert capsys.readouterr().out.count("checks passed") == 2


def test_without_level_2(finished):
    changes = "level2.disable_l2=true,evaluation.budgets=1.0,evaluation.matched_dynamics=false,"
    changes += "evaluation.trials=2,evaluation.steps=20"
    run = play("flat-only", NOTEBOOKS[2:], changes)
    for stage in ("l1", "distance"):  # the same keys with and without level 2
        assert run.manifest["stages"][stage]["from"] == "whole"
    headers = [one.header for one in load_results(run.path / "results")]
    methods = {(header["method"], header["cost"]) for header in headers}
    assert methods == {*FLOORS, ("flat", "latent"), ("flat", "distance")}
    assert not (run.path / "l2").exists() and not (run.path / compare.CSV).exists()
    assert "disable_l2 is set" in shown_by(run, 3, "nothing to check without level 2")[1]


@pytest.mark.parametrize("source", ["four_rooms", "patrolled_door", "pointmaze_medium_stitch"])
def test_data_of_other_worlds(capsys, source):
    if source.startswith("pointmaze"):
        pytest.importorskip("ogbench")
    Run.create(source, tiny_config(data__source=source, planning__action_cap=0.0))
    execute(NOTEBOOKS[0], run=source)
    assert capsys.readouterr().out.count("checks passed") == 1


def test_an_own_world_and_a_file(monkeypatch, capsys):
    pytest.importorskip("h5py")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "paper_maze", raising=False)
    Run.create("own", CPU)
    find = importlib.util.find_spec
    names = execute(CHAPTERS[-1], run="own")
    whole = capsys.readouterr().out
    absent = lambda name, *rest: None if name == "h5py" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    without = execute(CHAPTERS[-1], run="own")
    part = capsys.readouterr().out
    assert whole.endswith("checks passed\n") and part.endswith("checks passed\n")
    assert "this part is left out" in part and "this part is left out" not in whole
    assert len(names["judged"]) == 6 and without["judged"] == []
    assert names["rates"]["oracle, none"]["n"] == CPU.evaluation.trials


def test_an_own_world_of_another_form_goes_through_the_chapters(tmp_path, capsys, monkeypatch):
    """Chapters 02 to 05 meet a local level 1 here alone."""
    few = draw_trials(Lamp, "validation").first(2)
    file = save_trials(tmp_path / "few.npz", few)
    changes = {"data.source": "tiny_world:Lamp", "evaluation.split": str(file)}
    changes |= {"evaluation.budgets": [1.0], "evaluation.budget_trials": 1}
    changes |= {"evaluation.matched_dynamics": False, "planning.action_cap": 0.0}
    changes |= dict.fromkeys(("level1.optim.updates", "level1.refine_updates"), 8)
    changes |= {"distance.optim.updates": 8, "data.transitions": 1000}
    run = Run.create("lamp", tiny_config().override(changes))
    names = [execute(path, run="lamp") for path in NOTEBOOKS]
    assert capsys.readouterr().out.count("checks passed") == 5
    rows, ws, agent = (names[3][name] for name in ("rows", "ws", "agent"))
    assert {row["n"] for row in rows} == {2} and names[3]["tuned"] == []
    assert rows[-1]["data"]["recipe"] == "own"
    run.reload()
    captions = {name: one["caption"] for name, one in run.manifest["figures"].items()}
    assert "few.npz trials" in captions["04_success.png"]
    assert "(few.npz)" in captions["05_episode_graph.gif"]
    told = replace(ws.config.planning, truth="dynamics")  # of steps with three actions
    case = Case.of(ws.config, "flat", "distance", planning=told)
    assert score.play(ws, agent, case).row["told"] == "dynamics"
    told = story.play(agent, story.scene_of(few, 1), "l1+l2", ws.config.planning, 6)
    assert len(player.film(told).axes) > 1 and told.actions.shape[1] == 3
    monkeypatch.setattr(Lamp, "frame_shape", (3, 22, 22))
    message = r"on frames \(3, 22, 34\), tiny_world:Lamp has \(3, 22, 22\)"
    refused(RunError, message, hjepa_lib.load, "lamp")
