"""`metrics.jsonl`: training curves as one JSON object per line, safe against being killed.

Every line has `stage`, `step` and values. One key has one writer: a second value for the same
(stage, step, key) is an error (PL6). A half-written last line, left by `kill -9` or a full disk, is
ignored by readers and cut off by the next writer. `rewind` drops what came after a checkpoint, so
that a resumed training leaves the same file as an uninterrupted one (PL8).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hjepa_lib.files import FileError, write_atomic


class MetricsLog:
    """The metrics file of one run; one writing process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # (stage, step) -> keys written; built from the file by the first `log`.
        self._seen: dict[tuple[str, int], frozenset[str]] | None = None
        self._key_sets: dict[frozenset[str], frozenset[str]] = {}  # shares equal sets among steps

    def log(self, record: dict[str, Any]) -> None:
        """Append one record; numbers may be Python, numpy or 0-d torch values, NaN becomes null.

        Raises FileError when "stage" or "step" is missing, or a key was already written for them.
        """
        row = {key: json_ready(value) for key, value in record.items()}
        place = _place(row)
        if self._seen is None:
            self._heal()
            self._seen = {}
            for old in self.records():
                self._remember(_place(old), old)
        twice = self._seen.get(place, frozenset()) & row.keys()
        if twice:
            raise FileError(f"metric {min(twice)!r} of {place[0]} step {place[1]} is written twice")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            self._seen = None  # the line may be half written: heal before the next one
            raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._remember(place, row)

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

    def _remember(self, place: tuple[str, int], row: dict[str, Any]) -> None:
        keys = frozenset(row) - {"stage", "step"}
        keys |= self._seen.get(place, frozenset())
        self._seen[place] = self._key_sets.setdefault(keys, keys)


def _place(row: dict[str, Any]) -> tuple[str, int]:
    stage, step = row.get("stage"), row.get("step")
    if not isinstance(stage, str) or not isinstance(step, int):
        raise FileError("a metrics record needs a text 'stage' and an integer 'step'")
    return stage, step


def json_ready(value: Any) -> Any:
    """JSON-ready value: numpy and torch numbers become Python ones, NaN and infinity null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
