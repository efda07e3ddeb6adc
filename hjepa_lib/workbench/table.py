"""One table of an experiment, row by row under a lock, and what is still to do.

Rows stay text, so adding one never rewrites the numbers of another. The settings of every training
stand once in a JSON file beside the table, under the digest that the rows name.
"""

import csv
import functools
import io
from collections.abc import Iterable
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from hjepa_lib.config import FORMER, GONE, flatten, profile
from hjepa_lib.files import FileError, exclusive, json_sha256, read_json, write_atomic, write_json
from hjepa_lib.runs.remote import pull_file, push_file
from hjepa_lib.workbench.experiment import Unit

_UNKNOWN = FORMER - GONE.keys()  # names of before, which nobody can ask for
KEY = ("cell", "model", "seed", "budget", "grid")


class Table:
    """Rows as text, and the settings of their trainings by digest."""

    def __init__(self, path: Path, name: str = "laptop") -> None:
        """A setting that is younger than a row counts there with its value in profile `name`."""
        self.path, self.profile = path, name
        self.settings_path = path.with_name(f"{path.stem}_trainings.json")
        self.reload()

    def reload(self) -> None:
        """Read both files, of a remote root from there; FileError when the table is not ours."""
        for path in (self.settings_path, self.path):
            pull_file(path)
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
        rows, own, training = self.of(unit), unit.identity(), unit.training()
        asked = ("planner.", "recipe.", "task_set") if unit.case else ("given.",)
        for row in rows:
            seen = {k: one for k, one in row.items() if one and (k in own or k.startswith(asked))}
            pairs = [(seen, own)]
            if row["training"] != digest(training):
                known = self.trainings.get(row["training"], {})
                if row["training"] and not known:
                    return f"a training that {self.settings_path.name} does not list"
                pairs.append((known, training))
            for stored, wanted in pairs:
                for name in (one for one in wanted | stored if one not in _UNKNOWN):
                    two = [one.get(name, usual(name, self.profile)) for one in (stored, wanted)]
                    found, value = map(as_text, two)
                    if found != value:
                        return f"{name}={found}, not {value}"
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
                push_file(write_json(self.settings_path, self.trainings))
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
            push_file(write_atomic(self.path, buffer.getvalue()))


@functools.cache
def _values(name: str) -> dict[str, Any]:
    values = GONE | flatten(profile(name))
    planner = {key.replace("planning.", "planner.", 1): one for key, one in values.items()}
    return values | planner | {"world": values["data.source"]}


def usual(column: str, name: str = "laptop") -> Any:
    """What counts where a row is older than a setting: its value in profile `name`, recipe 1."""
    return 1 if column.startswith("recipe.") else _values(name).get(column)


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
