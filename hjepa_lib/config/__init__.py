"""The whole configuration of a run: profiles, dotted overrides, YAML files, stored manifests."""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from hjepa_lib.config.fields import (
    ConfigError,
    Int,
    Section,
    acts,
    describe,
    gone_from,
    leaves,
    names_in,
    needs,
    to_dict,
)
from hjepa_lib.config.fields import from_dict as from_dict
from hjepa_lib.config.optim import EpochsConfig
from hjepa_lib.config.optim import OptimConfig as OptimConfig
from hjepa_lib.config.pixels import PixelsConfig
from hjepa_lib.config.planning import ChaptersConfig, EvaluationConfig, PlanningConfig
from hjepa_lib.config.planning import HierarchyConfig as HierarchyConfig
from hjepa_lib.config.planning import PlannerConfig as PlannerConfig
from hjepa_lib.config.planning import SearchConfig as SearchConfig
from hjepa_lib.config.two_rooms import WORLDS as WORLDS
from hjepa_lib.config.two_rooms import (
    DataConfig,
    DistanceConfig,
    Level1Config,
    Level2Config,
    Level3Config,
    PolicyConfig,
    TrackingConfig,
)
from hjepa_lib.config.two_rooms import LossConfig as LossConfig
from hjepa_lib.config.two_rooms import names_world as names_world

Overrides = str | Sequence[str] | dict[str, Any]


class Config(Section):
    """One run = one training seed."""

    profile: Literal["smoke", "laptop", "full"] = "laptop"
    """The set of values that a run starts from."""
    seed: Int[0 : 2**31 - 1] = 0
    """Seed of data, weights, batches and planners."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; `auto`: an accelerator where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a CPU with instructions for it; the choice is stored in the manifest."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Who else gets the training curves; metrics.jsonl is written in any case."""
    tracking: TrackingConfig = needs("tracker=wandb", TrackingConfig())
    data: DataConfig = DataConfig()
    level1: Level1Config = Level1Config()
    distance: DistanceConfig = DistanceConfig()
    level2: Level2Config = needs("level2.disable_l2=false", Level2Config())
    level3: Level3Config = needs("level3.enabled=true", Level3Config())
    policies: PolicyConfig = PolicyConfig()
    planning: PlanningConfig = PlanningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    chapters: ChaptersConfig = ChaptersConfig()
    pixels: PixelsConfig = PixelsConfig()

    def refused(self) -> Iterator[tuple[object, str]]:
        """What one section asks of another."""
        level1, level2, level3 = self.level1, self.level2, self.level3
        if level1.predictors == 1:
            for planner in (self.planning.flat, self.planning.hierarchy.tracker):
                yield planner.disagreement, "a disagreement cost needs level1.predictors > 1"
        seen = self.planning.cost != "graph" or level1.load or level1.predictor == "local"
        yield not seen, "planning.cost=graph needs level1.predictor=local"
        local = level1.predictor == "local" and self.level2.train == "joint"
        yield local, "level2.train=joint needs another level1.predictor than local"
        if self.data.layouts == "fixed":
            yield level1.static_dim, "level1.static_dim needs data.layouts=random"
        for name, level in (("level1", level1), ("level2", level2)):
            waits = level.optim.patience or level.optim.schedule == "plateau"
            if self.data.val_fraction == 0:
                yield waits, f"{name}.optim waits for a validation: set data.val_fraction"
            if name == "level1" and level2.train == "joint":
                yield waits, "level2.train=joint has no validation that could end or slow it"
        if level2.train == "joint":
            for name in ("static_dim", "refine_updates"):
                yield getattr(level1, name), f"level1.{name} needs level2.train=frozen"
        if level3.enabled:
            alone = level2.disable_l2 or level2.train != "frozen"
            yield alone, "level3.enabled needs a level 2 with level2.train=frozen"
            above, below = level3.step_skip, level2.step_skip
            text = f"level3.step_skip must be a multiple of level2.step_skip={below}, got {above}"
            yield above <= below or above % below, text

    @property
    def third(self) -> Level2Config:
        """Level 3's model: level 2's settings on its own time grid."""
        own = {"step_skip": self.level3.step_skip, "macro_steps": self.level3.macro_steps}
        return replace(self.level2, **own)

    def override(self, overrides: Overrides, strict: bool = True) -> "Config":
        """A copy with dotted keys replaced; see `parse_overrides` for what `overrides` may be.

        The key `preset` stands for one of `PRESETS`; other keys win over it. A new value that
        the other settings switch off is refused (PL7), unless not `strict`.
        """
        own = dict(overrides if isinstance(overrides, dict) else parse_overrides(overrides))
        if own.get("profile", self.profile) != self.profile:
            raise ConfigError("profile is chosen by --profile or the notebook, not by a setting")
        preset, changes = own.pop("preset", ""), own
        chosen = {"level1.encoder", "level1.predictor", "level1.load"} & own.keys()
        if not preset and not chosen and names_world(own.get("data.source", "")):
            preset = "local"  # the other worlds have walls to be seen
        if preset:
            if preset not in PRESETS:
                raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
            brief = BRIEF.get(preset, {}) if self.profile == "smoke" else {}
            changes = PRESETS[preset] | brief | own
        for key in changes:
            _check_name(key)
        changed = _changed(self, changes)
        before, after = flatten(self), flatten(changed)
        for one in describe(Config) if strict else ():
            name = one.name
            if name in own and after[name] not in (before[name], _usual(self.profile)[name]):
                for need in one.needs:
                    if not acts(need, after):
                        raise ConfigError(f"{name} needs {need}, else it does nothing")
        return changed


