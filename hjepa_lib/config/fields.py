"""What makes a settings dataclass safe: typed coercion, ranges, and refusal of unknown names.

Notebooks, the shell and YAML hand over strings, papermill turns `false` into the text "false", and
YAML reads 1e-3 as text; so every value is coerced by its declared type when a section is built, and
never by truthiness. A wrong type, an unknown key or a value outside its range raises `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from dataclasses import field
from typing import Any

from hjepa_lib.files import WorkbookError


class ConfigError(WorkbookError):
    """A setting is unknown, has the wrong type, or lies outside its range."""


def choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"choices": options})


def number(default: float, low: float, high: float = math.inf) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


class Checked:
    """Coerces and validates every field when a settings dataclass is built."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = _coerce(getattr(self, item.name), hints[item.name], item.name)
            _check_range(value, item)
            object.__setattr__(self, item.name, value)


def _coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`; strings are accepted because papermill and the shell pass strings."""
    if dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        if isinstance(value, dict):
            return from_dict(kind, value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]*", value):
            return int(value)
    elif kind is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif kind is str:
        if isinstance(value, str):
            return value
    elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        parts = value.split("+") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)):
            return tuple(_coerce(part, inner, name) for part in parts)
    wanted = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")


def _check_range(value: Any, item: dataclasses.Field) -> None:
    rule = item.metadata
    values = value if isinstance(value, tuple) else (value,)
    for one in values:
        if "choices" in rule and one not in rule["choices"]:
            raise ConfigError(
                f"{item.name} must be one of {', '.join(rule['choices'])}; got {one!r}"
            )
        if "low" in rule and not rule["low"] <= one <= rule["high"]:  # also refuses NaN
            raise ConfigError(
                f"{item.name} must lie in [{rule['low']}, {rule['high']}]; got {one!r}"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary (JSON-ready) of any config dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, tree: dict[str, Any]) -> Any:
    """Build a config dataclass from a nested dictionary; unknown keys raise `ConfigError`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{kind.__name__} must be a mapping, got {tree!r}")
    known = {item.name for item in dataclasses.fields(kind)}
    for key in tree:
        if key not in known:
            raise ConfigError(
                f"unknown key {key!r} in {kind.__name__}; known: {', '.join(sorted(known))}"
            )
    return kind(**tree)
