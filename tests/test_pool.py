import os
import signal
import sys
import time
from pathlib import Path

import dask
import distributed
import numpy as np
import pandas as pd
import pytest
from tiny import refused
from tiny_runs import SEED, Said, floors, result, write

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError
from hjepa_lib.files import FileError
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs import report
from hjepa_lib.runs.places import RunError
from hjepa_lib.workbench import engine, pool
from hjepa_lib.workbench.pool import Work
from hjepa_lib.workbench.schema import read_experiment

HERE = Path(__file__).resolve().parent
PATIENCE = 90  # seconds until a test gives up waiting
TREE = {
    "base": {"profile": "smoke", "device": "cpu", "precision": "fp32", "level1": {"width": 8}},
    "grid": {"planning.flat.horizon": [4, 8]},
    "seeds": [0, 1],
    "cells": [{"notebooks": "01"}],
}
# Workers look for notebooks where the test put them.
PRELOAD = """
import os
from pathlib import Path
from hjepa_lib.runs import notebooks
here = Path(os.environ["HJEPA_OUTPUTS"]).with_name("notebooks")
if not hasattr(notebooks, "everywhere"):  # a worker may load this file twice
    notebooks.everywhere = notebooks.select_notebooks
    notebooks.select_notebooks = lambda text: notebooks.everywhere(text, here)
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    path = os.pathsep.join(map(str, (HERE, HERE.parent, tmp_path)))
    monkeypatch.setenv("PYTHONPATH", path)
    folder, select = tmp_path / "notebooks", runner.select_notebooks
    folder.mkdir()
    monkeypatch.setattr(runner, "select_notebooks", lambda text: select(text, folder))
    return tmp_path / "outputs"


def run(experiment, **options):
    said = Said()
    ended = engine.run_experiment(experiment, work=Work(**options), say=said)
    return [one.error for one in ended], said


class Played:
    """A result whose row this is."""

    def __init__(self, row):
        self.row, self.header = row, {"protocol": "own", "planner": {}}
        self.success = np.arange(row["n"]) < row["successes"]
        places = np.ones((row["n"], 2))
        self.arrays = {"positions": places[:, None], "goal": places, "layout": places}


def test_a_failed_row_is_named_and_the_rest_finish(tmp_path, root, monkeypatch):
    monkeypatch.setattr(report, "played", lambda _: map(Played, [*floors(), result()]))
    experiment = read_experiment(TREE, "horizons")
    write(tmp_path / "notebooks", "01_a", SEED + "assert seed == 0, 'seed one'")
    errors, _ = run(experiment)
    assert [bool(error) for error in errors] == [False, True, False, True]
    assert "AssertionError: seed one" in errors[1]
    table = pd.read_csv(experiment.table)
    assert list(table["planning.flat.horizon"]) == [4] * 3 + [8] * 3
    assert table["solved"].notna().all()  # pooled by trial, as rows of planners are
    assert (experiment.folder / "success_by_horizon.png").is_file()
    assert not (root / "latest").exists()  # I11


def test_an_edited_notebook_is_executed_again(tmp_path):
    """I12."""
    experiment = read_experiment(TREE | {"seeds": [0], "grid": {}}, "one")
    write(tmp_path / "notebooks", "01_a", "assert True")
    assert run(experiment)[0] == [""]
    (report,) = experiment.folder.glob("*/report.html")
    before = report.stat().st_mtime_ns
    errors, said = run(experiment)
    assert errors == [] and "1 rows, 1 done before" in said[0]
    assert report.stat().st_mtime_ns == before
    write(tmp_path / "notebooks", "01_a", "assert 1 + 1 == 2")
    refused(RunError, "was made with notebooks=01_a:", run, experiment)
    assert run(experiment, redo=True)[0] == [""]
    assert report.stat().st_mtime_ns > before and len(pd.read_csv(experiment.table)) == 1


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "preload.py").write_text(PRELOAD)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None,
        preload=[str(tmp_path / "preload.py")],
    ) as local:  # fmt: skip
        yield local.scheduler_address


def until(ready):
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
    return (
        "import os, pathlib\n"
        f"place = pathlib.Path({str(folder)!r}) / (run.replace('/', '_') + '.txt')\n"
        f"with place.open('a') as file:\n    file.write(f'{' '.join(facts)}\\n')"
    )


def test_a_killed_worker_loses_no_row_and_counts_none_twice(cluster, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    write(tmp_path / "notebooks", "01_a", note(notes, "01"))
    block = f"""
