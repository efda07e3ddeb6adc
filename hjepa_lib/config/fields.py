"""What makes a settings dataclass safe: typed coercion, ranges, and what a setting needs to act.

Notebooks, the shell and YAML hand over strings, papermill turns `false` into the text "false", and
YAML reads 1e-3 as text; so every value is coerced by its declared type when a section is built.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import math
import numbers
import re
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import field
from typing import Any, NamedTuple

from hjepa_lib.files import WorkbookError


class ConfigError(WorkbookError):
    """A setting is unknown, has the wrong type, lies outside its range or would do nothing."""


def setting(default: Any, needs: str = "") -> Any:
    """A field with a condition; see `acts` for how `needs` is written."""
    return field(default=default, metadata={"needs": needs})


def choice(default: Any, *options: Any, needs: str = "") -> Any:
    """A field that takes one of `options`, or several of them where it is a tuple."""
    return field(default=default, metadata={"choices": options, "needs": needs})


def number(default: Any, low: float, high: float | None = None, needs: str = "") -> Any:
    """A field in [low, high]; without `high` any finite number from `low`."""
    return field(default=default, metadata={"low": low, "high": high, "needs": needs})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class Checked:
    """Coerces and validates every field when a settings dataclass is built."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for item in dataclasses.fields(self):
            value = _coerce(getattr(self, item.name), hints[item.name], item.name)
            _check_range(value, item)
            object.__setattr__(self, item.name, value)


def _coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`; strings are accepted because papermill and the shell pass strings."""
    given, value = value, value.item() if getattr(value, "ndim", None) == 0 else value  # NumPy's
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
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]*", value):
            return int(value)
    elif kind is float:
        if isinstance(value, (numbers.Real, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif kind in (str, dict):
        if isinstance(value, kind):
            return value
    elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        parts = value.split("+") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)):
            return tuple(_coerce(part, inner, name) for part in parts)
    wanted = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{name} must be {wanted}, got {given!r} ({type(given).__name__})")


def _check_range(value: Any, item: dataclasses.Field) -> None:
    rule, several = item.metadata, isinstance(value, tuple)
    if several and (not value or ("choices" in rule and len(set(value)) < len(value))):
        raise ConfigError(f"{item.name} must be values joined by +, each once; got {value!r}")
    for one in value if several else (value,):
        if "choices" in rule and one not in rule["choices"]:
            options = ", ".join(map(str, rule["choices"]))
            raise ConfigError(f"{item.name} must be one of {options}; got {one!r}")
        if "low" not in rule:
            continue
        low, high = rule["low"], rule["high"]
        within = math.isfinite(one) and one >= low if high is None else low <= one <= high
        if not within:  # NaN never is
            raise ConfigError(f"{item.name} must lie in {_range(rule)}; got {one!r}")


def _range(rule: typing.Mapping[str, Any]) -> str:
    return f"[{rule['low']}, inf)" if rule["high"] is None else f"[{rule['low']}, {rule['high']}]"


# --- trees ------------------------------------------------------------------------------------
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


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"level1.optim.updates": 3000, ...} for every leaf of a nested dictionary."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


# --- what a setting is ------------------------------------------------------------------------
class Setting(NamedTuple):
    """One leaf of a config, as `python -m hjepa_lib settings` shows it."""

    name: str  # dotted
    value: Any
    allowed: str  # range, choices or type
    needs: tuple[str, ...]  # all of them must hold, else the setting does nothing
    meaning: str


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    """{field: the text below it} of a settings class and the classes that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for line, after in zip(body, [*body[1:], None], strict=True):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and text:
                found[line.target.id] = " ".join(str(after.value.value).split())
    return found


def describe(config: Any, prefix: str = "", needs: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every leaf of a config, in order, with what is known about it."""
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        own = item.metadata.get("needs", "")
        every = (*needs, _absolute(own, prefix)) if own else needs
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{name}.", every)
            continue
        hint = _hints(type(config))[item.name]
        allowed = getattr(hint, "__name__", str(hint)) if "low" not in item.metadata else ""
        if "choices" in item.metadata:
            allowed = " | ".join(map(str, item.metadata["choices"]))
        elif not allowed:
            allowed = _range(item.metadata)
        # A switch does not need itself: level2.disable_l2 stands in the section it switches off.
        every = tuple(one for one in every if not one.startswith((f"{name}=", f"{name}!")))
        meaning = _meanings(type(config)).get(item.name, "")
        yield Setting(name, value, allowed, every, meaning)


_NAME = re.compile(r"(?<![\w.|])([A-Za-z_]\w*)(?=!?[=>])")


def _absolute(needs: str, prefix: str) -> str:
    """Names without a dot are those of the same section."""
    return _NAME.sub(lambda match: prefix + match[1], needs)


def acts(needs: str, values: dict[str, Any]) -> bool:
    """Whether "a.b=x|y and c.d>0 or e.f!=z" holds of the leaves `values`; texts are compared."""

    def holds(clause: str) -> bool:
        name, sign, wanted = re.fullmatch(r"([\w.]+)(!=|=|>)(.*)", clause).groups()
        if sign == ">":
            return values[name] > float(wanted)
        found = str(values[name])
        found = found.lower() if isinstance(values[name], bool) else found
        return (found in wanted.split("|")) == (sign == "=")

    return any(all(map(holds, option.split(" and "))) for option in needs.split(" or "))
