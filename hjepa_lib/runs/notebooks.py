"""Runs notebooks headless through papermill, with the checks that it lacks.

Executed copies go to `<run>/notebooks/` (`.running` while at work, `.failed` after an error).
"""

import ast
import contextlib
import datetime
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hjepa_lib.config import Config
from hjepa_lib.files import WorkbookError, extra, first_line, plain, sha256, told, write_json
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import RunError, repository
from hjepa_lib.runs.run import Run

Say = Callable[..., None]
"""Something with the signature of `print`."""


class NotebookFailed(WorkbookError):
    """A notebook raised an error; the message names it, the error and the kept copy."""


def select_notebooks(text: str, folder: Path | None = None) -> list[Path]:
    """Files for "01-05", "2" or "01,03-04"; RunError when a number or range has none, or two."""
    files = sorted((folder or repository() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    known = f"there are: {', '.join(path.stem for path in files) or 'none'}"
    chosen: dict[int, Path] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        if not match:
            raise RunError(f"notebooks {text!r} is not like 01-05 or 01,03; {known}")
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
        found = [path for path in files if int(path.name[:2]) in numbers]
        if not found:
            raise RunError(f"there is no notebook {part.strip()}; {known}")
        for path in found:
            other = chosen.setdefault(int(path.name[:2]), path)
            if other != path:
                raise RunError(
                    f"{other.stem} and {path.stem} have one number; move one of them away"
                )
    return [chosen[number] for number in sorted(chosen)]


def inspect_notebook(path: Path) -> None:
    """RunError unless `path` has exactly one `parameters` cell, which knows `run` (N2).

    papermill warns of unknown ones, and without such a cell it silently runs the defaults.
    """
    extra("papermill")  # what runs them is looked for before anything starts
    import nbformat  # comes with it

    with told(path, "a notebook with readable parameters"):
        cells = nbformat.read(path, as_version=4).cells
        tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        nodes = [node for source in tagged for node in ast.walk(ast.parse(source))]
    if len(tagged) != 1:
        raise RunError(
            f"{path.name} has {len(tagged)} cells tagged 'parameters'; exactly one is needed"
        )
    stores = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    if "run" not in (getattr(node, "id", "") for node in stores):
        raise RunError(f"{path.name} has no parameter named 'run'")


def prepare(config: Config, notebooks: Iterable[Path], yes: bool = False) -> None:
    """Inspect every notebook; RunError for the profile `full` on a CPU without `yes`."""
    for path in notebooks:
        inspect_notebook(path)
    if config.profile == "full" and not yes and machine.choose_device(config.device) == "cpu":
        raise RunError(
            "profile full is meant for a GPU and takes days on a CPU; add --yes to start"
        )


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    *,
    resume: bool = False,
    threads: int | None = None,
    say: Say = print,
) -> None:
    """Execute `notebooks` in `run`, one line each; NotebookFailed at the first error.

    `resume` skips what ended well, up to the first whose source has changed.
    """
    before = list(itertools.takewhile(functools.partial(_ended, run), notebooks if resume else ()))
    for path in before:
        say(f"{path.stem:<20} done before")
    left = notebooks[len(before) :]
    for path in left:  # all that follow are run again, even if this ends before it comes to them
        run.note(path.stem, None, "notebooks")
    for path in left:
        say(f"{path.stem:<20} ", end="", flush=True)
        start = time.perf_counter()
        try:
            with _kernel_environment(run, threads):
                _execute(run, path)
        except BaseException as error:
            word = "failed" if isinstance(error, NotebookFailed) else "interrupted"
            say(f"{word} after {since(start)}")
            raise
        seconds = round(time.perf_counter() - start, 1)
        entry = {"ok": True, "source_sha256": sha256(path), "seconds": seconds}
        run.note(path.stem, entry, "notebooks")
        say(f"ok in {since(start)}")


def _ended(run: Run, path: Path) -> bool:
    entry = run.manifest["notebooks"].get(path.stem, {})
    copy = run.path / "notebooks" / path.name
    return copy.is_file() and entry.get("source_sha256") == sha256(path)


def finish(run: Run, say: Say = print) -> Path:
    """Write `summary.json` and `report.html` from the results on disk; returns the latter.

    The page is written before a damaged result ends it (S9).
    """
    from hjepa_lib.runs.report import build_summary, keep_tuned, played, write_report

    run.reload()
    results = []
    try:
        results = plain([one.row for one in played(run)])
        keep_tuned(run, results)
        summary = build_summary(run, results)
        say(f"summary: {write_json(run.path / 'summary.json', summary)}")
    finally:
        path = write_report(run, results)
        run.publish()
        say(f"report:  {path}")
    return path


def since(start: float) -> str:
    """Hours, minutes and seconds since `start` (of perf_counter): "0:06:36"."""
    return str(datetime.timedelta(seconds=round(time.perf_counter() - start)))


def _execute(run: Run, path: Path) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    running = run.folder("notebooks") / f"{path.stem}.running.ipynb"
    failed = running.with_name(f"{path.stem}.failed.ipynb")
    try:
        papermill.execute_notebook(
            str(path),
            str(running),
            parameters={"run": run.name},  # which holds the settings
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,  # many kernels at once start slowly
            coalesce_streams=True,  # a progress bar leaves one line, not one per refresh
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own warnings are not ours
        )
    except Exception as error:  # also of a kernel that died, for example for lack of memory
        where, what = "", f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, PapermillExecutionError):
            reason = (error.evalue.strip().splitlines() or [""])[0]
            where, what = f" at In [{error.exec_count}]", f"{error.ename}: {reason}"
        if running.exists():
            os.replace(running, failed)
            what += f" (kept: {failed})"
        raise NotebookFailed(f"{path.stem} failed{where}: {what}") from error
    os.replace(running, running.with_name(path.name))
    failed.unlink(missing_ok=True)


@contextlib.contextmanager
def _kernel_environment(run: Run, threads: int | None) -> Iterator[None]:
    """What the kernel inherits."""
    before, library = dict(os.environ), str(Path(__file__).resolve().parents[2])
    os.environ |= {
        "HJEPA_HEADLESS": "1",
        "HJEPA_OUTPUTS": str(run.path.parents[run.name.count("/")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [library, before.get("PYTHONPATH")])),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if threads:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
