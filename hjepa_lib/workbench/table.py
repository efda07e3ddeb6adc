"""One table of an experiment, row by row under a lock, and what is still to do.

Rows stay text, so adding one never rewrites the numbers of another. The settings of every training
stand once in a JSON file beside the table, under the digest that the rows name.
"""

import csv
import io
from collections.abc import Iterable
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from hjepa_lib.config import flatten, profile
from hjepa_lib.files import FileError, exclusive, json_sha256, read_json, write_atomic, write_json
from hjepa_lib.workbench.experiment import Unit

KEY = ("cell", "model", "seed", "budget", "grid")


class Table:
    """Rows as text, and the settings of their trainings by digest."""

    def __init__(self, path: Path, name: str = "laptop") -> None:
        """A setting that is younger than a row counts there with its value in profile `name`."""
        self.path = path
        self.settings_path = path.with_name(f"{path.stem}_trainings.json")
        values = flatten(profile(name))
        planner = {key.replace("planning.", "planner.", 1): one for key, one in values.items()}
        self._defaults = values | planner | {"world": values["data.source"]}
        self.reload()

    def reload(self) -> None:
        """Read both files again; FileError when the table is none of ours."""
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.trainings: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            reader = csv.DictReader(io.StringIO(self.path.read_text()))
            self.columns, self.rows = list(reader.fieldnames or ()), list(reader)
            for name in (*KEY[:3], "training"):
                if name not in self.columns:
                    raise FileError(
                        f"{self.path} is no table of an experiment: column {name!r} is missing"
                    )
        if self.settings_path.is_file():
            self.trainings = read_json(self.settings_path)

    def of(self, unit: Unit) -> list[dict[str, str]]:
        """The stored rows of a unit: one of a planner, any number of notebooks."""
        wanted = unit.key.items()
        return [row for row in self.rows if all(row[name] == text for name, text in wanted)]

    def mismatch(self, unit: Unit) -> str | None:
        """How the stored rows differ from what is wanted, "" if not at all; None without any."""
        rows, wanted = self.of(unit), unit.training()
        for row in rows:
            pairs = [
                (name, row.get(name) or self._defaults.get(name), value)
                for name, value in unit.identity().items()
            ]
            if row["training"] != digest(wanted):
                known = self.trainings.get(row["training"], {})
                if wanted and not known:
                    return f"a training that {self.settings_path.name} does not list"
                for name, value in wanted.items():
                    younger = 1 if name.startswith("recipe.") else self._defaults.get(name)
                    pairs.append((name, known.get(name, younger), value))
            for name, stored, value in pairs:
                if as_text(stored) != as_text(value):
                    return f"{name}={as_text(stored)}, not {as_text(value)}"
        return "" if rows else None

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
            self.columns = list(dict.fromkeys(chain(self.columns, KEY, *new)))
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
    return json_sha256(settings)[:12] if settings else ""


def describe(units: list[Unit], table: Table) -> str:
    """The units cell by cell with what is done of them, as a text table."""
    row = "{:<34}{:<18}{:<16}{:>9}".format
    lines, done = [row("cell", "group", "model", "rows")], 0
    for cell, group in groupby(units, lambda unit: unit.cell):
        stored = [table.has(unit) for unit in group]
        done += sum(stored)
        rows = f"{sum(stored)}/{len(stored)}"
        lines.append(row(cell.name, cell.group, cell.model or "-", rows))
    return "\n".join([*lines, f"{done} of {len(units)} rows done"])