import time
flag = pathlib.Path({str(tmp_path / "blocked")!r})
if "horizon=4" in run and not flag.exists():
    flag.write_text(f"{{os.getppid()}} {{os.getpid()}} ")
    time.sleep({PATIENCE})
"""
    write(tmp_path / "notebooks", "02_b", note(notes, "02", "{os.getppid()}") + block)
    tree = TREE | {"seeds": [0], "cells": [{"notebooks": "01-02"}]}
    experiment = read_experiment(tree, "horizons")
    said, killed = [], []

    def kill_when_blocked(text, **options):
        """Called after each row: the blocked one does not come first."""
        said.append(text)
        if text.startswith("1/2"):
            flag = tmp_path / "blocked"
            facts = until(lambda: flag.exists() and flag.read_text().endswith(" ") and flag)
            killed.extend(map(int, facts.read_text().split()))
            os.kill(killed[0], signal.SIGKILL)

    work = Work(engine="dask", scheduler=cluster)
    ended = engine.run_experiment(experiment, work=work, say=kill_when_blocked)
    assert [outcome.error for outcome in ended] == [""] * 2
    assert sorted(pd.read_csv(experiment.table)["planning.flat.horizon"]) == [4, 8]
    for unit in experiment.units:
        done = (notes / f"horizons_{unit.run_name}.txt").read_text().split("\n")[:-1]
        tries = 2 if unit.config.planning.flat.horizon == 4 else 1
        assert [line.split()[0] for line in done] == ["01"] + ["02"] * tries  # 01 was not repeated
        if tries == 2:
            assert int(done[1].split()[1]) == killed[0] != int(done[2].split()[1])
    until(lambda: not alive(killed[1]))  # the dead worker's kernel does not go on in secret
    errors, said = run(experiment, engine="dask", scheduler=cluster)
    assert errors == [] and "2 rows, 2 done before" in said[0]


def double(item):
    """A tiny work: 0 dies, wherever it is tried; others are doubled."""
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


double.__module__ = "__main__"  # pickled whole: a worker cannot import this file


def test_local_cluster_tells_the_killer_from_its_neighbours():
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):  # 3 would take longer
        ended = list(pool.run_all(double, [1, 0, 2], Work(engine="dask")))
    assert {one.item: one.value for one in ended if not one.error} == {1: 2, 2: 4}
    (lost,) = [one for one in ended if one.error]
    assert (lost.item, lost.error) == (0, "every worker that took it died")


def test_joblib_says_what_a_killed_process_means():
    """S3."""
    two = Work(jobs=2)
    assert sorted(one.value for one in pool.run_all(double, [1, 2], two)) == [2, 4]
    refused(RunError, "a worker process was killed", list, pool.run_all(double, [1, 0], two))


def test_workers_with_threads_are_refused():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as local,
        pytest.raises(RunError, match="has 2 threads; start workers with one"),
    ):
        list(pool.run_all(double, [1], Work(engine="dask", scheduler=local.scheduler_address)))


def test_a_worker_that_sees_other_folders_says_so(tmp_path):
    write(tmp_path / "notebooks", "01_a", "assert True")
    experiment = read_experiment(TREE, "horizons", tmp_path / "elsewhere" / "horizons")
    (first, *_) = engine.do_units(experiment, None, experiment.units)
    assert first.error == f"this worker does not see {tmp_path}/elsewhere/horizons"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"scheduler": "tcp://h:1"}, ConfigError, "needs the engine dask"),
        ({"jobs": 0}, ConfigError, "jobs and threads must be at least 1, got .0, None."),
        ({"threads": -1}, ConfigError, "got .1, -1."),
        ({"engine": "dask", "scheduler": "h"}, RunError, "no Dask scheduler answers"),
    ],
)
def test_wrong_choices_are_one_sentence(options, kind, message, monkeypatch):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(kind, match=message),
    ):
        list(pool.run_all(double, [1], Work(**options)))
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(FileError, r"distributed is not installed: .*\[cluster\]", Work(engine="dask").check)


def test_command_hands_engine_and_scheduler_on(tmp_path, monkeypatch):
    file = tmp_path / "horizons.yaml"
    file.write_text("cells: [{notebooks: '01'}]")
    write(tmp_path / "notebooks", "01_a", "assert True")
    seen = {}

    def interrupted(experiment, cells, work):
        seen.update(vars(work))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run_experiment", interrupted)
    options = {"jobs": 1, "engine": "dask", "scheduler": "tcp://h:1", "threads": 3}
    given = [f"--{name}={value}" for name, value in options.items()]
    assert __main__.main(["sweep", str(file), *given]) == 130
    assert seen.items() >= (options | {"redo": False, "yes": False}).items()
