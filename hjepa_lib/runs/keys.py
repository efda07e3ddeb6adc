"""A stage is known by what made it: its key says whether a stored one may stand for it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hjepa_lib.config import GONE, WORLDS, Config, flatten, names_world
from hjepa_lib.files import json_sha256, sha256

_leaves = lru_cache(maxsize=64)(flatten)
_LATER = ("data.position", "data.world", "level1.foresight")
"""At "" or 0 they are not in keys, which are older than them."""


@dataclass(frozen=True)
class Stage:
    """One step of a run; `make(workspace, folder)` writes its files, and may yield reports."""

    name: str
    make: Callable[..., Iterator[Any] | None]
    settings: tuple[str, ...] = ()  # dotted settings, or whole sections
    reads: tuple["Stage", ...] = ()
    recipe: int = 1  # raised when the code makes something else from the same settings
    folder: str = ""  # below the run's; "" is the name
    about: Any = None  # JSON-ready: what shapes it beside the settings, such as a Case
    recorded: bool = False  # data: the same by key, whatever another machine rounds
    load: str = ""  # the run it is taken from, whatever its key
    files: tuple[str, ...] = ()  # files it starts from: known by their content, not by their name


def shaping(stage: Stage, config: Config) -> dict[str, Any]:
    """{dotted name: value} of the settings that shape a stage itself, not what it reads."""
    sections = tuple(f"{name}." for name in stage.settings)
    return {
        name: value
        for name, value in (_leaves(config) | GONE).items()
        # level1.load says where level 1 comes from, not what it is
        if f"{name}.".startswith(sections)
        and name != "level1.load"
        and (value or name not in _LATER)
    }


def key(stage: Stage, config: Config, loaded: Callable[[Stage], str] | None = None) -> str:
    """16 hexadecimal digits of everything that shaped the stage, down to its data.

    Settings count as written (`precision=auto` is one value). `loaded` finds the key of a stage
    that is taken from a run.
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
    if stage.files:
        parts["files"] = _contents(stage)
    return json_sha256(parts)[:16]


def outside(stages: Iterable[Stage], loaded: Callable[[Stage], str]) -> dict[str, Any]:
    """What shapes stages and is no setting: content of their files, keys of what they load."""
    found: dict[str, Any] = {}
    for stage in (one for last in stages for one in closure(last)):
        if any(_contents(stage)):
            found[f"files.{stage.name}"] = _contents(stage)
        if stage.load:
            found[f"key.{stage.name}"] = loaded(stage)
    return found


def made_of(stages: Callable[[Config], dict[str, Stage]]) -> Callable[..., Any]:
    """Marks a function that experiments call: its rows are shaped by these stages."""

    def mark(function: Any) -> Any:
        function.stages = stages
        return function

    return mark


def _contents(stage: Stage) -> list[str | None]:
    return [_content(Path(one).expanduser()) for one in stage.files]


def _content(path: Path) -> str | None:
    """SHA-256 of a file's content, or of a folder's; None where there is nothing."""
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        found = [(str(one.relative_to(path)), _content(one)) for one in files]
        return json_sha256(found)
    if not path.is_file():
        return None
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns)


def files_of(*sources: str) -> tuple[str, ...]:
    """The recordings, or files of own worlds, that these values of `data.source` name."""
    ours = ("", "generated", "published", *WORLDS)
    return tuple(_file_of(one) for one in sources if one not in ours)


def _file_of(source: str) -> str:
    """The recording, or the file of an own world's module:Class, where there is one."""
    module = source.partition(":")[0] if names_world(source) else ""
    with suppress(ImportError, ValueError):  # whoever makes the world says what is wrong
        if module and not module.startswith("hjepa_lib.") and (spec := find_spec(module)):
            return spec.origin or source
    return source


@lru_cache(maxsize=16)
def _hashed(path: Path, size: int, written: int) -> str:
    return sha256(path)


def closure(stage: Stage) -> list[Stage]:
    """The stage and everything it is made from, inputs first, each once."""
    found = [*(part for other in stage.reads for part in closure(other)), stage]
    return list({one.name: one for one in found}.values())


def digest(entry: dict[str, Any]) -> str:
    """SHA-256 of a stage entry's list of files: equal for equal content."""
    return json_sha256(entry["files"])


def _make(part: str, ws: Any, folder: Path, **options: Any) -> Iterator[Any] | None:
    from hjepa_lib.runs import stages  # now: what shapes a stage needs no torch

    return getattr(stages, f"make_{part}_stage")(ws, folder, **options)


def core_stages(config: Config) -> dict[str, Stage]:
    """The stages data, l1, distance, l2, l3, policies by name."""
    # The probe, a refinement, head and level 2 see the latents of so many trajectories.
    source, seen = config.data.source, "distance.trajectories"
    named = files_of(source, config.data.world)
    # Since recipe 2 an own world's steps are scaled to its cap, and dots slide past every guard.
    slid = source.startswith("patrolled_door") and config.data.dynamics != "slide"
    recipe = 2 if slid or (names_world(source) and named) else 1
    make = partial(_make, "data")
    data = Stage("data", make, ("data",), recipe=recipe, recorded=True, files=named)
    shaped = ("level1", seen, *(("level2",) if is_joint(config) else ()))
    # Places of a local one are looked for by several attempts, and seen by what is above, since 2.
    seeing = {"recipe": 2 if config.level1.predictor == "local" else 1}
    # Steps that a teleporter carried teach nothing since 3, nor do other recorded episodes' walls.
    filed = bool(named) and not names_world(source) and config.level1.predictor == "local"
    recipe = 3 if filed or source.startswith("pointmaze_teleport") else seeing["recipe"]
    l1 = Stage("l1", partial(_make, "level1"), shaped, (data,), recipe=recipe,
               load=config.level1.load)  # fmt: skip
    distance = Stage("distance", partial(_make, "distance"), ("distance",), (data, l1), folder="l1")
    reads = (data, l1, distance)
    second = partial(_make, "macro", name="l2", section=config.level2)
    third = partial(_make, "macro", name="l3", section=config.third)
    l2 = Stage("l2", second, ("level2", seen), reads, **seeing)
    l3 = Stage("l3", third, ("level2", "level3", seen), reads, **seeing)
    policies = Stage("policies", partial(_make, "policies"), ("policies",), (data,))
    return {stage.name: stage for stage in (*reads, l2, l3, policies)}


def wanted_stages(config: Config) -> list[Stage]:
    """The trainings that these settings ask for, in order."""
    found = core_stages(config)
    wanted = {"data": False, "l2": not config.level2.disable_l2, "l3": config.level3.enabled}
    wanted["policies"] = bool({"gcbc", "idm"} & {*config.evaluation.rows})
    return [stage for name, stage in found.items() if wanted.get(name, True)]


def is_joint(config: Config) -> bool:
    """True when both levels train together."""
    return config.level2.train == "joint" and not config.level2.disable_l2
