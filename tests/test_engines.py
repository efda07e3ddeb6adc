"""Sweeps on workers that may die: no cell is lost, none is counted twice, whatever the engine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_runner import GRID, lines, write

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError
from hjepa_lib.files import read_json
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import engines, sweep

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATIENCE = 600  # seconds before a test gives up waiting; none waits that long on purpose
# What the real evaluation would leave behind, for workers that only run toy notebooks.
PRELOAD = """
from hjepa_lib.evaluation import results
from test_summary import floors, result

results.collect = lambda folder: [*floors(), result()]
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    path = os.pathsep.join(map(str, (HERE, ROOT, tmp_path)))
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path / "outputs"


@pytest.fixture
def cluster(tmp_path):
    """Address of a real scheduler, and the processes of two workers."""
    (tmp_path / "preload.py").write_text(PRELOAD)
    file, started = tmp_path / "scheduler.json", []

    def dask(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        log = (tmp_path / f"{len(started)}.log").open("w")
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))
        return started[-1]

    try:
        dask("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(file))  # fmt: skip
        until(file.exists)
        workers = [
            dask("dask_worker", "--scheduler-file", str(file), "--no-nanny", "--nthreads", "1",
                 "--no-dashboard", "--name", name, "--preload", "preload.py")
            for name in "ab"
        ]  # fmt: skip
        yield read_json(file)["address"], workers
    finally:
        for process in started:
            process.kill()
            process.wait()


def until(ready):
    """Wait for `ready()` to be true and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := ready()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def note(folder, *facts):
    """Source of a notebook cell that appends one line of facts to a file of its run."""
    return (
        "import os, pathlib\n"
        f"place = pathlib.Path({str(folder)!r}) / (run.replace('/', '_') + '.txt')\n"
        f"with place.open('a') as file:\n    file.write(f'{' '.join(facts)}\\n')"
    )


def test_a_killed_worker_loses_no_cell_and_counts_none_twice(cluster, tmp_path, root, monkeypatch):
    """Two real workers; one dies in the middle of a notebook, the other one resumes its cell."""
    address, workers = cluster
    notebooks, notes = tmp_path / "notebooks", tmp_path / "notes"
    notebooks.mkdir()
    notes.mkdir()
    write(notebooks, "01_a", note(notes, "01"))
    block = f"""
import time
flag = pathlib.Path({str(tmp_path / "blocked")!r})
if "horizon=4" in overrides and not flag.exists():
    flag.write_text(f"{{os.getppid()}} {{os.getpid()}} ")
    time.sleep({PATIENCE})
"""
    write(notebooks, "02_b", note(notes, "02", "{os.getppid()}") + block)
    grid = "notebooks: 01-02\nbase: {profile: smoke, device: cpu, precision: fp32}\n"
    (tmp_path / "horizons.yaml").write_text(grid + "grid: {planning.flat.horizon: [4, 8, 12]}\n")
    select = runner.select_notebooks
    monkeypatch.setattr(runner, "select_notebooks", lambda text: select(text, notebooks))
    study = sweep.read_study(tmp_path / "horizons.yaml")
    said, say = lines()
    killed = []

    def kill_when_blocked(text, **options):
        """Called after each cell: the blocked one does not end, so another one comes first."""
        say(text, **options)
        if text.startswith("1/3"):
            flag = tmp_path / "blocked"
            facts = until(lambda: flag.exists() and flag.read_text().endswith(" ") and flag)
            killed.extend(map(int, facts.read_text().split()))
            os.kill(killed[0], signal.SIGKILL)

    path, outcomes = sweep.run_study(study, engine="dask", scheduler=address, say=kill_when_blocked)
    assert killed[0] in {worker.pid for worker in workers}
    assert [outcome.error for outcome in outcomes] == [""] * 3
    assert [line.split()[0] for line in said[2:-1]] == ["1/3", "2/3", "3/3"]
    table = pd.read_csv(path)
    assert table["cell"].value_counts().to_dict() == {
        cell.name.split("/")[1]: 3 for cell in study.cells
    }  # random, oracle and flat, once each
    for cell in study.cells:
        done = (notes / f"{cell.name.replace('/', '_')}.txt").read_text().split("\n")[:-1]
        tries = 2 if cell.config.planning.flat.horizon == 4 else 1
        assert [line.split()[0] for line in done] == ["01"] + ["02"] * tries  # 01 was not repeated
        assert Run.open(cell.name).manifest["notebooks"].keys() == {"01_a", "02_b"}
        if tries == 2:
            assert int(done[1].split()[1]) == killed[0] != int(done[2].split()[1])
    until(lambda: not alive(killed[1]))  # the dead worker's kernel does not go on in secret
    assert read_json(root / study.name / "study.json")["failed"] == []
    assert (root / study.name / "success_by_horizon.png").is_file()

    said, say = lines()
    sweep.run_study(study, resume=True, engine="dask", scheduler=address, say=say)
    assert "3 cells, 3 done before" in said[0]


def test_a_cell_is_held_by_one_process_at_a_time(tmp_path):
    """A worker that only lost its connection is waited for, one that died is not."""
    path = tmp_path / "study" / "cell"
    code = f"""
import os, pathlib, time
from hjepa_lib.workbench import engines
with engines.exclusive(pathlib.Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(1)
    print("free", flush=True)
    {{}}
"""
    for end in ("pass", "os.kill(os.getpid(), 9)"):
        holder = subprocess.Popen(
            [sys.executable, "-c", code.replace("{}", end)], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "held\n"
        with engines.exclusive(path):
            assert holder.stdout.readline() == "free\n"
        holder.wait()


def double(item):
    """A tiny cell: 0 dies, wherever it is tried; 1 raises nothing, others are doubled."""
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def test_local_cluster_tells_the_killer_from_its_neighbours():
    """Dask blames what waited for the dead worker, too; here only the guilty one is lost."""
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):  # 3 would take longer
        ended = list(engines.run_all(double, [1, 0, 2, 3], engine="dask", jobs=2))
    values = {one.item: one.value for one in ended if not one.error}
    assert values == {1: 2, 2: 4, 3: 6}
    (lost,) = [one for one in ended if one.error]
    assert lost.item == 0
    assert lost.error == "every worker that took it died"


def test_joblib_says_what_a_killed_process_means():
    assert [one.value for one in engines.run_all(double, [1, 2])] == [2, 4]
    assert sorted(one.value for one in engines.run_all(double, [1, 2], jobs=2)) == [2, 4]
    with pytest.raises(RunError, match="a worker process was killed"):
        list(engines.run_all(double, [1, 0], jobs=2))


def test_workers_with_threads_are_refused():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as local,
        pytest.raises(RunError, match="has 2 threads; start workers with one"),
    ):
        list(engines.run_all(double, [1], engine="dask", scheduler=local.scheduler_address))


def test_a_worker_that_sees_other_folders_says_so(tmp_path, root):
    (tmp_path / "horizons.yaml").write_text(GRID)
    cell = sweep.read_study(tmp_path / "horizons.yaml").cells[0]
    outcome = sweep._run_cell(cell, tmp_path / "elsewhere", [tmp_path / "01_a.ipynb"], None)
    assert outcome.error.startswith(f"this worker does not see {tmp_path}/elsewhere/horizons")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"engine": "ray"}, ConfigError, "engine must be one of joblib, dask"),
        ({"scheduler": "tcp://h:1"}, ConfigError, "a scheduler address needs the engine dask"),
        ({"jobs": 0}, ConfigError, "jobs must be at least 1"),
        ({"engine": "dask", "scheduler": "h"}, RunError, "no Dask scheduler answers at h"),
    ],
)
def test_wrong_choices_are_one_sentence(options, kind, message):
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(kind, match=message),
    ):
        list(engines.run_all(double, [1], **options))


def test_dask_is_asked_for_when_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RunError, match="the engine dask needs: pip install"):
        engines.check_engine("dask", 1, "")
    engines.check_engine("joblib", 1, "")


def test_command_hands_engine_and_scheduler_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "horizons.yaml").write_text(GRID)
    seen = {}

    def interrupted(study, **options):
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_study", interrupted)
    grid = str(tmp_path / "horizons.yaml")
    arguments = ["sweep", grid, "--engine", "dask", "--scheduler", "tcp://h:1", "--threads", "3"]
    assert __main__.main(arguments) == 130
    assert seen == {
        "resume": False, "jobs": 1, "engine": "dask", "scheduler": "tcp://h:1", "threads": 3,
        "yes": False,
    }  # fmt: skip
    again = f"sweep {grid} --resume --jobs 1 --engine dask --scheduler tcp://h:1"
    assert again in capsys.readouterr().err
