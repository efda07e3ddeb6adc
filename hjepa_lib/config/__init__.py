"""The whole configuration of a run: profiles, dotted overrides, YAML files.

A profile (`smoke`, `laptop`, `full`) gives a whole `Config`; dotted overrides such as
``level1.optim.updates=500`` change single values. Unknown names, wrong types and values out of
range raise `ConfigError` with one sentence. Notebooks, command line, YAML files and checkpoints
all go through `Config`, so no value is read twice or silently ignored. The settings themselves
stand in sections.py, recipes in presets.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hjepa_lib.config.fields import Checked, ConfigError, choice, from_dict, number, to_dict
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.config.presets import PRESETS
from hjepa_lib.config.two_rooms import (
    DataConfig,
    DistanceConfig,
    EvaluationConfig,
    GuardedOptimConfig,
    HierarchyConfig,
    Level1Config,
    Level2Config,
    Level3Config,
    LossConfig,
    OptimConfig,
    PlannerConfig,
    PlanningConfig,
    SearchConfig,
    TrackingConfig,
)

__all__ = [
    "PROFILES",
    "Config",
    "ConfigError",
    "DataConfig",
    "DistanceConfig",
    "EvaluationConfig",
    "GuardedOptimConfig",
    "HierarchyConfig",
    "Level1Config",
    "Level2Config",
    "Level3Config",
    "LossConfig",
    "OptimConfig",
    "PixelsConfig",
    "PlannerConfig",
    "PlanningConfig",
    "SearchConfig",
    "TrackingConfig",
    "differences",
    "flatten",
    "from_dict",
    "leaves",
    "load_yaml",
    "parse_overrides",
    "profile",
    "read_yaml",
    "to_dict",
]  # fmt: skip


@dataclass(frozen=True)
class Config(Checked):
    """One run = one training seed."""

    profile: str = choice("laptop", "smoke", "laptop", "full")
    seed: int = number(0, 0, 2**31 - 1)
    device: str = choice("auto", "auto", "cpu", "cuda", "mps")
    precision: str = choice("auto", "auto", "fp32", "bf16")
    """`auto`: a one-second micro-benchmark decides; the choice is stored in the manifest."""
    tracker: str = choice("none", "none", "tensorboard", "wandb")
    """Who else gets the training curves (runs/log.py); metrics.jsonl is written in any case."""
    tracking: TrackingConfig = TrackingConfig()
    data: DataConfig = DataConfig()
    level1: Level1Config = Level1Config()
    distance: DistanceConfig = DistanceConfig()
    level2: Level2Config = Level2Config()
    level3: Level3Config = Level3Config()
    planning: PlanningConfig = PlanningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    pixels: PixelsConfig = PixelsConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        planners = (self.planning.flat, self.planning.hierarchy.tracker)
        if self.level1.predictors == 1 and any(one.disagreement for one in planners):
            raise ConfigError("a planner's disagreement cost needs level1.predictors > 1")
        if self.level1.static_dim and self.data.layouts == "fixed":
            raise ConfigError("level1.static_dim needs data.layouts=random or rectangle")
        for name in ("static_dim", "refine_updates"):
            if getattr(self.level1, name) and self.level2.train == "joint":
                raise ConfigError(f"level1.{name} needs level2.train=frozen")
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

    def override(self, overrides: str | dict[str, Any]) -> Config:
        """A copy with dotted keys replaced; `overrides` is "a.b=1,c=x" or {"a.b": 1}.

        The key `preset` stands for a recipe of presets.py; other keys win over it.
        """
        pairs = parse_overrides(overrides) if isinstance(overrides, str) else dict(overrides)
        if pairs.get("profile", self.profile) != self.profile:
            raise ConfigError(
                "the profile is chosen by --profile or the notebook, not by a setting"
            )
        name = pairs.pop("preset", None)
        if name is not None:
            if name not in PRESETS:
                raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
            pairs = PRESETS[name] | pairs
        tree = to_dict(self)
        for key, value in pairs.items():
            _set(tree, key, value)
        return from_dict(Config, tree)


def parse_overrides(text: str) -> dict[str, str]:
    """ "a.b=1, c=x" -> {"a.b": "1", "c": "x"}; tuples are written 1+2+3."""
    pairs: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
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
        raise ConfigError(f"unknown setting {dotted!r}")
    if isinstance(node[last], dict):
        raise ConfigError(f"{dotted!r} is a section; set one of: {', '.join(node[last])}")
    node[last] = value


def flatten(config: Any) -> dict[str, Any]:
    """{"level1.optim.updates": 3000, ...} for every leaf of a config."""
    return leaves(to_dict(config))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configs differ: {"seed": (0, 1)}."""
    left, right = flatten(a), flatten(b)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file called `what` in the ConfigError of a missing or broken one."""
    try:
        return yaml.safe_load(Path(path).read_text())
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
    if base is None:
        base = profile(tree.get("profile", "laptop"))
    leaves: dict[str, Any] = {}

    def walk(prefix: str, node: dict[str, Any]) -> None:
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            walk(name, value) if isinstance(value, dict) else leaves.__setitem__(name, value)

    walk("", tree)
    return base.override(leaves)


def profile(name: str, seed: int = 0) -> Config:
    """The named profile: `smoke` (tests), `laptop` (a real result on 2 cores), `full` (one GPU)."""
    if name not in PROFILES:
        raise ConfigError(f"profile must be one of {', '.join(PROFILES)}; got {name!r}")
    return Config(profile=name, seed=seed).override(PROFILES[name])


_SMOKE_PIXELS: dict[str, Any] = {
    "pixels.seeds": 1,
    "pixels.environment.id": "hjepa/Drift-v0",
    "pixels.environment.max_steps": 30,
    "pixels.data.episodes": 10,
    "pixels.data.transitions": 240,
    "pixels.ppo.steps": 128,
    "pixels.ppo.n_envs": 1,
    "pixels.ppo.n_steps": 64,
    "pixels.encoder.cnn_filters": 8,
    "pixels.encoder.depth": 1,
    "pixels.encoder.temporal_depth": 1,
    "pixels.decoder.depth": 1,
    "pixels.optim.updates": 12,
    "pixels.decoder.optim.updates": 6,
    "pixels.reward.optim.updates": 10,
    "pixels.reward.seeds": 2,
    "pixels.reward.study_transitions": 200,
    "pixels.vjepa2.stage1.depth": 1,
    "pixels.vjepa2.stage1.optim.updates": 8,
    "pixels.vjepa2.stage2.depth": 1,
    "pixels.vjepa2.stage2.optim.updates": 12,
    "pixels.grid.size": 8,
    "pixels.grid.episodes": 6,
    "pixels.grid.steps": 12,
    "pixels.grid.encoder_depth": 1,
    "pixels.grid.depth": 1,
    "pixels.grid.optim.updates": 10,
    "pixels.grid.reward_optim.updates": 10,
}

# The budgets of seeds 001, 002 and 004.
_FULL_PIXELS: dict[str, Any] = {
    "pixels.seeds": 5,
    "pixels.data.transitions": 0,
    "pixels.encoder.kind": "vit",
    "pixels.optim.updates": 0,
    "pixels.optim.lr": 3e-4,
    "pixels.decoder.optim.updates": 0,
    "pixels.decoder.optim.lr": 3e-4,
    "pixels.reward.optim.updates": 0,
    "pixels.reward.study_transitions": 30_000,
    "pixels.vjepa2.stage1.optim.updates": 0,
    "pixels.vjepa2.stage2.optim.updates": 0,
    "pixels.grid.size": 30,
    "pixels.grid.episodes": 2_000,
    "pixels.grid.steps": 20,
    "pixels.grid.optim.updates": 0,
    "pixels.grid.reward_optim.updates": 0,
}

PROFILES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "smoke": {
        "data.transitions": 20_312,
        "level1.latent_dim": 32,
        "level1.width": 16,
        "level1.hidden": 64,
        "level1.optim.updates": 60,
        "level1.optim.batch": 16,
        "level1.optim.validate_every": 30,
        "distance.trajectories": 100,
        "distance.hidden": 64,
        "distance.optim.updates": 60,
        "distance.optim.batch": 128,
        "distance.optim.validate_every": 30,
        "level2.hidden": 64,
        "level2.optim.updates": 40,
        "level2.optim.batch": 16,
        "level2.optim.validate_every": 20,
        "planning.flat.samples": 16,
        "planning.flat.iterations": 2,
        "planning.hierarchy.level2.samples": 16,
        "planning.hierarchy.level2.iterations": 2,
        "planning.hierarchy.tracker.samples": 16,
        "planning.hierarchy.tracker.iterations": 2,
        "planning.level3.samples": 16,
        "evaluation.trials": 4,
        "evaluation.steps": 40,
        "evaluation.budgets": [0.5, 1.0],
        "evaluation.budget_trials": 2,
        **_SMOKE_PIXELS,
    },
    # The reference architecture with its published coefficients, at paper scale.
    "full": {
        **PRESETS["pldm_3m"],
        "data.transitions": 3_000_000,
        "level1.optim.validate_every": 2_000,
        "distance.trajectories": 20_000,
        "distance.optim.updates": 40_000,
        "level2.optim.updates": 30_000,
        "evaluation.trials": 500,
        **_FULL_PIXELS,
    },
}
