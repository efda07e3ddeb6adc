"""The sections of the configuration: every setting of the workbook, with its unit and range.

Units: px = pixels of the 65 x 65 image, steps = environment steps, actions are displacements in px.
The defaults are the `laptop` profile; config.py holds the profiles and the dotted overrides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hjepa_lib.config.fields import Checked, ConfigError, choice, number


@dataclass(frozen=True)
class TrackingConfig(Checked):
    """Where a tracker files its copy of the curves; the setting `tracker` chooses which one."""

    project: str = "hjepa"
    """Project at Weights & Biases (its WANDB_PROJECT wins)."""
    entity: str = ""
    """User or team at Weights & Biases; "" leaves it to the account."""
    run_name_prefix: str = ""
    """The tracker's run is "<prefix>-YYYYMMDD-HHMMSS", after the start of the run; "": its name."""


@dataclass(frozen=True)
class DataConfig(Checked):
    """Offline trajectories (PLDM's wall data and its relatives)."""

    source: str = "generated"
    """`generated`, `published` (Google Drive), the path of an npz in the published format, or
    `module:Class`, an own world (worlds/base.py)."""
    recipe: str = choice(
        "good", "good", "random", "short17", "short33", "short65", "mixture", "no_crossing",
        "eb_jepa", "expert",
    )  # fmt: skip
    """Motion statistics of the generated trajectories."""
    good_fraction: float = number(0.02, 0, 1)
    """Share of good trajectories; used by `mixture` only."""
    transitions: int = number(325_000, 16, 100_000_000)
    """Exact number of transitions; the last trajectory is truncated to hit it."""
    layouts: str = choice("fixed", "fixed", "random", "rectangle")
    """`fixed` wall 32, door 10; `random` the 900 training ones; `rectangle` all but excluded."""
    exclude_wall: str = "28-36"
    """Wall range "min-max" in px held out by `rectangle` (together with `exclude_door`)."""
    exclude_door: str = "26-38"
    """Door range "min-max" in px held out by `rectangle` (together with `exclude_wall`)."""
    dynamics: str = choice("blocked", "blocked", "bounce", "slide")
    """Collision rule while generating; the published data are `blocked`."""
    val_fraction: float = number(0.05, 0.0, 0.5)
    """Share of trajectories kept out of training, for validation curves."""


@dataclass(frozen=True)
class LossConfig(Checked):
    """Coefficients of the six named terms (objectives.py)."""

    form: str = choice("eb_jepa", "pldm", "eb_jepa")
    """`pldm`: std and cov on frame 0; `eb_jepa`: pooled over batch and time."""
    sim: float = number(1.0, 0)
    std: float = number(2.2, 0)
    std_t: float = number(0.0, 0)
    cov: float = number(0.5, 0)
    sim_t: float = number(0.5, 0)
    idm: float = number(2.0, 0)


@dataclass(frozen=True)
class Level1LossConfig(LossConfig):
    """The seventh, which only level 1 has, and only with level1.static_dim > 0."""

    static: float = number(2.0, 0)


@dataclass(frozen=True)
class OptimConfig(Checked):
    """Adam(W) with linear warm-up, then cosine decay that never rises again (PL4)."""

    updates: int = number(2500, 1)
    batch: int = number(64, 2)
    lr: float = number(1e-3, 0)
    """Peak learning rate."""
    weight_decay: float = number(1e-5, 0)
    warmup: float = number(0.1, 0, 1)
    """Share of the updates spent warming up."""
    final: float = number(1e-3, 0, 1)
    """Last learning rate as a share of the peak."""
    clip: float = number(2.0, 0)
    """Gradient norm limit; 0 switches clipping off."""
    validate_every: int = number(500, 1)
    patience: int = number(0, 0)
    """Early stop after this many validations without improvement; 0 = never."""
    # What the loop asks of every section; only a `GuardedOptimConfig` can set them.
    schedule: ClassVar[str] = "cosine"
    delta: ClassVar[float] = 0.0
    non_finite: ClassVar[str] = "fail"


