"""Every setting of the workbook, as frozen dataclasses: one place, typed, validated on construction.

A profile (`smoke`, `laptop`, `full`) gives a whole `Config`; dotted overrides such as
``level1.optim.updates=500`` change single values. Unknown names, wrong types and values out of
range raise `ConfigError` with one sentence. Notebooks, command line, YAML files and checkpoints
all go through `Config`, so no value is read twice or silently ignored.

Units: px = pixels of the 65 x 65 image, steps = environment steps, actions are displacements in px.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hjepa_lib.presets import PRESETS


class ConfigError(ValueError):
    """A setting is unknown, has the wrong type, or lies outside its range."""


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"choices": options})


def _number(default: float, low: float, high: float = math.inf) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


class _Checked:
    """Coerces and validates every field when a dataclass below is constructed."""

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


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Offline trajectories (PLDM's wall data and its relatives)."""

    source: str = "generated"
    """`generated`, `published` (Google Drive, opt-in) or the path of an npz in the published format."""
    recipe: str = _choice(
        "good", "good", "random", "short17", "short33", "short65", "mixture", "no_crossing",
        "eb_jepa", "expert",
    )  # fmt: skip
    """Motion statistics of the generated trajectories."""
    good_fraction: float = _number(0.02, 0, 1)
    """Share of good trajectories; used by `mixture` only."""
    transitions: int = _number(325_000, 16, 100_000_000)
    """Exact number of transitions; the last trajectory is truncated to hit it."""
    layouts: str = _choice("fixed", "fixed", "random", "rectangle")
    """`fixed` wall 32 / door 10; `random` the 900 training layouts; `rectangle` all but the excluded ones."""
    exclude_wall: str = "28-36"
    """Wall range "min-max" in px held out by `rectangle` (together with `exclude_door`)."""
    exclude_door: str = "26-38"
    """Door range "min-max" in px held out by `rectangle` (together with `exclude_wall`)."""
    dynamics: str = _choice("blocked", "blocked", "bounce", "slide")
    """Collision rule while generating; the published data are `blocked`."""
    val_fraction: float = _number(0.05, 0.0, 0.5)
    """Share of trajectories kept out of training, for validation curves."""


@dataclass(frozen=True)
class LossConfig(_Checked):
    """Coefficients of the six named terms (objectives.py)."""

    form: str = _choice("eb_jepa", "pldm", "eb_jepa")
    """`pldm`: std and cov on frame 0; `eb_jepa`: pooled over batch and time."""
    sim: float = _number(1.0, 0)
    std: float = _number(2.2, 0)
    std_t: float = _number(0.0, 0)
    cov: float = _number(0.5, 0)
    sim_t: float = _number(0.5, 0)
    idm: float = _number(2.0, 0)


@dataclass(frozen=True)
class OptimConfig(_Checked):
    """Adam(W) with linear warm-up, then cosine decay that never rises again (PL4)."""

    updates: int = _number(2500, 1)
    batch: int = _number(64, 2)
    lr: float = _number(1e-3, 0)
    """Peak learning rate."""
    weight_decay: float = _number(1e-5, 0)
    warmup: float = _number(0.1, 0, 1)
    """Share of the updates spent warming up."""
    final: float = _number(1e-3, 0, 1)
    """Last learning rate as a share of the peak."""
    clip: float = _number(2.0, 0)
    """Gradient norm limit; 0 switches clipping off."""
    validate_every: int = _number(500, 1)
    patience: int = _number(0, 0)
    """Early stop after this many validations without improvement; 0 = never."""


@dataclass(frozen=True)
class Level1Config(_Checked):
    """JEPA over single steps (PLDM, arXiv 2502.14819)."""

    encoder: str = _choice("fast", "impala", "fast")
    latent_dim: int = _number(128, 2)
    width: int = _number(32, 4)
    """Channels of the `fast` encoder (`impala` is fixed at 16, 32, 32)."""
    predictor: str = _choice("mlp", "gru", "mlp")
    hidden: int = _number(256, 4)
    """Hidden width of the `mlp` predictor."""
    predictors: int = _number(1, 1, 16)
    """Ensemble size K of 003's L_sim and PLDM v2."""
    target: str = _choice("online", "online", "ema")
    """Prediction target: the encoder itself (both sides get gradient) or a slow copy."""
    ema_decay: float = _number(0.99, 0, 1)
    idm_hidden: int = _number(256, 4)
    idm_frozen: bool = False
    """Keep the inverse-dynamics head random, as the public PLDM code did by accident (PL1)."""
    window: int = _number(17, 3)
    """States per training window."""
    rollout: int = _number(0, 0)
    """Steps of the autoregressive roll-out in the loss; 0 = the whole window."""
    layouts_per_batch: int = _number(0, 0)
    """Random layouts only: windows of a batch come from this many layouts; 0 = no grouping."""
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