GONE = gone_from(Config)
FORMER = {
    *GONE, "drive", "masks", "samples", "shown", "tries",
    "planning.hierarchy.level2.disagreement", "planning.level3.disagreement",
    *names_in(EpochsConfig, "pixels.grid.reward_optim"),
    *(f"pixels.reward.{name}" for name in ("seeds", "study_transitions", "study_updates")),
    *(f"chapters.{name}" for name in (
        "pixel_pictures", "variant_updates", "data_panels", "level2_samples", "level2_starts",
        "compare_panels", "inspect_moments", "collapse_windows", "pixel_samples", "reconstructions",
        "masks", "grid_panels", "planner_updates",
    )),
}  # fmt: skip
"""Settings, or parameters of a notebook, of before.

Other parameters stand below `chapters`, with the chapter before their old name.
"""


MOVED = {"pixels.environment.action_repeat": "pixels.ppo.action_repeat"}
"""What those of `FORMER` are called now that are not gone."""


@functools.cache
def _usual(name: str) -> dict[str, Any]:
    return flatten(profile(name))


def parse_overrides(overrides: str | Sequence[str]) -> dict[str, str]:
    """ "a.b=1, c=x" or ["a.b=1", "c=x, y"] -> {"a.b": "1", "c": "x, y"}; lists are written 1+2+3.

    A text is cut at the commas that a `name=` follows; of a list every entry is taken verbatim.
    """
    if isinstance(overrides, str):
        overrides = re.split(r",(?=\s*[\w.]+\s*=)", overrides.strip().rstrip(","))
    pairs: dict[str, str] = {}
    for part in filter(str.strip, overrides):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key:
            raise ConfigError(f"override {part!r} is not of the form dotted.key=value")
        if key in pairs:
            raise ConfigError(f"override {key!r} is given twice")
        pairs[key] = value
    return pairs


def _check_name(dotted: str) -> None:
    """ConfigError unless it names a setting; it says what became of one of before."""
    names, depth = [one.name for one in describe(Config)], len(dotted) + 1
    if dotted in names:
        return
    inside = [name[depth:].partition(".")[0] for name in names if name.startswith(f"{dotted}.")]
    if inside:
        parts = ", ".join(dict.fromkeys(inside))
        raise ConfigError(f"{dotted!r} is a section; set one of: {parts}")
    near = [one for one in names if re.fullmatch(rf"chapters\.(.+_)?{re.escape(dotted)}", one)]
    near = [MOVED[dotted]] if dotted in MOVED else near
    now = ": it is gone" if dotted in FORMER else ""
    now = f": it is {' or '.join(near)} now" if near else now
    raise ConfigError(f"unknown setting {dotted!r}{now}")


def _changed(section: Any, changes: dict[str, Any]) -> Any:
    """The section with the leaves of these dotted names replaced."""
    own, below = {}, {}
    for dotted, value in changes.items():
        name, dot, rest = dotted.partition(".")
        if dot:
            below.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    own |= {name: _changed(getattr(section, name), inner) for name, inner in below.items()}
    return replace(section, **own)


def read_config(tree: dict[str, Any]) -> Config:
    """The config of a stored manifest, be it of an earlier version."""
    pairs = {name: value for name, value in leaves(tree).items() if name not in FORMER}
    return profile(tree.get("profile", "laptop")).override(pairs, strict=False)


def flatten(config: Any) -> dict[str, Any]:
    """{"level1.optim.updates": 3000, ...} for every leaf of a config."""
    return leaves(to_dict(config))


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configs differ: {"seed": (0, 1)}."""
    left, right = flatten(a), flatten(b)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def settings_text(prefix: str = "", name: str = "laptop") -> str:
    """What `python -m hjepa_lib settings [prefix]` prints of the profile `name`."""
    lines = []
    for one in describe(Config):
        if one.name.startswith(prefix):
            value = _usual(name)[one.name]
            value = "+".join(map(str, value)) if isinstance(value, list) else value
            lines += [f"{one.name} = {value}   {one.allowed}", f"    {one.meaning}"]
            lines += [f"    acts with {need}" for need in one.needs]
    if not lines:
        raise ConfigError(f"no setting begins with {prefix!r}")
    return "\n".join(lines)


class _UniqueKeys(yaml.SafeLoader):
    """YAML where a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                text = f"{key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file called `what` in the ConfigError of a missing or broken one."""
    try:
        return yaml.load(Path(path).read_text(), _UniqueKeys)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)  # none where it is no text at all
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        text = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path} is not valid YAML{where}: {text}") from error


_SETS = read_yaml(Path(__file__).parents[1] / "configs" / "presets.yaml", "file of presets")
PRESETS, BRIEF, PROFILES = (
    {name: leaves(tree) for name, tree in _SETS[part].items()}
    for part in ("presets", "brief", "profiles")
)
"""Overrides by name (configs/presets.yaml): recipes, those of them in smoke, profiles."""


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
