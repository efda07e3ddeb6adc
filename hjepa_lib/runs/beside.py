"""Trainings side by side: a process each, as many as this one has threads.

The models of the pixel comparison are so small that a second thread saves 6 to 30 % of their time;
two of them at once save half (chapter 11 with three seeds: 21 minutes, then 10).
"""

import contextlib
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky.backend import get_context
from joblib.parallel import ParallelBackendBase

from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import machine
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report

PATIENCE = 5.0  # seconds that a process has to end by itself


def beside(ws: Workspace, stages: Sequence[Stage]) -> Iterator[Report]:
    """Make stages, as `Workspace.make` does, and what they read; yields reports as they come.

    On a CPU those that do not wait for each other are made at the same time, on one thread each
    (one that is left alone has all: its last digits differ). Whoever stops iterating ends the
    processes; each stage resumes. RunError for a process that was killed.
    """
    asked, missing = {stage.name for stage in stages}, {}

    def look(stage: Stage) -> None:
        there = ws.done if stage.name in asked else ws.found
        if stage.name not in missing and not there(stage):
            for other in stage.reads:
                look(other)
            missing[stage.name] = stage

    for stage in stages:
        look(stage)
    with contextlib.ExitStack() as stack:
        crew: dict[Connection, BaseProcess] = {}
        while missing:
            names = missing.keys()
            ready = [one for one in missing.values() if not names & {x.name for x in one.reads}]
            threads = torch.get_num_threads() if ws.device == "cpu" else 1
            if min(threads, len(ready)) > 1:
                crew = crew or stack.enter_context(_crew(ws, min(threads, len(missing))))
                yield from _together(crew, ready)
                ws.run.reload()
            else:
                for stage in ready:
                    yield from ws.make(stage)
            for stage in ready:
                del missing[stage.name]


@contextlib.contextmanager
def _crew(ws: Workspace, size: int) -> Iterator[dict[Connection, BaseProcess]]:
    """Processes that wait for stages, by the pipe to each; they end with it."""
    crew, context = {}, get_context("loky")
    env = dict.fromkeys(ParallelBackendBase.MAX_NUM_THREADS_VARS, "1")
    try:
        for _ in range(size):
            here, there = context.Pipe()
            options = {"args": (there, ws.run.path, ws.notebook), "env": env, "daemon": True}
            process = context.Process(target=_work, **options)
            process.start()
            crew[here] = process
            there.close()  # so that the end of the process ends the pipe
        yield crew
    finally:
        for pipe in crew:
            pipe.close()  # a process ends when it next looks: its stage keeps the seconds spent
        for process in crew.values():
            process.join(PATIENCE)
            process.terminate()
            process.join()


def _together(crew: Iterable[Connection], stages: Sequence[Stage]) -> Iterator[Report]:
    waiting, busy = [*reversed(stages)], set()
    for pipe in crew:
        if waiting:
            _through(pipe.send, waiting.pop())
            busy.add(pipe)
    while busy:
        for pipe in wait(busy):
            found = _through(pipe.recv)
            if isinstance(found, Report):
                yield found
            elif isinstance(found, Exception):
                raise found
            elif waiting:
                _through(pipe.send, waiting.pop())
            else:
                busy.remove(pipe)


def _through(call: Callable[..., Any], *given: Any) -> Any:
    """What a pipe brings; RunError where its process is gone."""
    try:
        return call(*given)
    except (EOFError, ConnectionError):
        raise RunError(
            "a process that trained was killed, perhaps for lack of memory; what is done is kept, "
            "and OMP_NUM_THREADS=1 trains one after another"
        ) from None


def _work(pipe: Connection, path: Path, notebook: str) -> None:
    """Make stages of the run at `path` as they come; reports, an error and their end go back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who reads the pipe is asked, and ends this
    machine.set_up(1)
    with contextlib.suppress(EOFError, ConnectionError):  # who reads the pipe is gone
        while True:
            stage = pipe.recv()
            try:
                for report in Workspace(notebook, Run.at(path)).make(stage):
                    pipe.send(report)
                pipe.send(None)
            except WorkbookError as error:
                pipe.send(error)
            except Exception as error:
                error.add_note(traceback.format_exc())
                pipe.send(error)
