"""Experiment trackers behind one `log(dict)`; `metrics.jsonl` is written in any case.

The setting `tracker` chooses `tensorboard`, `wandb` (Weights & Biases) or `trackio`; `none` is the
default. A tracker is a guest: its package is imported by the first record and nothing is sent
anywhere unless its own environment variables say so. Whatever goes wrong with it prints one line,
switches it off for the rest of the process and never stops a run.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hjepa_lib.runs.metrics_log import json_ready

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What a tracker must be able to do; either method may fail in any way."""

    def write(self, stage: str, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """The tracker of one run in this process, opened by the first record."""

    def __init__(self, kind: str, name: str, folder: Path, settings: dict[str, Any]) -> None:
        self.kind, self.name, self.folder, self.settings = kind, name, folder, settings
        self._sink: Sink | None = None

    def log(self, record: dict[str, Any]) -> None:
        """Hand on the numbers of a record {"stage", "step", key: value, ...}; never raises."""
        if self.kind == "none":
            return
        values = {key: json_ready(value) for key, value in record.items()}
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
            reason += f"; pip install 'hjepa-lib[{self.kind}]'"
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
        axes = {f"{stage}/*": f"{stage}/step"}  # every stage counts its own steps
        axes |= {f"{stage}/{key}": f"{stage}/{axis}" for key, axis in epoch_axes(values).items()}
        for key, axis in axes.items():
            if key not in self.axes:
                self.run.define_metric(key, step_metric=axis)
                self.axes[key] = axis
        self.run.log({f"{stage}/step": step} | _with_stage(stage, values))

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A database in trackio's own folder (TRACKIO_DIR): look with `trackio show`."""

    def __init__(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        import trackio

        self.run = trackio.init(
            project=settings["tracking.project"],
            name=name,
            config=settings,
            resume="allow",
            embed=False,
        )

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.run.log(_with_stage(stage, values), step=step)

    def close(self) -> None:
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


def _with_stage(stage: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{stage}/{key}": value for key, value in values.items()}


SINKS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
