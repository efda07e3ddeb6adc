"""The whole configuration of a run: profiles, dotted overrides, YAML files.

A profile (`smoke`, `laptop`, `full`) gives a whole `Config`; dotted overrides such as
``level1.optim.updates=500`` change single values. Unknown names, wrong types, values out of range
and settings that would do nothing raise `ConfigError` with one sentence. Notebooks, command line,
YAML files and checkpoints all go through `Config`, so no value is read twice or silently ignored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hjepa_lib.config.fields import (
    Checked,
    ConfigError,
    Setting,
    acts,
    choice,
    describe,
    from_dict,
    leaves,
    number,
    setting,
    to_dict,
)
from hjepa_lib.config.optim import EpochsConfig, OptimConfig
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.config.planning import (
    ChaptersConfig,
    EvaluationConfig,
    HierarchyConfig,
    PlannerConfig,
    PlanningConfig,
    SearchConfig,
)
from hjepa_lib.config.presets import PRESETS, PROFILES
from hjepa_lib.config.two_rooms import (
    DataConfig,
    DistanceConfig,
    Level1Config,
    Level2Config,
    Level3Config,
    LossConfig,
    TrackingConfig,
)

__all__ = [
    "PRESETS", "PROFILES", "Config", "ConfigError", "DataConfig", "DistanceConfig", "EpochsConfig",
    "EvaluationConfig", "HierarchyConfig", "Level1Config", "Level2Config", "Level3Config",
    "LossConfig", "OptimConfig", "PixelsConfig", "PlannerConfig", "PlanningConfig", "SearchConfig",
    "Setting", "TrackingConfig", "differences", "flatten", "from_dict", "leaves", "load_yaml",
    "parse_overrides", "profile", "read_config", "read_yaml", "settings",
    "settings_text", "to_dict",
]  # fmt: skip

Overrides = str | Sequence[str] | dict[str, Any]

RENAMED: dict[str, str] = {}
"""Dotted setting or section of earlier versions: what it is called now; "" = it is gone."""


@dataclass(frozen=True)
class Config(Checked):
    """One run = one training seed."""

    profile: str = choice("laptop", "smoke", "laptop", "full")
    """The set of values that a run starts from."""
    seed: int = number(0, 0, 2**31 - 1)
    """Seed of data, weights, batches and planners."""
    device: str = choice("auto", "auto", "cpu", "cuda", "mps")
    """Where to compute; `auto`: an accelerator where there is one."""
    precision: str = choice("auto", "auto", "fp32", "bf16")
    """`auto`: a one-second micro-benchmark decides; the choice is stored in the manifest."""
    tracker: str = choice("none", "none", "tensorboard", "wandb")
    """Who else gets the training curves; metrics.jsonl is written in any case."""
    tracking: TrackingConfig = setting(TrackingConfig(), needs="tracker=wandb")
    data: DataConfig = DataConfig()
    level1: Level1Config = Level1Config()
    distance: DistanceConfig = DistanceConfig()
    level2: Level2Config = setting(Level2Config(), needs="level2.disable_l2=false")
    level3: Level3Config = setting(Level3Config(), needs="level3.enabled=true")
    planning: PlanningConfig = PlanningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    chapters: ChaptersConfig = ChaptersConfig()
    pixels: PixelsConfig = PixelsConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        planners = (self.planning.flat, self.planning.hierarchy.tracker)
        if self.level1.predictors == 1 and any(one.disagreement for one in planners):
            raise ConfigError("a planner's disagreement cost needs level1.predictors > 1")
        if self.level1.static_dim and self.data.layouts == "fixed":
            raise ConfigError("level1.static_dim needs data.layouts=random or rectangle")
        if self.data.val_fraction == 0:
            for name in ("level1", "level2"):
                optim = getattr(self, name).optim
                if optim.patience or optim.schedule == "plateau":
                    raise ConfigError(f"{name}.optim waits for a validation: set data.val_fraction")
        if self.level2.train == "joint":
            for name in ("static_dim", "refine_updates"):
                if getattr(self.level1, name):
                    raise ConfigError(f"level1.{name} needs level2.train=frozen")
            if self.level1.optim.patience or self.level1.optim.schedule == "plateau":
                raise ConfigError("level2.train=joint has no validation that could end or slow it")
        if self.level3.enabled:
            self._check_level3()

    def _check_level3(self) -> None:
        above, below = self.level3.step_skip, self.level2.step_skip
        if self.level2.disable_l2 or self.level2.train != "frozen":
            raise ConfigError("level3.enabled needs a level 2 with level2.train=frozen")
        if above <= below or above % below:
            raise ConfigError(
                f"level3.step_skip must be a multiple of level2.step_skip={below}, got {above}"
            )

    @property
    def third(self) -> Level2Config:
        """Level 3's model: level 2's settings on its own time grid."""
        own = {"step_skip": self.level3.step_skip, "macro_steps": self.level3.macro_steps}
        return replace(self.level2, **own)

    def override(self, overrides: Overrides, strict: bool = True) -> Config:
        """A copy with dotted keys replaced; see `parse_overrides` for what `overrides` may be.

        The key `preset` stands for a recipe of presets.py; other keys win over it. A value that the
        other settings switch off is refused, unless not `strict`.
        """
        own = overrides if isinstance(overrides, dict) else parse_overrides(overrides)
        if own.get("profile", self.profile) != self.profile:
            raise ConfigError(
                "the profile is chosen by --profile or the notebook, not by a setting"
            )
        pairs = {key: value for key, value in own.items() if key != "preset"}
        if "preset" in own:
            if own["preset"] not in PRESETS:
                raise ConfigError(
                    f"preset must be one of {', '.join(PRESETS)}; got {own['preset']!r}"
                )
            pairs = PRESETS[own["preset"]] | pairs
        tree = to_dict(self)
        for key, value in pairs.items():
            _set(tree, key, value)
        changed = from_dict(Config, tree)
        if strict:
            self._refuse_idle(changed, [key for key in own if key != "preset"])
        return changed

    def _refuse_idle(self, changed: Config, keys: list[str]) -> None:
        """ConfigError for a key whose new value the other settings switch off (PL7)."""
        before, after = flatten(self), flatten(changed)
        for key in keys:
            idle = [need for need in _needs()[key] if not acts(need, after)]
            if idle and after[key] not in (before[key], _defaults(self.profile)[key]):
                raise ConfigError(f"{key} needs {idle[0]}, else it does nothing")


@functools.cache
def _needs() -> dict[str, tuple[str, ...]]:
    return {one.name: one.needs for one in describe(Config())}


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    return flatten(profile(name))


def parse_overrides(overrides: str | Sequence[str]) -> dict[str, str]:
    """ "a.b=1, c=x" or ["a.b=1", "c=x, y"] -> {"a.b": "1", "c": "x, y"}; lists are written 1+2+3.

    A text is cut at the commas that a `name=` follows; of a list every entry is taken verbatim.
    """
    if isinstance(overrides, str):
        overrides = re.split(r",(?=\s*[\w.]+\s*=)", overrides.strip().rstrip(","))
    pairs: dict[str, str] = {}
    for part in filter(str.strip, overrides):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {part!r} is not of the form dotted.key=value")
        if key.strip() in pairs:
            raise ConfigError(f"override {key.strip()!r} is given twice")
        pairs[key.strip()] = value.strip()
    return pairs


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    node = tree
    *path, last = dotted.split(".")
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        moved = _moved(dotted)
        now = "" if moved is None else f": it is {moved} now" if moved else ": it is gone"
        raise ConfigError(f"unknown setting {dotted!r}{now}")
    if isinstance(node[last], dict):
        raise ConfigError(f"{dotted!r} is a section; set one of: {', '.join(node[last])}")
    node[last] = value


def _moved(dotted: str) -> str | None:
    """What a setting of earlier versions is called now, "" if it is gone, None if it never was."""
    for old, new in RENAMED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            return new and new + dotted.removeprefix(old)
    return None


def read_config(tree: dict[str, Any]) -> Config:
    """The config of a stored manifest, which an earlier version may have written."""
    known = flatten(Config())
    pairs = {}
    for name, value in leaves(tree).items():
        name = name if name in known else _moved(name) if _moved(name) is not None else name
        if name:
            pairs[name] = value
    return profile(tree.get("profile", "laptop")).override(pairs, strict=False)


def flatten(config: Any) -> dict[str, Any]:
    """{"level1.optim.updates": 3000, ...} for every leaf of a config."""
    return leaves(to_dict(config))


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configs differ: {"seed": (0, 1)}."""
    left, right = flatten(a), flatten(b)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def settings(prefix: str = "", name: str = "laptop") -> list[Setting]:
    """Every setting below `prefix` with its value in the profile `name`, range and meaning."""
    found = [one for one in describe(profile(name)) if one.name.startswith(prefix)]
    if not found:
        raise ConfigError(f"no setting begins with {prefix!r}")
    return found


