"""The table of a study: committed rows, the settings of their trainings, and what is still to do.

Rows are kept as text, so that adding one never rewrites the numbers of another. The settings of
every training stand once in a JSON file beside the table, under the digest that the rows name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hjepa_lib.files import FileError, read_json, sha256, write_atomic, write_json
from hjepa_lib.runs.notebooks import describe
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench.studyfile import Grid
from hjepa_lib.workbench.studyrow import Cell, Row, agreeing_stages

KEY = ("cell", "seed", "budget", "grid")


class Table:
    """The committed rows as text, and the settings of their trainings by digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_path = path.with_name(f"{path.stem}_trainings.json")
        self.columns: list[str] = []
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        self.trainings: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read both files again; FileError when the table is none of ours."""
        if self.path.is_file():
            reader = csv.DictReader(io.StringIO(self.path.read_text()))
            self.columns = list(reader.fieldnames or ())
            if absent := [name for name in (*KEY, "training") if name not in self.columns]:
                raise FileError(
                    f"{self.path} is no table of a study: column {absent[0]!r} is missing"
                )
            self.rows = {tuple(row[name] for name in KEY): row for row in reader}
        if self.settings_path.is_file():
            self.trainings = read_json(self.settings_path)

    def add(self, row: dict[str, Any], training: dict[str, Any]) -> None:
        """Append one row, or replace the one with its key; written whole or not at all."""
        self.reload()  # another process may have added to it
        if training and row["training"] not in self.trainings:
            self.trainings[row["training"]] = training
            write_json(self.settings_path, self.trainings)
        text = {name: as_text(value) for name, value in row.items()}
        self.rows[tuple(text[name] for name in KEY)] = text
        self.columns += [name for name in text if name not in self.columns]
        self._write()

    def drop_others(self, cells: set[str], wanted: set[tuple[str, ...]]) -> int:
        """Remove rows of these cells whose key is not wanted any more; returns how many."""
        self.reload()
        old = [key for key in self.rows if key[0] in cells and key not in wanted]
        for key in old:
            del self.rows[key]
        if old:
            self._write()
        return len(old)

    def _write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_atomic(self.path, buffer.getvalue())

    def mismatch(self, row: Row) -> str:
        """How the stored row differs from what is wanted; "" when they agree or none is stored."""
        stored = self.rows.get(row.key)
        if stored is None:
            return ""
        for name, value in row.identity().items():
            # A setting that did not exist when the row was made cannot have changed it.
            if stored.get(name, "") != as_text(value) and (stored.get(name) or "." not in name):
                return f"{name}={stored.get(name, '')}, not {as_text(value)}"
        if stored["training"] != digest(row.training()):
            known = self.trainings.get(stored["training"], {})
            for name, value in row.training().items():
                if name in known and known[name] != value:
                    return f"{name}={known[name]}, not {value}"
            if not known and row.training():
                return f"a training that {self.settings_path.name} does not list"
        return ""

    def has(self, row: Row) -> bool:
        """True when the row is stored as wanted."""
        return row.key in self.rows and not self.mismatch(row)


def as_text(value: Any) -> str:
    """One CSV field: undefined values are empty, lists joined by +."""
    if value is None or value != value:
        return ""
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def digest(settings: dict[str, Any]) -> str:
    """Short name of a training's settings; "" for none."""
    if not settings:
        return ""
    return sha256(json.dumps(settings, sort_keys=True).encode())[:12]


# --- planning the work ------------------------------------------------------------------------
class Line(NamedTuple):
    """One cell of the list: what is done and what the rest may cost."""

    cell: Cell
    done: int
    rows: int
    minutes: float  # still to spend, trainings included
    total: float  # cumulative over the cells so far


def list_cells(grid: Grid, cells: list[Cell], table: Table) -> list[Line]:
    """Estimates in priority order; a training counts in the first cell that still needs it."""
    counted: set[tuple[str, int]] = set()
    lines, total = [], 0.0
    for cell in cells:
        rows = grid.rows(cell)
        missing = [row for row in rows if not table.has(row)]
        minutes = cell.minutes * len(cell.seeds) * len(missing) / len(rows)
        for row in missing:
            minutes += sum(
                grid.recipes[recipe].minutes
                for recipe in _untrained(grid, row)
                if (recipe, row.seed) not in counted
            )
            counted |= {(recipe, row.seed) for recipe in _untrained(grid, row)}
        total += minutes
        lines.append(Line(cell, len(rows) - len(missing), len(rows), minutes, total))
    return lines


def _untrained(grid: Grid, row: Row) -> Iterator[str]:
    """Recipes that must be trained before this row, the parent's included."""
    recipe, wanted = row.cell.recipe, row.stages
    while recipe and wanted:
        path = outputs_root() / grid.name / grid.run_name(recipe, row.seed)
        if (path / "manifest.json").is_file():
            run = Run.at(path)
            if all(run.done(stage) for stage in wanted):
                return
        parent, shared = grid.recipes[recipe].parent, ()
        if parent:
            here, there = grid.config(recipe, row.seed), grid.config(parent, row.seed)
            shared = agreeing_stages(here, there, wanted)
        if shared != wanted:
            yield recipe
        wanted, recipe = shared, parent


def describe_list(lines: list[Line]) -> str:
    """The list as a text table."""
    head = f"{'cell':<34}{'group':<18}{'recipe':<16}{'rows':>9}{'minutes':>10}{'sum':>9}"
    out = [head]
    for line in lines:
        cell = line.cell
        rows = f"{line.done}/{line.rows}"
        out.append(
            f"{cell.name:<34}{cell.group:<18}{cell.recipe or '-':<16}{rows:>9}"
            f"{line.minutes:>10.1f}{line.total:>9.1f}"
        )
    done, rows = sum(line.done for line in lines), sum(line.rows for line in lines)
    left = describe(lines[-1].total) if lines and lines[-1].total else "nothing"
    return "\n".join([*out, f"{done} of {rows} rows done; left on one process: {left}"])