@dataclass(frozen=True)
class DistanceConfig(_Checked):
    """Temporal-distance head on frozen level-1 latents (idea: HILP, Park et al. 2024)."""

    form: str = _choice("metric", "metric", "quasimetric")
    """`metric`: ||phi(s) - phi(g)||; `quasimetric`: asymmetric, max of positive coordinate gaps."""
    dim: int = _number(32, 1)
    hidden: int = _number(256, 4)
    n_step: int = _number(8, 1)
    gamma: float = _number(0.99, 0, 1)
    """Discount per step; 0.98 flattens the far side of the room until plans get stuck there."""
    expectile: float = _number(0.9, 0.5, 1)
    ema_rate: float = _number(0.02, 0, 1)
    """Rate of the bootstrapping copy; 0.005 needs four times the updates to carry values across the room."""
    future_goals: float = _number(0.5, 0, 1)
    """Share of goals taken from the future of the same trajectory."""
    trajectories: int = _number(3500, 1)
    """Training trajectories whose latents are kept in memory."""
    optim: OptimConfig = OptimConfig(
        updates=3000, batch=1024, lr=1e-3, weight_decay=0.0, warmup=0.02
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.patience:
            raise ConfigError(
                "distance.optim.patience must be 0: a bootstrapped loss says nothing about quality"
            )


@dataclass(frozen=True)
class Level2Config(_Checked):
    """RSSM over level-1 latents, `step_skip` steps at a time (models/rssm.py)."""

    disable_l2: bool = False
    """True: level 1 alone, bit-equal to a run without any level-2 code."""
    train: str = _choice("frozen", "frozen", "joint")
    """`frozen`: level 1 is loaded and fixed; `joint`: both levels train together from scratch."""
    step_skip: int = _number(8, 1)
    macro_steps: int = _number(4, 1)
    """Macro steps per training window: the window has macro_steps * step_skip + 1 states."""
    z_dim: int = _number(8, 1)
    state_dim: int = _number(0, 0)
    """Width of the recurrent state; 0 = the level-1 latent width (no projector)."""
    hidden: int = _number(512, 4)
    """Width of the two hidden layers of posterior and decoder."""
    min_std: float = _number(0.1, 1e-6)
    actions: str = _choice("none", "none", "concat", "only", "learned")
    """Macro-action fed to the GRU: none, concatenated primitives, primitives without z, or learned (HWM)."""
    macro_dim: int = _number(8, 1)
    """Width of the learned macro-action."""
    kl: float = _number(0.2, 0)
    free_nats: float = _number(0.0, 0)
    kl_balance: float = _number(0.0, 0, 1)
    """0: plain KL; else share of the KL whose gradient reaches the prior only (dreamerv3 uses two one-sided terms)."""
    subgoal: float = _number(0.0, 0)
    """Weight of the consistency between level-1 roll-outs every step_skip steps and level-2 predictions."""
    conditioning: bool = False
    """Level-1 actions get + linear(z) of the current macro step (seed variant; joint training only)."""
    feedback: bool = False
    """Level-1 latents get an MLP of the previous step_skip latents (seed variant; joint training only)."""
    loss: LossConfig = LossConfig(std=0.0, cov=0.0, sim_t=0.0, idm=0.0)
    optim: OptimConfig = OptimConfig(updates=1500, batch=128, lr=1e-3, weight_decay=1e-6)
    """Of `frozen` training; `joint` training follows level1.optim."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # What a frozen level 1 cannot learn, or level 2 cannot change, would silently do nothing.
        joint = {name: getattr(self, name) for name in ("subgoal", "conditioning", "feedback")}
        for name in ("std", "std_t", "cov", "sim_t", "idm"):
            joint[f"loss.{name}"] = getattr(self.loss, name)
        for name, value in joint.items():
            if value and self.train != "joint":
                raise ConfigError(f"level2.{name} needs level2.train=joint: level 1 is frozen")


@dataclass(frozen=True)
class PlannerConfig(_Checked):
    """One level of planning: proposal, horizon, cost form and sample budget."""

    method: str = _choice("mppi", "mppi", "cem", "gradient")
    horizon: int = _number(8, 1)
    """Planned steps of this level (primitive steps at level 1, macro steps at level 2)."""
    samples: int = _number(64, 2)
    iterations: int = _number(2, 1)
    sigma: float = _number(1.5, 1e-6)
    """Proposal standard deviation: px at level 1, prior standard deviations at level 2."""
    temperature: float = _number(0.05, 0)
    """MPPI: weights softmax(-(cost - min) / (temperature * unit)); 0 = arg-min."""
    temperature_unit: str = _choice("spread", "spread", "cost")
    """`spread`: a trial's standard deviation of costs, so one value fits every cost; `cost`: 1."""
    elites: int = _number(20, 1)
    """CEM: candidates that refit the proposal."""
    lr: float = _number(0.3, 0)
    """Gradient planner: Adam step size."""
    form: str = _choice("last_mean", "sum", "last", "closest", "last_k", "last_mean")
    """How per-step costs over the horizon become one number (planning/costs.py)."""
    last_k: int = _number(3, 1)
    mean_weight: float = _number(0.2, 0)
    """Weight of the horizon mean in `last_mean`."""
    disagreement: float = _number(0.0, 0)
    """Weight of the ensemble disagreement cost (PLDM v2); needs level1.predictors > 1."""


@dataclass(frozen=True)
class HierarchyConfig(_Checked):
    """How level 2 commands level 1."""

    level2: PlannerConfig = PlannerConfig(horizon=8, samples=128, iterations=2, sigma=1.0)
    tracker: PlannerConfig = PlannerConfig()
    """Level-1 planner that follows the sub-goal."""
    replan: int = _number(4, 1)
    """Environment steps between level-2 plans."""
    near: float = _number(1.0, 0)
    """Level 1 goes straight to the goal once it is within near * step_skip steps, by the cost's own scale."""
    clip: float = _number(2.0, 0)
    """Standardised z is kept in [-clip, clip]; 0 = unbounded (the percentile box bounds learned macro-actions)."""
    control: str = _choice("none", "none", "zero", "shuffle", "perturb")
    """Built-in controls of level 2's sub-goals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level2.disagreement:
            raise ConfigError("planning.hierarchy.level2.disagreement must be 0: no ensemble there")


@dataclass(frozen=True)
class PlanningConfig(_Checked):
    """Everything a planner needs besides the models."""

    cost: str = _choice("distance", "latent", "distance")
    action_cap: float = _number(0.0, 0)
    """Largest Euclidean action in px; 0 = the protocol's own: P1 1.8365 (2.45 x 0.7496), P2 2.45."""
    replan: int = _number(4, 1)
    """Environment steps executed per flat plan."""
    flat: PlannerConfig = PlannerConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()


@dataclass(frozen=True)
class EvaluationConfig(_Checked):
    """Trials and protocols (evaluation/results.py says what P1 and P2 fix)."""

    protocol: str = _choice("p1", "p1", "p2_seen", "p2_heldout")
    split: str = _choice("test", "validation", "test")
    trials: int = _number(100, 1, 500)
    steps: int = _number(200, 1)
    matched_dynamics: bool = True
    """Also run the best planner on `blocked`, the dynamics of the training data."""
    budgets: tuple[float, ...] = _number((0.25, 0.5, 1.0), 0.001, 1000)
    """Sample budgets, as factors, of the success-against-compute figure (validation trials)."""
    budget_trials: int = _number(40, 1, 500)
    latency: bool = True
    """Also time one episode alone (batch 1)."""


@dataclass(frozen=True)
class Config(_Checked):
    """One run = one training seed."""

    profile: str = _choice("laptop", "smoke", "laptop", "full")
    seed: int = _number(0, 0, 2**31 - 1)
    device: str = _choice("auto", "auto", "cpu", "cuda", "mps")
    precision: str = _choice("auto", "auto", "fp32", "bf16")
    """`auto`: a one-second micro-benchmark decides; the choice is stored in the manifest."""
    data: DataConfig = DataConfig()
    level1: Level1Config = Level1Config()
    distance: DistanceConfig = DistanceConfig()
    level2: Level2Config = Level2Config()
    planning: PlanningConfig = PlanningConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        planners = (self.planning.flat, self.planning.hierarchy.tracker)
        if self.level1.predictors == 1 and any(one.disagreement for one in planners):
            raise ConfigError("a planner's disagreement cost needs level1.predictors > 1")

    def override(self, overrides: str | dict[str, Any]) -> Config:
        """A copy with dotted keys replaced; `overrides` is "a.b=1,c=x" or {"a.b": 1}.

        The key `preset` stands for a published recipe (presets.py); other keys win over it.
        """
        pairs = parse_overrides(overrides) if isinstance(overrides, str) else dict(overrides)
        if pairs.get("profile", self.profile) != self.profile:
            raise ConfigError("the profile is chosen by profile(), it cannot be overridden")
        name = pairs.pop("preset", None)
        if name is not None:
            if name not in PRESETS:
                raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
            pairs = PRESETS[name] | pairs
        tree = to_dict(self)
        for key, value in pairs.items():
            _set(tree, key, value)
        return from_dict(Config, tree)


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

    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        leaves: dict[str, Any] = {}
        for key, value in node.items():
            leaves |= walk(f"{prefix}.{key}" if prefix else key, value)
        return leaves

    return walk("", to_dict(config))


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Leaves in which two configs differ: {"seed": (0, 1)}."""
    left, right = flatten(a), flatten(b)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def load_yaml(path: str | Path, base: Config | None = None) -> Config:
    """A YAML file of nested sections on top of `base` (its `profile:` key chooses one otherwise)."""
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {error.problem}") from error
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
        "evaluation.trials": 4,
        "evaluation.steps": 40,
        "evaluation.budgets": [0.5, 1.0],
        "evaluation.budget_trials": 2,
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
    },
}
