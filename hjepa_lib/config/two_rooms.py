"""Settings of data and models of the core, notebooks 01 to 08.

Units: px = pixels of the image, steps = environment steps, actions are displacements in px.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hjepa_lib.config.fields import Checked, ConfigError, choice, number, setting
from hjepa_lib.config.optim import OptimConfig


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
    good_fraction: float = number(0.02, 0, 1, needs="recipe=mixture")
    """Share of good trajectories among random ones."""
    transitions: int = number(325_000, 16, 100_000_000)
    """Exact number of transitions; the last trajectory is truncated to hit it."""
    layouts: str = choice("fixed", "fixed", "random", "rectangle")
    """`fixed` wall 32, door 10; `random` the 900 training ones; `rectangle` all but excluded."""
    exclude_wall: str = setting("28-36", needs="layouts=rectangle")
    """Wall range "min-max" in px held out (together with `exclude_door`)."""
    exclude_door: str = setting("26-38", needs="layouts=rectangle")
    """Door range "min-max" in px held out (together with `exclude_wall`)."""
    dynamics: str = choice("blocked", "blocked", "bounce", "slide")
    """Collision rule while generating; the published data are `blocked`."""
    val_fraction: float = number(0.05, 0.0, 0.5)
    """Share of trajectories kept out of training, for validation curves."""


@dataclass(frozen=True)
class LossConfig(Checked):
    """Coefficients of the six named terms (models/objectives.py)."""

    form: str = choice("eb_jepa", "pldm", "eb_jepa", needs="std>0 or cov>0")
    """`pldm`: std and cov on frame 0; `eb_jepa`: pooled over batch and time."""
    sim: float = number(1.0, 0)
    """Prediction: squared error of the imagined latents."""
    std: float = number(2.2, 0)
    """Variance: hinge at a standard deviation of 1 over the batch."""
    std_t: float = number(0.0, 0)
    """The same hinge over the time of a window."""
    cov: float = number(0.5, 0)
    """Squared covariances between the components of a latent."""
    sim_t: float = number(0.5, 0)
    """Slowness: squared distance of neighbours in time."""
    idm: float = number(2.0, 0)
    """Inverse dynamics: squared error of the action read from two latents."""


@dataclass(frozen=True)
class Level1LossConfig(LossConfig):
    """The seventh, which only level 1 has."""

    static: float = number(2.0, 0, needs="level1.static_dim>0")
    """Static parts of one layout alike, of different layouts apart."""


@dataclass(frozen=True)
class Level1Config(Checked):
    """JEPA over single steps (PLDM, arXiv 2502.14819)."""

    load: str = ""
    """Take level 1 from a run (its name, `pretrained`, or its folder) instead of training it."""
    encoder: str = choice("fast", "impala", "fast", "keypoint", "vit")
    """What reads a frame (models/encoders.py)."""
    latent_dim: int = number(128, 2)
    """Components of a latent."""
    width: int = number(32, 4, needs="encoder=fast|keypoint|vit")
    """Channels of `fast`, maps of `keypoint`, width of the tokens of `vit`."""
    predictor: str = choice("mlp", "gru", "mlp", "transformer")
    """What imagines the next latent (models/predictors.py); `gru` puts a LayerNorm behind whatever
    encoder, since its own state lies in (-1, 1)."""
    hidden: int = number(256, 4, needs="predictor=mlp|transformer")
    """Hidden width of the `mlp` predictor, width of the tokens of `transformer`."""
    layers: int = number(2, 1, 32, needs="predictor=mlp")
    """Hidden layers of the predictor; walls that stand elsewhere in every layout need 6."""
    static_dim: int = number(0, 0)
    """Components of the latent, the first ones, that describe the layout and never move."""
    refine_updates: int = number(0, 0)
    """Updates of the predictors alone, on the latents of `distance.trajectories` trajectories,
    after the encoder is finished."""
    predictors: int = number(1, 1, 16)
    """Ensemble size K of 003's L_sim and PLDM v2."""
    target: str = choice("online", "online", "ema")
    """Prediction target: the encoder itself (both sides get gradient) or a slow copy."""
    ema_decay: float = number(0.99, 0, 1, needs="target=ema")
    """Share that the slow copy keeps at every update."""
    idm_hidden: int = number(256, 4, needs="level1.loss.idm>0")
    """Hidden width of the inverse-dynamics head."""
    idm_frozen: bool = setting(False, needs="level1.loss.idm>0")
    """Keep the inverse-dynamics head random, as the public PLDM code did by accident (PL1)."""
    window: int = number(17, 3)
    """States per training window."""
    rollout: int = number(0, 0)
    """Steps of the autoregressive roll-out in the loss; 0 = the whole window."""
    layouts_per_batch: int = number(0, 0, needs="data.layouts=random|rectangle")
    """Windows of a batch come from this many layouts; 0 = no grouping."""
    loss: Level1LossConfig = Level1LossConfig()
    optim: OptimConfig = field(default=OptimConfig())
    patch: int = number(13, 1, needs="encoder=vit")
    """Side of a patch, px; divides the image's."""
    depth: int = number(2, 1, needs="encoder=vit or predictor=transformer")
    """Blocks of `vit` and of the `transformer` predictor, each."""
    heads: int = number(4, 1, needs="encoder=vit or predictor=transformer")
    """Attention heads of both, which share the width of the tokens."""
    pretrain_mask: float = number(0.0, 0, 0.95)
    """Share of patches hidden in masked pre-training of `vit` before level 1; 0 = none of it."""
    pretrain_updates: int = number(300, 1, needs="pretrain_mask>0")
    """Updates of the masked pre-training."""

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
    """`bootstrap`: n-step targets from a slow copy; `graph`: shortest paths among recorded
    states."""
    link: float = number(0.8, 1e-3, needs="teacher=graph")
    """States this many usual steps apart, or less, are joined; keep it below a wall."""
    graph_trajectories: int = number(40, 1, 200, needs="teacher=graph")
    """Trajectories of one layout whose states make one graph."""
    dim: int = number(32, 1)
    """Width of the embedding phi."""
    hidden: int = number(256, 4)
    """Width of the head's hidden layers."""
    n_step: int = number(8, 1, needs="teacher=bootstrap")
    """Recorded steps of a target before it asks the slow copy."""
    gamma: float = number(0.99, 0, 1, needs="teacher=bootstrap")
    """Discount per step; 0.98 flattens the far side of the room until plans get stuck there."""
    expectile: float = number(0.9, 0.5, 1, needs="teacher=bootstrap")
    """Which expectile of the targets is learned: near 1 the fastest known way."""
    ema_rate: float = number(0.02, 0, 1, needs="teacher=bootstrap")
    """Rate of the bootstrapping copy; at 0.005 values cross the room four times slower."""
    future_goals: float = number(0.5, 0, 1, needs="teacher=bootstrap")
    """Share of goals taken from the future of the same trajectory."""
    trajectories: int = number(3500, 1)
    """Training trajectories whose latents are kept in memory."""
    optim: OptimConfig = field(
        default=OptimConfig(updates=3000, batch=1024, lr=1e-3, weight_decay=0.0, warmup=0.02)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.patience or self.optim.schedule == "plateau":
            raise ConfigError(
                "distance.optim.patience must be 0 and its schedule no plateau: "
                "a bootstrapped loss says nothing about quality"
            )

    @property
    def discount(self) -> float:
        """Of the steps that the head learns: gamma, or 1 for the lengths of paths."""
        return self.gamma if self.teacher == "bootstrap" else 1.0


@dataclass(frozen=True)
class Level2Config(Checked):
    """RSSM over level-1 latents, `step_skip` steps at a time (models/level2.py)."""

    disable_l2: bool = False
    """True: level 1 alone, bit-equal to a run without any level-2 code."""
    train: str = choice("frozen", "frozen", "joint")
    """`frozen`: level 1 is loaded and fixed; `joint`: both levels train together from scratch."""
    step_skip: int = number(8, 1)
    """Environment steps of one macro step."""
    macro_steps: int = number(4, 1)
    """Macro steps per training window: the window has macro_steps * step_skip + 1 states."""
    latent: str = choice("gaussian", "gaussian", "categorical", "fsq")
    """What z is made of: normal dimensions, groups of classes, or quantised dimensions."""
    z_dim: int = number(8, 1)
    """Dimensions of z; groups of a categorical one."""
    classes: int = number(8, 2, needs="latent=categorical")
    """Classes per group."""
    levels: tuple[int, ...] = number((8,), 2, 256, needs="latent=fsq")
    """Levels per dimension; fewer numbers than dimensions repeat."""
    state_dim: int = number(0, 0)
    """Width of the recurrent state; 0 = the level-1 latent width (no projector)."""
    hidden: int = number(256, 4)
    """Width of the two hidden layers of posterior and decoder."""
    min_std: float = number(0.1, 1e-6, needs="latent=gaussian|fsq")
    """Smallest standard deviation of a gaussian z; of the prior of an fsq z, in levels."""
    actions: str = choice("none", "none", "concat", "only", "learned")
    """Macro-action of the GRU: none, concatenated primitives, those without z, or learned (HWM)."""
    macro_dim: int = number(8, 1, needs="actions=learned")
    """Width of the learned macro-action."""
    kl: float = number(0.2, 0)
    """Weight of the divergence between posterior and prior."""
    free_nats: float = number(0.0, 0, needs="kl>0")
    """Divergence below this, in nats, is not pressed down further."""
    kl_balance: float = number(0.0, 0, 1, needs="kl>0")
    """0: plain KL; else the share of the KL whose gradient reaches the prior only (dreamerv3)."""
    subgoal: float = number(0.0, 0)
    """Joint training: weight of the MSE between level-1 roll-outs every step_skip steps and
    level 2."""
    conditioning: bool = False
    """Joint training: level-1 actions get + linear(z) of the current macro step."""
    feedback: bool = False
    """Joint training: level-1 latents get + MLP of the previous step_skip latents."""
    loss: LossConfig = LossConfig(std=0.0, cov=0.0, sim_t=0.0, idm=0.0)
    optim: OptimConfig = field(
        default=OptimConfig(updates=1500, batch=128, lr=1e-3, weight_decay=1e-6),
        metadata={"needs": "train=frozen"},
    )

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
    """True: train a third level and plan with it as well."""
    step_skip: int = number(32, 1)
    """Environment steps of its macro step, a multiple of level2.step_skip."""
    macro_steps: int = number(2, 1)
    """Macro steps per training window: the window has macro_steps * step_skip + 1 states."""
