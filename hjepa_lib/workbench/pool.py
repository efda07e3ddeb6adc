"""One pool: `do(item)` in processes here (joblib), or on Dask workers here or elsewhere.

joblib stops when a worker process dies. Dask's workers must see this outputs folder under the same
path; it tries a dead one's item elsewhere, up to three times, and a worker that only lost its
connection may still be at it, so `do` has to take a lock.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import ParallelBackendBase

from hjepa_lib.config import ConfigError
from hjepa_lib.files import extra, first_line
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import RunError

_KILLED = "every worker that took it died"


class Ended(NamedTuple):
    """One item; `error` says why there is no value, and is empty when there is one."""

    item: Any
    value: Any
    error: str


@dataclass(frozen=True)
class Work:
    """Who does an experiment, and how: options of the command."""

    jobs: int = 1
    """Processes on this machine, which share the cores."""
    engine: Literal["joblib", "dask"] = "joblib"
    """joblib: processes here; dask: workers that may die, here or on other machines."""
    scheduler: str = ""
    """Address of a Dask scheduler, such as tcp://host:8786; a local one if empty."""
    threads: int | None = None
    """Threads of a process; its share of the cores, or the worker's own, if empty."""
    redo: bool = False
    """Replace rows that were made with other settings, instead of stopping."""
    yes: bool = False
    """Start the profile full even without a GPU."""

    @property
    def share(self) -> int:
        """Cores of one process."""
        return max(1, machine.usable_cores() // self.jobs)

    def check(self) -> None:
        """ConfigError or FileError, one sentence, when the choice cannot work here."""
        if self.scheduler and self.engine != "dask":
            raise ConfigError(f"a scheduler address needs the engine dask, not {self.engine}")
        if min(self.jobs, self.threads or 1) < 1:
            raise ConfigError(f"jobs and threads must be at least 1, got {self.jobs, self.threads}")
        if self.engine == "dask":
            extra("distributed")


HERE = Work()


def run_all(do: Callable[[Any], Any], items: Sequence[Any], work: Work = HERE) -> Iterator[Ended]:
    """Yield one `Ended` per item, first come first served."""
    work.check()
    suspects = []
    with (_processes if work.engine == "joblib" else _dask)(work) as pool:
        for ended in _submit(pool, do, items):
            if ended.error == _KILLED:
                suspects.append(ended.item)
            else:
                yield ended
        # Dask also blames what only waited for the dead worker: alone, the innocent succeed.
        for item in suspects:
            yield from _submit(pool, do, [item])


def _submit(pool: Executor, do: Callable, items: Sequence[Any]) -> Iterator[Ended]:
    futures = {pool.submit(do, item): item for item in items}
    for future in as_completed(futures):
        value, reason = None, ""
        try:
            value = future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process was killed, perhaps for lack of memory; go on with fewer jobs, "
                "or with the engine dask, which gives its work to another one"
            ) from error
        except Exception as error:
            reason = _KILLED if type(error).__name__ == "KilledWorker" else first_line(error)
        yield Ended(futures[future], value, reason)


@contextlib.contextmanager
def _processes(work: Work) -> Iterator[Executor]:
    """They end with it, whatever they are at; each has its share of BLAS threads."""
    names = ParallelBackendBase.MAX_NUM_THREADS_VARS  # what the environment says is kept
    env = {name: os.environ.get(name, str(work.share)) for name in names}
    pool = ProcessPoolExecutor(work.jobs, env=env)
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


@contextlib.contextmanager
def _dask(work: Work) -> Iterator[Executor]:
    """The scheduler's workers, or `jobs` worker processes that end with it."""
    import dask
    import distributed

    with contextlib.ExitStack() as stack:
        place = work.scheduler
        if not place:
            # A dead worker's successor may take longer on a busy machine than Dask's 15 seconds.
            patience = {"distributed.deploy.lost-worker-timeout": "10 minutes"}
            stack.enter_context(dask.config.set(patience))
            # No memory limit: it would not see the kernels, the workers' children.
            limits = {"threads_per_worker": 1, "memory_limit": 0}
            place = distributed.LocalCluster(
                n_workers=work.jobs, dashboard_address="127.0.0.1:0", **limits
            )
            stack.enter_context(place)
        try:
            client = stack.enter_context(distributed.Client(place))
        except (OSError, ValueError) as error:
            raise RunError(f"no Dask scheduler answers at {place}: {error}") from error
        # Several items in one process would share its environment.
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
            if worker["nthreads"] != 1:
                raise RunError(
                    f"the worker {address} has {worker['nthreads']} threads; start workers with "
                    "one (dask worker --nthreads 1) and more of them"
                )
        yield client.get_executor(pure=False)  # never shared with another experiment's
