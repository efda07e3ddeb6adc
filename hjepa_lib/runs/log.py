"""Training curves: `metrics.jsonl`, always, and an experiment tracker where the settings name one.

metrics.jsonl has one JSON object per line: `stage`, `step` and values. A half-written last line,
left by `kill -9` or a full disk, is ignored by readers and cut off by the next writer; `rewind`
drops what came after a checkpoint, so that a resumed training leaves the same file (PL8).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hjepa_lib.files import FileError, plain, write_atomic

log = logging.getLogger(__name__)


class MetricsLog:
    """The metrics file of one run; one writing process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[tuple[str, int], set[str]] | None = None  # keys by (stage, step)

    def log(self, record: dict[str, Any]) -> None:
        """Append one record; numbers may be Python, numpy or 0-d torch values, NaN becomes null.

        FileError when "stage" or "step" is missing, or a key has a value there already (PL6).
        """
        row = plain(record)
        stage, step = row.get("stage"), row.get("step")
        if not isinstance(stage, str) or not isinstance(step, int):
            raise FileError("a metrics record needs a text 'stage' and an integer 'step'")
        if self._seen is None:
            self._heal()
            self._seen = {}
            for old in self.records():
                self._seen.setdefault((old["stage"], old["step"]), set()).update(old)
        known = self._seen.setdefault((stage, step), set())
        if twice := (known & row.keys()) - {"stage", "step"}:
            raise FileError(f"metric {min(twice)!r} of {stage} step {step} is written twice")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            self._seen = None  # the line may be half written: heal before the next one
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
        known.update(row)

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Whole lines as dictionaries, of one stage if given; [] when there is no file yet."""
        if not self.path.is_file():
            return []
        *lines, _partial = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise FileError(f"{self.path} line {number} is not valid JSON") from error
        return [row for row in rows if stage is None or row["stage"] == stage]

    def rewind(self, stage: str, step: int = -1) -> None:
        """Drop the records of `stage` with a step above `step` (-1: all of them)."""
        rows = self.records()
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        if self.path.is_file():
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            write_atomic(self.path, text)
        self._seen = None

    def _heal(self) -> None:
        """Cut off a last line without its newline."""
        if self.path.is_file():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                write_atomic(self.path, data[:whole])


class Tracker:
    """The tracker of one run in this process, opened by the first record.

    A tracker is a guest: nothing is sent anywhere unless its own environment variables say so, and
    whatever goes wrong with it prints one line, switches it off and never stops a run.
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
        try:
            if self._sink is None:
                with contextlib.redirect_stdout(io.StringIO()):  # their greetings
                    self._sink = SINKS[self.kind](self.name, self.folder, self.settings)
                atexit.register(self.close)
            self._sink.write(stage, step, numbers)
        except (Exception, SystemExit) as error:
            self._give_up(error)

    def close(self) -> None:
        """Let the tracker finish what it still holds; done at the end of the process."""
        sink, self._sink = self._sink, None
        if sink is None:
            return
        atexit.unregister(self.close)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                sink.close()
        except (Exception, SystemExit) as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ImportError):
            reason += f"; pip install {self.kind}"
        log.warning("tracker %s is off from here on (metrics.jsonl is not): %s", self.kind, reason)
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

    Offline unless the variable WANDB_MODE says otherwise, so that nobody is asked to log in in the
    middle of a run; `wandb sync` uploads the files later.
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
        axes = {f"{stage}/*": f"{stage}/step"}  # every stage counts its own steps
        axes |= {f"{stage}/{key}": f"{stage}/{axis}" for key, axis in epoch_axes(values).items()}
        for key, axis in axes.items():
            if key not in self.axes:
                self.run.define_metric(key, step_metric=axis)
                self.axes[key] = axis
        self.run.log({f"{stage}/{key}": value for key, value in {"step": step, **values}.items()})

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


def epoch_axes(values: Mapping[str, float]) -> dict[str, str]:
    """{key: key of its epoch} for what is measured once an epoch, such as "JEPA/val/Total_Loss".

    These are the keys with a part that starts with "val" or ends with "epoch_avg"; their axis is
    the record's "epoch", under the longest prefix of the key that has one.
    """
    axes = {}
    for key in values:
        parts = key.split("/")
        if not any(part.startswith("val") or part.endswith("epoch_avg") for part in parts):
            continue
        for depth in range(len(parts) - 1, -1, -1):
            axis = "/".join([*parts[:depth], "epoch"])
            if axis in values:
                axes[key] = axis
                break
    return axes


SINKS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
