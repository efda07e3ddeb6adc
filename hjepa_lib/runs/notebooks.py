"""Runs notebooks headless through papermill's Python API, with the checks papermill lacks.

Executed copies go to `<run>/notebooks/` (`.running` while at work, `.failed` after an error). A
notebook that ended well is skipped on resume as long as its source is unchanged and nothing before
it was run again.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hjepa_lib.config import Config
from hjepa_lib.files import WorkbookError, first_line, sha256, write_json
from hjepa_lib.runs import machine
from hjepa_lib.runs.places import RunError, outputs_root, repository
from hjepa_lib.runs.run import Run

Say = Callable[..., None]
"""Something with the signature of `print`."""


class NotebookFailed(WorkbookError):
    """A notebook raised an error; the message names the notebook, the error and the kept copy."""


MINUTES = {
    "smoke": {"01": 0.2, "02": 0.4, "03": 0.3, "04": 0.5, "05": 0.4, "07": 0.7, "08": 0.7},
    "laptop": {
        "01": 0.2, "02": 6.6, "03": 1.3, "04": 4, "05": 0.3, "06": 0.5, "07": 17, "08": 19,
        "10": 0.8, "11": 12, "12": 8, "13": 20, "14": 6, "15": 9,
    },
}  # fmt: skip
"""Measured on 2 cores with AVX-512 and bf16 (twice as long without), settings unchanged."""
MEGABYTES = {"smoke": 100, "laptop": 500, "full": 3_000}
"""What a run may need on the disk."""


def select_notebooks(text: str, folder: Path | None = None) -> list[Path]:
    """Notebook files for "01-05", "2" or "01,03-04"; a range takes those of it that exist.

    RunError when a number has no notebook, or two.
    """
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


def inspect_notebook(path: Path, parameters: dict[str, Any]) -> None:
    """RunError unless `path` has exactly one `parameters` cell that knows all `parameters` (N2).

    papermill only warns of unknown ones, and without such a cell it silently runs the defaults.
    """
    try:
        import nbformat
        import papermill  # noqa: F401 - what runs them is looked for before anything starts
    except ImportError as error:
        raise RunError(
            "running notebooks needs papermill: pip install papermill ipykernel nbformat"
        ) from error
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:
        raise RunError(f"{path} is not a readable notebook: {error}") from error
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise RunError(
            f"{path.name} has {len(tagged)} cells tagged 'parameters'; exactly one is needed"
        )
    try:
        nodes = [*ast.walk(ast.parse(tagged[0].source))]
    except SyntaxError as error:
        raise RunError(f"the parameters cell of {path.name} is no valid Python: {error}") from error
    stores = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    if unknown := parameters.keys() - {getattr(node, "id", "") for node in stores}:
        raise RunError(f"{path.name} has no parameter named {min(unknown)!r}")


def prepare(config: Config, notebooks: list[Path], *, say: Say = print, yes: bool = False) -> None:
    """Check every notebook and print what the run may take, before anything is created.

    RunError when the disk is too full, or when the `full` profile would run on a CPU without `yes`.
    """
    for path in notebooks:
        inspect_notebook(path, {"run": ""})
    device, size = machine.choose_device(config.device), MEGABYTES[config.profile]
    known = MINUTES.get(config.profile, {})
    minutes = sum(known.get(path.name[:2], 0) for path in notebooks)
    text = f"about {describe(minutes)} and" if minutes and device == "cpu" else ""
    say(f"profile {config.profile} on {device}: {text} {size} MB for {len(notebooks)} notebooks")
    if config.profile == "full" and device == "cpu" and not yes:
        raise RunError(
            "profile full is meant for a GPU and takes days on a CPU; add --yes to start"
        )
    root = outputs_root()
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e6
    if free < size and not yes:
        raise RunError(f"the run needs about {size} MB of disk, only {free:.0f} MB are free")


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    *,
    resume: bool = False,
    threads: int | None = None,
    say: Say = print,
) -> None:
    """Execute `notebooks` in `run`, one progress line each; NotebookFailed at the first error."""
    for path in notebooks:
        entry = run.manifest["notebooks"].get(path.stem, {})
        resume = resume and entry.get("source_sha256") == sha256(path)
        if resume and (run.path / "notebooks" / path.name).is_file():
            say(f"{path.stem:<20} done before")
            continue
        resume = False  # what follows is run again as well
        say(f"{path.stem:<20} ", end="", flush=True)
        start = time.perf_counter()
        try:
            with _kernel_environment(run, threads):
                _execute(run, path)
        except BaseException as error:
            word = "failed" if isinstance(error, NotebookFailed) else "interrupted"
            say(f"{word} after {describe((time.perf_counter() - start) / 60)}")
            raise
        seconds = time.perf_counter() - start
        entry = {"ok": True, "source_sha256": sha256(path), "seconds": round(seconds, 1)}
        run.note(path.stem, entry, "notebooks")
        say(f"ok in {describe(seconds / 60)}")


def finish(run: Run, say: Say = print) -> Path:
    """Write `summary.json` and `report.html` from the results on disk; returns the latter."""
    from hjepa_lib.evaluation.results import collect
    from hjepa_lib.runs.report import build_summary, write_report

    run.reload()
    summary = build_summary(run, collect(run.path / "results"))
    say(f"summary: {write_json(run.path / 'summary.json', summary)}")
    path = write_report(run)
    run.publish()
    say(f"report:  {path}")
    return path


def describe(minutes: float) -> str:
    """ "40 seconds", "22 minutes", "6.5 hours", "7 days"."""
    if minutes < 1.5:
        return f"{max(1, round(minutes * 60))} seconds"
    if minutes < 100:
        return f"{minutes:.0f} minutes"
    hours = minutes / 60
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"


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
            cwd=str(repository()),
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
    """What the kernel inherits: headless mode, the outputs root, the library, the threads."""
    before, library = dict(os.environ), str(Path(__file__).resolve().parents[2])
    os.environ |= {
        "HJEPA_HEADLESS": "1",
        "HJEPA_OUTPUTS": str(run.path.parents[run.name.count("/")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")])),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if threads:
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before
