"""What makes a section of settings safe: coerced types, ranges, and what a setting needs to act.

The shell, papermill (`false`) and YAML (1e-3) hand over text, so values are coerced by their type.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import re
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from hjepa_lib.files import WorkbookError


class ConfigError(WorkbookError):
    """A setting is unknown, has the wrong type, lies outside its range or would do nothing."""


class Range(NamedTuple):
    """Both ends belong to it; without `high` it has every finite number from `low`."""

    low: float
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether `value` lies in it; NaN never does."""
        top = math.isfinite(value) if self.high is None else value <= self.high
        return top and value >= self.low

    def __str__(self) -> str:
        return f"[{self.low}, inf)" if self.high is None else f"[{self.low}, {self.high}]"


class _Bounded:
    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __getitem__(self, ends: slice) -> Any:
        return Annotated[self.kind, Range(ends.start, ends.stop)]


Int, Float = _Bounded(int), _Bounded(float)
"""`Int[2:]` is the type of a whole number from 2, `Float[0:1]` of a number from 0 to 1."""


def needs(condition: str, default: Any) -> Any:
    """A field that does nothing unless `condition`, written as in `acts`, holds."""
    return dataclasses.field(default=default, metadata={"needs": condition})


@functools.cache
def _kinds(section: type) -> dict[str, Any]:
    """{field: its type}"""
    hints = typing.get_type_hints(section, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(section)}


@typing.dataclass_transform(frozen_default=True)
class Section:
    """Base of all settings: a frozen dataclass whose values are coerced when it is built."""

    def __init_subclass__(cls, **gone: Any) -> None:
        """Keywords: settings of before, at the values that keys still count; inherited."""
        cls.gone = getattr(cls, "gone", {}) | gone
        dataclasses.dataclass(frozen=True)(cls)

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            object.__setattr__(self, name, _coerce(getattr(self, name), kind, name))
        for wrong, sentence in self.refused():
            if wrong:
                raise ConfigError(sentence)

    def refused(self) -> Iterable[tuple[Any, str]]:
        """(true if it is so, what is wrong then) of the combinations that make no sense."""
        return ()


def _coerce(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`; ConfigError where it is none, or not what the type allows."""
    kind, inside = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Annotated:
        found = _parse(value, inside[0], name)
        good, said = inside[1].holds(found), f"must lie in {inside[1]}"
    elif kind is Literal:
        found = _parse(value, type(inside[0]), name)
        good, said = found in inside, f"must be one of {', '.join(map(str, inside))}"
    elif kind is tuple and isinstance(value, (str, list, tuple)):
        parts = value.split("+") if isinstance(value, str) else value
        found = tuple(_coerce(part, inside[0], name) for part in parts)
        once = typing.get_origin(inside[0]) is not Literal or len({*found}) == len(found)
        good, said = found and once, "must be values joined by +, each once"
    else:
        return _parse(value, kind, name)
    if not good:
        raise ConfigError(f"{name} {said}; got {found!r}")
    return found


def _parse(value: Any, kind: type, name: str) -> Any:
    given, value = value, value.item() if getattr(value, "ndim", None) == 0 else value  # NumPy's
    text, number = isinstance(value, str), {int: numbers.Integral, float: numbers.Real}.get(kind)
    if kind is bool and text and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if number and not isinstance(value, bool) and isinstance(value, (str, number)):
        with contextlib.suppress(ValueError):
            return kind(value)
    if issubclass(kind, Section) and isinstance(value, dict):
        return from_dict(kind, value)
    if isinstance(value, kind) and not number:
        return value
    raise ConfigError(f"{name} must be {kind.__name__}, got {given!r} ({type(given).__name__})")


def to_dict(config: Any) -> Any:
    """Nested plain dictionary (JSON-ready, infinity as text) of a section."""
    if isinstance(config, tuple):
        return list(config)
    if config in (math.inf, -math.inf):
        return str(config)
    if not dataclasses.is_dataclass(config):
        return config
    return {item.name: to_dict(getattr(config, item.name)) for item in dataclasses.fields(config)}


def from_dict(kind: type, tree: dict[str, Any]) -> Any:
    """Build a section of the type `kind` from such a dictionary; ConfigError for unknown keys."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{kind.__name__} must be a mapping, got {tree!r}")
    known = sorted(_kinds(kind))
    tree = {key: tree[key] for key in tree if key not in kind.gone or tree[key] != kind.gone[key]}
    for key in tree:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {kind.__name__}; known: {', '.join(known)}")
    return kind(**tree)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"level1.optim.updates": 3000, ...} for every leaf of a nested dictionary."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def gone_from(section: type, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of all that is `gone` from a kind of section and those in it."""
    found = {f"{prefix}{name}": value for name, value in section.gone.items()}
    for name, kind in _kinds(section).items():
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= gone_from(kind, f"{prefix}{name}.")
    return found


def names_in(section: type, prefix: str, *but: str) -> tuple[str, ...]:
    """Dotted names of a kind of section's fields and of what is `gone` from it, but some."""
    return tuple(f"{prefix}.{one}" for one in (*_kinds(section), *section.gone) if one not in but)


class Setting(NamedTuple):
    """One leaf of a config, as `python -m hjepa_lib settings` shows it."""

    name: str  # dotted
    allowed: str  # range, choices or type
    needs: tuple[str, ...]  # all of them must hold, else the setting does nothing
    meaning: str


def _allowed(kind: Any) -> str:
    outer, inside = typing.get_origin(kind), typing.get_args(kind)
    if outer is Literal:
        return " | ".join(map(str, inside))
    if outer is tuple and typing.get_origin(inside[0]):
        return _allowed(inside[0])
    return str(inside[1]) if outer is Annotated else kind.__name__


@functools.cache
def _meanings(section: type) -> dict[str, str]:
    """{field: the text below it} of a section and those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__[: section.__mro__.index(Section)]):
        body = ast.parse(inspect.getsource(owner)).body[0].body
        for line, after in itertools.pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[line.target.id] = " ".join(after.value.value.split())
    return found


_NAME = re.compile(r"(?<![\w.|])([A-Za-z_]\w*)(?=!?[=>])")


@functools.cache
def describe(section: type, prefix: str = "", above: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """Every leaf of a kind of section, in order, with what is known about it."""
    found: list[Setting] = []
    kinds = _kinds(section)
    for item in dataclasses.fields(section):
        kind, name = kinds[item.name], f"{prefix}{item.name}"
        own = item.metadata.get("needs", "")
        # Names without a dot are those of the same section.
        every = (*above, _NAME.sub(lambda match: prefix + match[1], own)) if own else above
        if isinstance(kind, type) and issubclass(kind, Section):
            found += describe(kind, f"{name}.", every)
            continue
        # A switch does not need itself: level2.disable_l2 stands in the section it switches off.
        every = tuple(one for one in every if not one.startswith((f"{name}=", f"{name}!")))
        found.append(Setting(name, _allowed(kind), every, _meanings(section).get(item.name, "")))
    return tuple(found)


def acts(condition: str, values: dict[str, Any]) -> bool:
    """Whether "a.b=x|y and c.d>0 or e.f!=z" holds of the leaves `values`, as small letters."""

    def holds(clause: str) -> bool:
        name, sign, wanted = re.fullmatch(r"([\w.]+)(!=|=|>)(.*)", clause).groups()
        if sign == ">":
            return values[name] > float(wanted)
        return (str(values[name]).lower() in wanted.split("|")) == (sign == "=")

    return any(all(map(holds, option.split(" and "))) for option in condition.split(" or "))