@dataclass(frozen=True)
class GuardedOptimConfig(OptimConfig):
    """The training loop of seeds 001, 002 and 004: other schedules, lost updates counted."""

    schedule: str = choice("constant", "constant", "plateau", "step")
    """None has a warm-up; the last two halve the rate."""
    delta: float = number(0.0, 0)
    """Least fall of the validation loss that counts as improvement."""
    plateau_patience: int = number(2, 0)
    """`plateau`: validations without improvement that are borne; the next one halves the rate."""
    decay_every: int = number(1_000, 1)
    """`step`: updates between two halvings."""
    min_lr: float = number(0.0, 0)
    """Neither halving goes below this rate."""
    non_finite: str = choice("skip", "fail", "skip")
    """What a loss or gradient that is not finite does: end the training, or lose the update."""


@dataclass(frozen=True)
class Level1Config(Checked):
    """JEPA over single steps (PLDM, arXiv 2502.14819)."""

    load: str = ""
    """Take level 1 from a run (its name, `pretrained`, or its folder) instead of training it."""
    encoder: str = choice("fast", "impala", "fast", "keypoint", "vit")
    latent_dim: int = number(128, 2)
    width: int = number(32, 4)
    """Channels of `fast`, maps of `keypoint`, width of the tokens of `vit` (`impala`: fixed)."""
    predictor: str = choice("mlp", "gru", "mlp", "transformer")
    hidden: int = number(256, 4)
    """Hidden width of the `mlp` predictor, width of the tokens of `transformer`."""
    layers: int = number(2, 1, 32)
    """Hidden layers of the `mlp` predictor; walls that stand elsewhere in every layout need 6."""
    static_dim: int = number(0, 0)
    """Components of the latent, the first ones, that describe the layout and never move."""
    refine_updates: int = number(0, 0)
    """Updates of the predictors alone, on the latents of `distance.trajectories` trajectories,
    after the encoder is finished (training/refine.py)."""
    predictors: int = number(1, 1, 16)
    """Ensemble size K of 003's L_sim and PLDM v2."""
    target: str = choice("online", "online", "ema")
    """Prediction target: the encoder itself (both sides get gradient) or a slow copy."""
    ema_decay: float = number(0.99, 0, 1)
    idm_hidden: int = number(256, 4)
    idm_frozen: bool = False
    """Keep the inverse-dynamics head random, as the public PLDM code did by accident (PL1)."""
    window: int = number(17, 3)
    """States per training window."""
    rollout: int = number(0, 0)
    """Steps of the autoregressive roll-out in the loss; 0 = the whole window."""
    layouts_per_batch: int = number(0, 0)
    """Random layouts only: windows of a batch come from this many layouts; 0 = no grouping."""
    loss: Level1LossConfig = Level1LossConfig()
    optim: OptimConfig = OptimConfig()
    patch: int = number(13, 1)
    """Side of a patch of `vit`, px; divides the image's 65."""
    depth: int = number(2, 1)
    """Blocks of `vit` and of the `transformer` predictor, each."""
    heads: int = number(4, 1)
    """Attention heads of both, which share the width of the tokens."""
    pretrain_mask: float = number(0.0, 0, 0.95)
    """Share of patches hidden in masked pre-training of `vit` before level 1; 0 = none of it."""
    pretrain_updates: int = number(300, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrain_mask and self.encoder != "vit":
            raise ConfigError("level1.pretrain_mask needs level1.encoder=vit: it hides patches")
        if self.predictor == "gru":
            for name in ("static_dim", "refine_updates"):  # its norm is the encoder's
                if getattr(self, name):
                    raise ConfigError(f"level1.{name} needs a predictor that adds to z, not gru")
        if self.static_dim and self.layouts_per_batch == 1:
            raise ConfigError(
                "level1.static_dim tells layouts apart: layouts_per_batch must not be 1"
            )
        if self.static_dim > self.latent_dim - 2:
            raise ConfigError(
                f"level1.static_dim must leave at least 2 of level1.latent_dim={self.latent_dim}"
            )


@dataclass(frozen=True)
class DistanceConfig(Checked):
    """Temporal-distance head on frozen level-1 latents (idea: HILP, Park et al. 2024)."""

    form: str = choice("metric", "metric", "quasimetric")
    """`metric`: ||phi(s) - phi(g)||; `quasimetric`: asymmetric, max of positive coordinate gaps."""
    teacher: str = choice("bootstrap", "bootstrap", "graph")
    """`bootstrap`: n-step targets from a slow copy; `graph`: shortest paths among recorded states
    (training/paths.py), without n_step, gamma, expectile, ema_rate and future_goals."""
    link: float = number(0.8, 1e-3)
    """`graph`: states this many usual steps apart, or less, are joined; keep it below a wall."""
    graph_trajectories: int = number(40, 1, 200)
    """`graph`: trajectories of one layout whose states make one graph."""
    dim: int = number(32, 1)
    hidden: int = number(256, 4)
    n_step: int = number(8, 1)
    gamma: float = number(0.99, 0, 1)
    """Discount per step; 0.98 flattens the far side of the room until plans get stuck there."""
    expectile: float = number(0.9, 0.5, 1)
    ema_rate: float = number(0.02, 0, 1)
    """Rate of the bootstrapping copy; at 0.005 values cross the room four times slower."""
    future_goals: float = number(0.5, 0, 1)
    """Share of goals taken from the future of the same trajectory."""
    trajectories: int = number(3500, 1)
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

    @property
    def discount(self) -> float:
        """Of the steps that the head learns: gamma, or 1 for the lengths of paths."""
        return self.gamma if self.teacher == "bootstrap" else 1.0


@dataclass(frozen=True)
class Level2Config(Checked):
    """RSSM over level-1 latents, `step_skip` steps at a time (models/rssm.py)."""

    disable_l2: bool = False
    """True: level 1 alone, bit-equal to a run without any level-2 code."""
    train: str = choice("frozen", "frozen", "joint")
    """`frozen`: level 1 is loaded and fixed; `joint`: both levels train together from scratch."""
    step_skip: int = number(8, 1)
    macro_steps: int = number(4, 1)
    """Macro steps per training window: the window has macro_steps * step_skip + 1 states."""
    latent: str = choice("gaussian", "gaussian", "categorical", "fsq")
    """What z is made of: normal dimensions, groups of classes, or quantised dimensions."""
    z_dim: int = number(8, 1)
    """Dimensions of z; groups of a categorical one."""
    classes: int = number(8, 2)
    """Classes per group of a categorical z."""
    levels: tuple[int, ...] = number((8,), 2, 256)
    """Levels per dimension of an fsq z; fewer numbers than dimensions repeat."""
    state_dim: int = number(0, 0)
    """Width of the recurrent state; 0 = the level-1 latent width (no projector)."""
    hidden: int = number(256, 4)
    """Width of the two hidden layers of posterior and decoder."""
    min_std: float = number(0.1, 1e-6)
    """Smallest standard deviation of a gaussian z; of the prior of an fsq z, in levels."""
    actions: str = choice("none", "none", "concat", "only", "learned")
    """Macro-action of the GRU: none, concatenated primitives, those without z, or learned (HWM)."""
    macro_dim: int = number(8, 1)
    """Width of the learned macro-action."""
    kl: float = number(0.2, 0)
    free_nats: float = number(0.0, 0)
    kl_balance: float = number(0.0, 0, 1)
    """0: plain KL; else the share of the KL whose gradient reaches the prior only (dreamerv3)."""
    subgoal: float = number(0.0, 0)
    """Weight of the MSE between level-1 roll-outs every step_skip steps and level 2."""
    conditioning: bool = False
    """Level-1 actions get + linear(z) of the current macro step (joint training only)."""
    feedback: bool = False
    """Level-1 latents get + MLP of the previous step_skip latents (joint training only)."""
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
class Level3Config(Checked):
    """A third level on the same frozen level-1 latents: level 2's settings on a slower clock."""

    enabled: bool = False
    step_skip: int = number(32, 1)
    """A multiple of level2.step_skip."""
    macro_steps: int = number(2, 1)
    """Macro steps per training window: the window has macro_steps * step_skip + 1 states."""


@dataclass(frozen=True)
class SearchConfig(Checked):
    """One level of planning: proposal, horizon, cost form and sample budget."""

    method: str = choice("mppi", "mppi", "cem", "gradient")
    horizon: int = number(8, 1)
    """Planned steps of this level (primitive steps at level 1, macro steps at level 2)."""
    samples: int = number(64, 2)
    iterations: int = number(2, 1)
    sigma: float = number(1.5, 1e-6)
    """Proposal standard deviation: px at level 1, prior standard deviations at level 2."""
    temperature: float = number(0.05, 0)
    """MPPI: weights softmax(-(cost - min) / (temperature * unit)); 0 = arg-min."""
    temperature_unit: str = choice("spread", "spread", "cost")
    """`spread`: a trial's standard deviation of costs, so one value fits every cost; `cost`: 1."""
    elites: int = number(20, 1)
    """CEM: candidates that refit the proposal."""
    lr: float = number(0.3, 0)
    """Gradient planner: Adam step size."""
    form: str = choice("auto", "auto", "last", "sum", "closest", "last_k", "last_mean")
    """How per-step costs over the horizon become one number (planning/costs.py); `auto`: `sum` of a
    cost that counts steps, `closest` approach in the latent cost."""
    last_k: int = number(3, 1)
    mean_weight: float = number(0.2, 0)
    """Weight of the horizon mean in `last_mean`."""


@dataclass(frozen=True)
class PlannerConfig(SearchConfig):
    """A search with level 1, which may be an ensemble."""

    disagreement: float = number(0.0, 0)
    """Weight of the ensemble disagreement cost (PLDM v2); needs level1.predictors > 1."""


@dataclass(frozen=True)
class HierarchyConfig(Checked):
    """How level 2 commands level 1."""

    level2: SearchConfig = SearchConfig(horizon=12, samples=64, iterations=2, sigma=1.5)
    tracker: PlannerConfig = PlannerConfig(horizon=4)
    """Level-1 planner that follows the sub-goal."""
    replan: int = number(4, 1)
    """Environment steps between level-2 plans."""
    near: float = number(1.0, 0)
    """Level 1 goes straight to a goal within near * step_skip steps, by the cost's own scale."""
    clip: float = number(3.0, 0)
    """Standardised z stays in [-clip, clip], learned macro-actions in their percentile box; 0 =
    unbounded, both."""
    reachable: float = number(1.0, 0)
    """Weight of the excess of imagined macro-steps over step_skip steps (temporal distance only:
    the latent cost has no unit of time)."""
    control: str = choice("none", "none", "zero", "shuffle", "perturb", "untrained")
    """Built-in controls of level 2's sub-goals; `untrained`: level 2 with its initial weights."""


@dataclass(frozen=True)
class Level3PlannerConfig(SearchConfig):
    """The third level's search; level 2 and the tracker below it are those of `hierarchy`."""

    horizon: int = number(3, 1)
    samples: int = number(128, 2)
    sigma: float = number(1.0, 1e-6)
    replan: int = number(16, 1)
    """Environment steps between level-3 plans."""


@dataclass(frozen=True)
class PlanningConfig(Checked):
    """Everything a planner needs besides the models."""

    cost: str = choice("distance", "latent", "distance")
    action_cap: float = number(0.0, 0)
    """Largest Euclidean action, px; 0 = the protocol's: P1 1.8365 (2.45 x 0.7496), P2 2.45."""
    replan: int = number(4, 1)
    """Environment steps executed per flat plan."""
    flat: PlannerConfig = PlannerConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()
    level3: Level3PlannerConfig = Level3PlannerConfig()


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Trials and protocols (evaluation/results.py says what P1 and P2 fix)."""

    protocol: str = choice("p1", "p1", "p2_seen", "p2_heldout")
    split: str = choice("test", "validation", "test")
    trials: int = number(100, 1, 500)
    steps: int = number(200, 1)
    matched_dynamics: bool = True
    """Also run the best planner on `blocked`, the dynamics of the training data."""
    budgets: tuple[float, ...] = number((0.25, 0.5, 1.0), 0.001, 1000)
    """Sample budgets, as factors, of the success-against-compute figure (validation trials)."""
    budget_trials: int = number(40, 1, 500)
    latency: bool = True
    """Also time one episode alone (batch 1)."""
