"""One pool: `work(item)` in processes here (joblib), or on Dask workers here or elsewhere.

joblib stops when a worker process dies. Dask tries its item elsewhere, up to three times; a worker
that only lost its connection may still be at it, so `work` has to take a lock.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from typing import Any, NamedTuple

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


def check_engine(engine: str, jobs: int, scheduler: str) -> None:
    """ConfigError or RunError, one sentence, when the choice cannot work here."""
    if scheduler and engine != "dask":
        raise ConfigError(f"a scheduler address needs the engine dask, not {engine}")
    if engine not in ("joblib", "dask"):
        raise ConfigError(f"engine must be joblib or dask, got {engine!r}")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    if engine == "dask":
        extra("distributed")


def run_all(
    work: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    engine: str = "joblib",
    jobs: int = 1,
    scheduler: str = "",
) -> Iterator[Ended]:
    """Yield one `Ended` per item, first come first served.

    `jobs` processes here, or the workers of a `scheduler` (its address, such as tcp://host:8786).
    """
    check_engine(engine, jobs, scheduler)
    suspects = []
    with _processes(jobs) if engine == "joblib" else _dask(jobs, scheduler) as pool:
        for ended in _submit(pool, work, items):
            if ended.error == _KILLED:
                suspects.append(ended.item)
            else:
                yield ended
        # Dask also blames what only waited for the dead worker: alone, the innocent succeed.
        for item in suspects:
            yield from _submit(pool, work, [item])


def _submit(pool: Executor, work: Callable, items: Sequence[Any]) -> Iterator[Ended]:
    futures = {pool.submit(work, item): item for item in items}
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
def _processes(jobs: int) -> Iterator[Executor]:
    """They end with it, whatever they are at; each has its share of BLAS threads."""
    share = str(max(1, machine.usable_cores() // jobs))
    names = ParallelBackendBase.MAX_NUM_THREADS_VARS  # what the environment says is kept
    pool = ProcessPoolExecutor(jobs, env={name: os.environ.get(name, share) for name in names})
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


@contextlib.contextmanager
def _dask(jobs: int, scheduler: str) -> Iterator[Executor]:
    """The scheduler's workers, or `jobs` worker processes that end with it."""
    import dask
    import distributed

    with contextlib.ExitStack() as stack:
        if not scheduler:
            # A dead worker's successor may take longer on a busy machine than Dask's 15 seconds.
            patience = {"distributed.deploy.lost-worker-timeout": "10 minutes"}
            stack.enter_context(dask.config.set(patience))
            # No memory limit: it would not see the kernels, the workers' children.
            limits = {"threads_per_worker": 1, "memory_limit": 0}
            cluster = distributed.LocalCluster(
                n_workers=jobs, dashboard_address="127.0.0.1:0", **limits
            )
            stack.enter_context(cluster)
        try:
            client = stack.enter_context(distributed.Client(scheduler or cluster))
        except (OSError, ValueError) as error:
            raise RunError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        # Several items in one process would share its environment.
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
            if worker["nthreads"] != 1:
                raise RunError(
                    f"the worker {address} has {worker['nthreads']} threads; start workers with "
                    "one (dask worker --nthreads 1) and more of them"
                )
        yield client.get_executor(pure=False)  # never shared with another experiment's
