"""Training the models of a run without notebooks, on one device or, under torchrun, on several.

    torchrun --nproc-per-node 4 -m hjepa_lib train --profile full --name big
    python -m hjepa_lib run --name big --resume

Level 1 is trained by all processes (training/distributed.py), with the data order, losses and files
of one. The distance head and level 2 read stored latents and take a small part of the time: process
0 trains them alone, the others have ended. Only process 0 writes; all must see the run folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hjepa_lib.config import ConfigError
from hjepa_lib.runs import machine, stages
from hjepa_lib.runs.estimates import describe
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import distributed
from hjepa_lib.training.loop import Report

Say = Callable[..., None]
_LINES = 10  # progress lines per training


def train(open_run: Callable[[], Run], say: Say = print) -> None:
    """Train whatever the run still lacks: data, level 1, distance head, level 2.

    `open_run` is called in process 0 only. Raises ConfigError when several processes cannot share
    the work: joint training draws noise per batch, so it has one process.
    """
    machine.set_up()
    distributed.start()
    try:
        run = Run.at(Path(distributed.from_first(lambda: str(open_run().path))))
        ws = Workspace("train", run)
        _check(ws)
        first = distributed.rank() == 0
        if first:
            say(f"{ws!r}, {distributed.count()} processes")
        distributed.from_first(lambda: stages.make_data(ws).count)  # the others wait for the data
        if not distributed.from_first(lambda: ws.run.done("l1")):
            if first:
                _follow("level 1", stages.train_level1_stage(ws), say)
            else:
                stages.join_level1(ws)
    finally:
        distributed.stop()
    if not first:
        # Threads of the group may still be ending; an interpreter that shuts down under them can
        # abort, and torchrun would call that a failure.
        os._exit(0)
    _follow("distance head", stages.train_distance_stage(ws), say)
    _follow("level 2", stages.train_level2_stage(ws), say)
    say(f"trained; go on with: python -m hjepa_lib run --name {run.name} --resume")


def _check(ws: Workspace) -> None:
    level2 = ws.config.level2
    if distributed.count() > 1 and level2.train == "joint" and not level2.disable_l2:
        raise ConfigError("level2.train=joint runs in one process: start it without torchrun")


def _follow(name: str, reports: Iterator[Report], say: Say) -> None:
    """Exhaust a training, a few lines on the way."""
    start = time.perf_counter()
    for report in reports:
        if report.update % max(1, report.updates // _LINES) == 0:
            spent = describe((time.perf_counter() - start) / 60)
            say(f"{name} {report.update}/{report.updates}: loss {report.loss:.4f}, {spent}")