def settings_text(prefix: str = "", name: str = "laptop") -> str:
    """What `python -m hjepa_lib settings [prefix]` prints."""
    lines = []
    for one in settings(prefix, name):
        value = "+".join(map(str, one.value)) if isinstance(one.value, tuple) else one.value
        lines += [f"{one.name} = {value}   {one.allowed}", f"    {one.meaning}"]
        lines += [f"    acts with {need}" for need in one.needs]
    return "\n".join(lines)


class _UniqueKeys(yaml.SafeLoader):
    """YAML where a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen:
                text = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen |= {(key.tag, key.value)} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file called `what` in the ConfigError of a missing or broken one."""
    try:
        return yaml.load(Path(path).read_text(), _UniqueKeys)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # not text at all
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def load_yaml(path: str | Path, base: Config | None = None) -> Config:
    """A YAML file of nested sections on top of `base`, else of its own `profile:`."""
    tree = read_yaml(path, "config file") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return (base or profile(tree.get("profile", "laptop"))).override(leaves(tree))


def profile(name: str, seed: int = 0) -> Config:
    """The named profile: `smoke` (tests), `laptop` (a real result on 2 cores), `full` (one GPU)."""
    if name not in PROFILES:
        raise ConfigError(f"profile must be one of {', '.join(PROFILES)}; got {name!r}")
    return Config(profile=name, seed=seed).override(PROFILES[name], strict=False)
