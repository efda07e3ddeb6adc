"""One table of an experiment, row by row under a lock, and what is still to do.

Rows stay text, so adding one never rewrites the numbers of another. The settings of every training
stand once in a JSON file beside the table, under the digest that the rows name.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.config import flatten, profile
from hjepa_lib.files import FileError, exclusive, read_json, sha256, write_atomic, write_json
from hjepa_lib.workbench.experiment import Cell, Experiment, Unit

KEY = ("cell", "model", "seed", "budget", "grid")


class Table:
    """Rows as text, and the settings of their trainings by digest."""

    def __init__(self, path: Path, name: str = "laptop") -> None:
        """A setting that is younger than a row counts there with its value in profile `name`."""
        self.path = path
        self.settings_path = path.with_name(f"{path.stem}_trainings.json")
        defaults = flatten(profile(name))
        self._defaults = {**defaults, "world": defaults["data.source"]}
        for key, value in defaults.items():
            self._defaults[key.replace("planning.", "planner.", 1)] = value
        self.reload()

    @classmethod
    def of_experiment(cls, experiment: Experiment) -> Table:
        """The table of an experiment as it is on disk."""
        return cls(experiment.table, experiment.base.get("profile", "laptop"))

    def reload(self) -> None:
        """Read both files again; FileError when the table is none of ours."""
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.trainings: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            reader = csv.DictReader(io.StringIO(self.path.read_text()))
            self.columns, self.rows = list(reader.fieldnames or ()), list(reader)
            if absent := [name for name in (*KEY[:3], "training") if name not in self.columns]:
                raise FileError(
                    f"{self.path} is no table of an experiment: column {absent[0]!r} is missing"
                )
        if self.settings_path.is_file():
            self.trainings = read_json(self.settings_path)

    def of(self, unit: Unit) -> list[dict[str, str]]:
        """The stored rows of a unit: one of a planner, any number of notebooks or a function."""
        wanted = unit.key.items()
        return [row for row in self.rows if all(row[name] == text for name, text in wanted)]

    def mismatch(self, unit: Unit) -> str | None:
        """How the stored rows differ from what is wanted, "" if not at all; None without any."""
        rows = self.of(unit)
        if not rows:
            return None
        wanted = unit.training()
        for row in rows:
            known = self.trainings.get(row["training"], {})
            pairs = [
                (name, row.get(name) or self._defaults.get(name), value)
                for name, value in unit.identity().items()
            ]
            if row["training"] != digest(wanted):
                if wanted and not known:
                    return f"a training that {self.settings_path.name} does not list"
                for name, value in wanted.items():
                    younger = 1 if name.startswith("recipe.") else self._defaults.get(name)
                    pairs.append((name, known.get(name, younger), value))
            for name, stored, value in pairs:
                if as_text(stored) != as_text(value):
                    return f"{name}={as_text(stored)}, not {as_text(value)}"
        return ""

    def has(self, unit: Unit) -> bool:
        """True when the unit is stored as wanted."""
        return self.mismatch(unit) == ""

    def add(self, unit: Unit, rows: Iterable[dict[str, Any]]) -> None:
        """Put the rows of a unit in the place of those it had; whole, or not at all."""
        training = unit.training()
        about = unit.key | {"training": digest(training)}
        with exclusive(self.path):  # several processes write one table
            self.reload()
            if training and about["training"] not in self.trainings:
                self.trainings[about["training"]] = training
                write_json(self.settings_path, self.trainings)
            old = self.of(unit)
            new = [{k: as_text(v) for k, v in (about | row | about).items()} for row in rows]
            at = self.rows.index(old[0]) if old else len(self.rows)
            self.rows = [row for row in self.rows if row not in old]
            self.rows[at:at] = new
            self.columns = list(dict.fromkeys(itertools.chain(self.columns, KEY, *new)))
            self._write()

    def drop_others(self, cells: Iterable[str], wanted: Iterable[Unit]) -> int:
        """Remove rows of these cells that belong to no wanted unit; returns how many."""
        with exclusive(self.path):
            self.reload()
            before = len(self.rows)
            keep = [id(row) for unit in wanted for row in self.of(unit)]
            self.rows = [row for row in self.rows if row["cell"] not in cells or id(row) in keep]
            if len(self.rows) < before:
                self._write()
        return before - len(self.rows)

    def _write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, buffer.getvalue())


def as_text(value: Any) -> str:
    """One CSV field: undefined values are empty, lists joined by +."""
    if value is None or value != value:
        return ""
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def digest(settings: dict[str, Any]) -> str:
    """Short name of a training's settings; "" for none."""
    return sha256(json.dumps(settings, sort_keys=True).encode())[:12] if settings else ""


# --- planning the work ------------------------------------------------------------------------
class Line(NamedTuple):
    """One cell of the list: what is done and what the rest may cost."""

    cell: Cell
    done: int
    units: int
    minutes: float  # trainings not yet counted included
    total: float  # up to here


def list_cells(experiment: Experiment, cells: list[Cell], table: Table) -> list[Line]:
    """Cells in their order with the time that is left; a training counts where it comes first."""
    lines, total, counted = [], 0.0, set()
    models = {model.title: model for model in experiment.models}
    for cell in cells:
        units = experiment.units(cell)
        missing = [unit for unit in units if not table.has(unit)]
        minutes = cell.minutes * len(cell.seeds) * len(missing) / len(units)
        for unit in missing:
            model = unit.model
            while model.name and (model.title, unit.seed) not in counted:
                counted.add((model.title, unit.seed))
                stored = experiment.folder.glob(f"{model.title}-s{unit.seed}-*/manifest.json")
                minutes += 0 if any(stored) else model.minutes
                model = models.get(model.parent, model)
        total += minutes
        lines.append(Line(cell, len(units) - len(missing), len(units), minutes, total))
    return lines


def describe_list(lines: list[Line]) -> str:
    """The list as a text table."""
    row = "{:<34}{:<18}{:<16}{:>9}{:>10}{:>9}".format
    out = [row("cell", "group", "model", "rows", "minutes", "sum")]
    for cell, done, units, *minutes in lines:
        spent = (f"{one:.1f}" for one in minutes)
        out.append(row(cell.name, cell.group, cell.model or "-", f"{done}/{units}", *spent))
    done, units = (sum(getattr(line, name) for line in lines) for name in ("done", "units"))
    left = f"{lines[-1].total / 60:.1f} hours" if lines and lines[-1].total else "nothing"
    return "\n".join([*out, f"{done} of {units} rows done; left on one process: {left}"])
