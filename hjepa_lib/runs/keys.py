"""A stage is known by what made it: its key says whether a stored one may stand for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hjepa_lib.config import Config, flatten
from hjepa_lib.files import sha256

_NOT_SHAPING = ("level1.load",)  # says where level 1 comes from, not what it is


@dataclass(frozen=True)
class Stage:
    """One step of a run: what it reads, the settings that shape it, and how it is made.

    `make(workspace, folder)` writes its files into `folder`; a training is a generator of reports.
    `recipe` is raised when the code makes something else from the same settings; `about` is what
    shapes it beside the settings, JSON-ready (the seed of one of several models, a Case).
    """

    name: str
    make: Callable[..., Iterator[Any] | None]
    settings: tuple[str, ...] = ()  # dotted settings, or whole sections
    reads: tuple[Stage, ...] = ()
    recipe: int = 1
    folder: str = ""  # below the run's; "" is the name
    about: Any = None
    recorded: bool = False  # data: the same by key, whatever another machine rounds
    load: str = ""  # the run it is taken from, whatever its key


def shaping(stage: Stage, config: Config) -> dict[str, Any]:
    """The settings that shape a stage, without those of what it reads: {dotted name: value}."""
    wanted = stage.settings
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in _NOT_SHAPING
        and any(name == one or name.startswith(f"{one}.") for one in wanted)
    }


def key(stage: Stage, config: Config, loaded: Callable[[Stage], str] | None = None) -> str:
    """16 hexadecimal digits of everything that shaped the stage, down to its data.

    Settings count as written: `precision=auto` is one value, whatever a machine makes of it, and
    device and threads do not count. `loaded` finds the key of a stage that is taken from a run.
    """
    if stage.load and loaded is not None:
        return loaded(stage)
    parts = {
        "stage": stage.name,
        "recipe": stage.recipe,
        "seed": config.seed,
        "precision": "" if stage.recorded else config.precision,
        "settings": shaping(stage, config),
        "about": stage.about,
        "reads": [key(other, config, loaded) for other in stage.reads],
    }
    return sha256(json.dumps(parts, sort_keys=True).encode())[:16]


def closure(stage: Stage) -> list[Stage]:
    """The stage and everything it is made from, inputs first, each once."""
    found: list[Stage] = []
    for one in [*(part for other in stage.reads for part in closure(other)), stage]:
        if one.name not in [other.name for other in found]:
            found.append(one)
    return found
