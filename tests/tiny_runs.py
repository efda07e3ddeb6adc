"""What a run is made of: stages, notebooks, results, rows of a study."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np

from hjepa_lib.config import profile
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.workbench.markdown import NUMBERS
from hjepa_lib.workbench.rows import pack_solved

ROOT = Path(__file__).resolve().parents[1]
CPU = profile("smoke").override("device=cpu,precision=fp32")

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
"""The environment of a git outside the hook that may run the tests."""
PARAMETERS = 'profile: str = "laptop"\nrun: str = ""\nseed: int = 0\noverrides: str = ""'
SEED = """
import json, os
seed = json.load(open(f"{os.environ['HJEPA_OUTPUTS']}/{run}/manifest.json"))["seed"]
"""
LOADED = re.compile(r"(src|href)\s*=\s*[\"']?(https?:)?//|url\(\s*[\"']?(https?:)?//|@import")
"""An address that a page loads something from."""
TRIALS = 40


def git(folder, *command):
    named = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *command]
    done = subprocess.run(named, cwd=folder, check=True, env=CLEAN, capture_output=True, text=True)
    return done.stdout.strip()


def python(code, *arguments, **options):
    """What this code prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def race(code, *arguments):
    """Processes with these arguments print "ready", wait, and go on at one time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", code, *own], **pipes) for own in arguments]
    assert {worker.stdout.readline() for worker in workers} == {"ready\n"}
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert {worker.wait() for worker in workers} == {0}


def cut(reports, updates):
    """A training ends after so many updates."""
    for _ in range(updates):
        next(reports)
    reports.close()


class Said(list[str]):
    """A `print` that collects whole lines."""

    def __call__(self, text, end="\n", **_):
        if not self or self[-1].endswith("\n"):
            self.append("")
        self[-1] += text + end


def fill(run, stage, text="x", **options):
    with run.stage(stage, **options) as folder:
        (folder / f"{stage}.txt").write_text(text)


def write(folder, name, *sources, parameters=PARAMETERS, tags=("parameters",)):
    """A notebook with a parameters cell and one cell per source."""
    head = nbformat.v4.new_code_cell(parameters)
    head.metadata.tags = list(tags)
    cells = [head, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def result(method="flat", cost="distance", successes=97, n=100, **changes):
    shown = ("path_efficiency", "avg_termination_step", "seconds_per_episode", "flops_per_step")
    entry = dict.fromkeys((*shown, "final_distance_mean", "latency_single_episode", *NUMBERS), 0.5)
    entry |= {"method": method, "cost": cost, "protocol": "p1", "layouts": "fixed"}
    entry |= {"dynamics": "bounce", "budget": 1.0, "n": n, "successes": successes}
    entry |= {"success_rate": successes / n, "ci95": list(wilson(successes, n)), "split": "test"}
    entry |= {"planner": {"horizon": 8}, "data": {"recipe": "good"}, "weights": {}}
    return entry | changes


def floors():
    return [result("random", "none", 7), result("oracle", "none", 100)]


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def printed(path, end="checks passed"):
    """Text of an executed copy, which has `end`, and the data of its outputs."""
    outputs = [output for cell in cells(path) for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert end in text
    return text, [output.get("data", {}) for output in outputs]


def code_of(cell):
    return re.sub(r"(?m)^(\s*)%pip .*$", r"\1pass", cell.source)


def code_with(text, chapter):
    """The one code cell of this chapter that holds this text."""
    (path,) = (ROOT / "notebooks").glob(f"{chapter:02d}_*.ipynb")
    (source,) = (cell.source for cell in cells(path) if text in cell.source)
    return source


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


def execute(path, stop="", **changes):
    """The names of a notebook whose code has run here, up to the cell with `stop`."""
    names = {}
    for cell in cells(path):
        exec(compile(code_of(cell), path.name, "exec"), names)
        names |= changes if is_parameters(cell) else {}
        if stop and stop in cell.source:
            break
    return names


def make_row(cell, seed, solved, flops=1e6, budget=1.0, method="flat", cost="latent", **more):
    solved = np.asarray(solved)
    row = {
        "cell": cell, "group": "p1", "model": "base", "grid": "", "training": "abc",
        "revision": "1e5", "method": method, "cost": cost, "seed": seed, "budget": budget,
        "protocol": "p1", "split": "test", "layouts": "fixed", "dynamics": "bounce",
        "n": len(solved), "trials_hash": "12", "planner.steps": 200, "solved": pack_solved(solved),
        "successes": int(solved.sum()), "success_rate": solved.mean(), "path_efficiency": 0.5,
        "flops_per_step": flops, "model_transitions_per_step": flops / 1e3,
        "seconds_per_episode": flops / 1e6, "planner.flat.horizon": 8,
    }  # fmt: skip
    return row | more


def first(count, n=TRIALS):
    return (np.arange(n) < count).astype(int)
