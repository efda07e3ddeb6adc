"""One pool: `work(item)` in processes here (joblib), or on Dask workers here or elsewhere.

joblib stops when a worker process dies. Dask gives the dead worker's item to another one, up to
three times; and a worker that only lost its connection may still be at it, so `work` takes an
exclusive lock and looks whether there is anything left to do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool

from hjepa_lib.config import ConfigError
from hjepa_lib.runs.places import RunError

ENGINES = ("joblib", "dask")
Work = Callable[[Any], Any]


class Ended(NamedTuple):
    """One item; `error` says why there is no value, and is empty when there is one."""

    item: Any
    value: Any
    error: str


def check_engine(engine: str, jobs: int, scheduler: str) -> None:
    """ConfigError or RunError, one sentence, when the choice cannot work here."""
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
    if scheduler and engine != "dask":
        raise ConfigError(f"a scheduler address needs the engine dask, not {engine}")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    if engine == "dask":
        _import_distributed()


def run_all(
    work: Work, items: Sequence[Any], *, engine: str = "joblib", jobs: int = 1, scheduler: str = ""
) -> Iterator[Ended]:
    """Yield one `Ended` per item, first come first served.

    `jobs` counts processes on this machine; with a `scheduler` (its address, such as
    tcp://host:8786) the workers that it has, or gets while this runs, do the work.
    """
    check_engine(engine, jobs, scheduler)
    call = functools.partial(_call, work)
    if engine == "dask":
        with _client(jobs, scheduler) as client:
            yield from _with_dask(client, call, items)
        return
    try:
        pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield from pool(joblib.delayed(call)(item) for item in items)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed, perhaps for lack of memory; go on with fewer jobs, or "
            "with the engine dask, which gives its work to another one"
        ) from error


def _call(work: Work, item: Any) -> Ended:
    return Ended(item, work(item), "")


# --- Dask -------------------------------------------------------------------------------------
@contextlib.contextmanager
def _client(jobs: int, scheduler: str) -> Iterator[Any]:
    """A client of the scheduler, or of a cluster of `jobs` worker processes that ends with it."""
    distributed = _import_distributed()
    if scheduler:
        try:
            client = distributed.Client(scheduler)
        except (OSError, ValueError) as error:
            raise RunError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            _check_workers(client)
            yield client
        return
    import dask

    with (
        # A worker that died is started again, which may take its time on a busy machine; after 15
        # seconds, Dask's own patience, it would be missing for good.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"}),
        # The memory is that of the kernels, children of the workers: Dask's own limit sees none.
        distributed.LocalCluster(
            n_workers=jobs, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def _check_workers(client: Any) -> None:
    """RunError when a worker would run several items in one process: they share its environment."""
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        if worker["nthreads"] != 1:
            raise RunError(
                f"the worker {address} has {worker['nthreads']} threads; start workers with one "
                "(dask worker --nthreads 1) and more of them"
            )


def _with_dask(client: Any, call: Work, items: Sequence[Any]) -> Iterator[Ended]:
    suspects = []
    for ended, killed in _submit(client, call, items):
        if killed:
            suspects.append(ended.item)
        else:
            yield ended
    # Dask blames an item that only waited for a worker as well when that one dies: alone, the
    # innocent ones succeed.
    for item in suspects:
        for ended, _ in _submit(client, call, [item]):
            yield ended


def _submit(client: Any, call: Work, items: Sequence[Any]) -> Iterator[tuple[Ended, bool]]:
    """(Outcome, whether its workers died) of every item."""
    distributed = _import_distributed()
    futures = client.map(call, items, pure=False)  # never shared with another sweep's
    places = {future.key: item for future, item in zip(futures, items, strict=True)}
    for future in distributed.as_completed(futures):
        item, killed = places[future.key], False
        if future.status == "finished":
            ended = future.result()
        elif future.status == "error":
            error = future.exception()
            killed = isinstance(error, distributed.KilledWorker)
            reason = "every worker that took it died" if killed else str(error).split("\n")[0]
            ended = Ended(item, None, reason or type(error).__name__)
        else:
            ended = Ended(item, None, f"Dask gave it up ({future.status})")
        future.release()
        yield ended, killed


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise RunError("the engine dask needs: pip install -e '.[cluster]'") from error
    return distributed
