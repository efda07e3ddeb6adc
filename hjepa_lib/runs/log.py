"""Training curves: `metrics.jsonl`, always, and an experiment tracker where the settings name one.

metrics.jsonl has one JSON object per line: `stage`, `step` and values.
"""

import contextlib
import datetime
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

from hjepa_lib.files import exclusive, first_line, plain, told, write_atomic

log = logging.getLogger(__name__)


class MetricsLog:
    """The metrics file of one run, written under its lock.

    A half-written last line is ignored by readers and cut off by `rewind`, which begins a training.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, record: dict[str, Any]) -> None:
        """Append {"stage", "step", key: value, ...} of Python, numpy or 0-d torch values.

        NaN becomes null.
        """
        line = json.dumps(plain(record), allow_nan=False) + "\n"
        with exclusive(self.path), told(self.path, doing="write"), self.path.open("a") as file:
            file.write(line)

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Whole lines as dictionaries, of one stage if given; [] when there is no file yet."""
        if not self.path.is_file():
            return []
        *lines, _partial = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        with told(self.path, "valid JSON lines"):
            rows = [json.loads(line) for line in lines]
        return [row for row in rows if stage is None or row["stage"] == stage]

    def rewind(self, stage: str, step: int = -1) -> None:
        """Drop the records of `stage` above `step` (-1: all of them) and a half-written last line.

        So a resumed training leaves the same file as an uninterrupted one (PL8).
        """
        if self.path.is_file():
            with exclusive(self.path):
                rows = self.records()
                kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
                text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
                write_atomic(self.path, text)


class Tracker:
    """Sends a run's numbers to the experiment tracker that the setting `tracker` names.

    `sink` is made by the first record. A guest: whatever goes wrong with it prints one line,
    switches it off and never stops a run.
    """

    def __init__(self, folder: Path, run: str, created: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, run, settings
        self.kind, prefix = settings["tracker"], settings["tracking.run_name_prefix"]
        if prefix:
            started = datetime.datetime.fromisoformat(created)
            self.name = f"{prefix}-{started:%Y%m%d-%H%M%S}"
        self.sink: TensorBoard | WeightsAndBiases | None = None

    def log(self, record: dict[str, Any]) -> None:
        """Hand on the numbers of a record {"stage", "step", key: value, ...}; never raises."""
        if self.kind == "none":
            return
        values = plain(record)
        stage = values.pop("stage")
        numbers = {k: one for k, one in values.items() if isinstance(one, (int, float))}
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its greetings are not shown
                if self.sink is None:
                    self.sink = SINKS[self.kind](self.folder, self.name, self.settings)
                self.sink.write(stage, numbers)
        except (Exception, SystemExit) as error:
            advice = f"; pip install {self.kind}" if isinstance(error, ImportError) else ""
            log.warning(
                "tracker %s is off from here on (metrics.jsonl is not): %s%s",
                self.kind, first_line(error), advice,
            )  # fmt: skip
            self.kind, self.sink = "none", None


class TensorBoard:
    """Event files in `<run>/tracker/<stage>/`: look with `tensorboard --logdir outputs`."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.make, self.folder = SummaryWriter, folder
        self.writers: dict[str, Any] = {}
        self.last: dict[str, int] = {}

    def write(self, stage: str, numbers: dict[str, float]) -> None:
        """Add the numbers at their step; what an earlier attempt wrote from there on is hidden."""
        step = numbers.pop("step")
        if step <= self.last.get(stage, step):
            self.writers[stage] = self.make(str(self.folder / stage), purge_step=step)
        for key, value in numbers.items():
            self.writers[stage].add_scalar(key, value, step)
        self.writers[stage].flush()
        self.last[stage] = step


class WeightsAndBiases:
    """Files in `<run>/tracker/wandb/`: a W&B run per process of a run, grouped by run.

    Offline unless WANDB_MODE says otherwise: nobody is asked to log in in the middle of a run.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
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
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        self.stages: set[str] = set()

    def write(self, stage: str, numbers: dict[str, float]) -> None:
        """Log the numbers over the stage's own step."""
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/{key}": value for key, value in numbers.items()})


SINKS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
