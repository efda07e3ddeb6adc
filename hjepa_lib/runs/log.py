"""Training curves: `metrics.jsonl`, always, and an experiment tracker where the settings name one.

metrics.jsonl has one JSON object per line: `stage`, `step` and values. A half-written last line is
ignored by readers and cut off by the next writer.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hjepa_lib.files import FileError, first_line, plain, write_atomic

log = logging.getLogger(__name__)


class MetricsLog:
    """The metrics file of one run; one writing process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[tuple[str, int, str]] | None = None  # (stage, step, key)

    def log(self, record: dict[str, Any]) -> None:
        """Append {"stage", "step", key: value, ...} of Python, numpy or 0-d torch values.

        NaN becomes null. FileError when a key has a value there already (PL6).
        """
        if self._seen is None:
            self._heal()
            self._seen = {name for row in self.records() for name in _names(row)}
        row = plain(record)
        for stage, step, key in sorted(_names(row) & self._seen):
            raise FileError(f"metric {key!r} of {stage} step {step} is written twice")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            self._seen = None  # the line may be half written: cut it off before the next one
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._seen |= _names(row)

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Whole lines as dictionaries, of one stage if given; [] when there is no file yet."""
        if not self.path.is_file():
            return []
        *lines, _partial = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            rows = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise FileError(f"{self.path}: {error.doc[:40]!r} is not valid JSON") from error
        return [row for row in rows if stage is None or row["stage"] == stage]

    def rewind(self, stage: str, step: int = -1) -> None:
        """Drop the records of `stage` above `step` (-1: all of them) and a half-written last line.

        So a resumed training leaves the same file as an uninterrupted one (PL8).
        """
        if self.path.is_file():
            kept = [row for row in self.records() if row["stage"] != stage or row["step"] <= step]
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            write_atomic(self.path, text)
        self._seen = None

    def _heal(self) -> None:
        """Cut off a last line without its newline; a file of whole lines is not touched."""
        if self.path.is_file():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                write_atomic(self.path, data[: data.rfind(b"\n") + 1])


def _names(row: dict[str, Any]) -> set[tuple[str, int, str]]:
    return {(row["stage"], row["step"], key) for key in row.keys() - {"stage", "step"}}


class Tracker:
    """The tracker of one run in this process, opened by the first record.

    A guest: whatever goes wrong with it prints one line, switches it off and never stops a run.
    """

    def __init__(self, kind: str, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.kind, self.name, self.folder, self.settings = kind, name, folder, settings
        self._sink: Any = None

    def log(self, record: dict[str, Any]) -> None:
        """Hand on the numbers of a record {"stage", "step", key: value, ...}; never raises."""
        if self.kind == "none":
            return
        values = plain(record)
        stage, step = values.pop("stage"), values.pop("step")
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        with self._guest():
            if self._sink is None:
                self._sink = SINKS[self.kind](self.name, self.folder, self.settings)
                atexit.register(self.close)
            self._sink.write(stage, step, numbers)

    def close(self) -> None:
        """Let the tracker finish what it still holds; done at the end of the process."""
        atexit.unregister(self.close)
        sink, self._sink = self._sink, None
        if sink is not None:
            with self._guest():
                sink.close()

    @contextlib.contextmanager
    def _guest(self) -> Iterator[None]:
        """Its greetings are not shown; its first error switches it off."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except (Exception, SystemExit) as error:
            reason, advice = first_line(error), f"; pip install {self.kind}"
            log.warning(
                "tracker %s is off from here on (metrics.jsonl is not): %s%s",
                self.kind, reason, advice if isinstance(error, ImportError) else "",
            )  # fmt: skip
            self.kind, self._sink = "none", None
            atexit.unregister(self.close)


class TensorBoard:
    """Event files in `<run>/tracker/<stage>/`: look with `tensorboard --logdir outputs`."""

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.make, self.folder = SummaryWriter, folder
        self.writers: dict[str, Any] = {}
        self.last: dict[str, int] = {}

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Add the values at `step` to the stage's events."""
        if step <= self.last.get(stage, step):  # first, or begun again after an interruption
            if stage in self.writers:
                self.writers[stage].close()
            # Hides what an earlier attempt wrote from this step on.
            self.writers[stage] = self.make(str(self.folder / stage), purge_step=step)
        for key, value in values.items():
            self.writers[stage].add_scalar(key, value, step)
        self.writers[stage].flush()
        self.last[stage] = step

    def close(self) -> None:
        """Finish the event files."""
        for writer in self.writers.values():
            writer.close()


class WeightsAndBiases:
    """Files in `<run>/tracker/wandb/`, one W&B run per process, grouped by run.

    Offline unless WANDB_MODE says otherwise: nobody is asked to log in in the middle of a run.
    """

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", settings["tracking.project"]),
            entity=settings["tracking.entity"] or None,
            name=name,
            group=name,
            dir=str(folder),
            config=settings,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        self.axes: dict[str, str] = {}

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Log the values at the stage's own step; what is measured once an epoch over epochs."""
        for key, axis in {"*": "step", **epoch_axes(values)}.items():
            if f"{stage}/{key}" not in self.axes:
                self.axes[f"{stage}/{key}"] = axis
                self.run.define_metric(f"{stage}/{key}", step_metric=f"{stage}/{axis}")
        self.run.log({f"{stage}/{key}": value for key, value in {"step": step, **values}.items()})

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


def epoch_axes(values: Mapping[str, float]) -> dict[str, str]:
    """{key: key of its epoch}: the keys with a part that starts with "val" or ends in "epoch_avg".

    Their axis is the record's "epoch", under the longest prefix of the key that has one.
    """
    axes = {}
    for key in values:
        parts = key.split("/")
        prefixes = ["/".join([*parts[:depth], "epoch"]) for depth in range(len(parts))]
        found = [axis for axis in prefixes if axis in values]
        if found and any(part.startswith("val") or part.endswith("epoch_avg") for part in parts):
            axes[key] = found[-1]
    return axes


SINKS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
