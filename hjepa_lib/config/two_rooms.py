"""Settings of data and models of the core; px are pixels of the image."""

import re
from collections.abc import Iterator
from typing import Literal

from hjepa_lib.config.fields import Float, Int, Section, needs
from hjepa_lib.config.optim import OptimConfig

WORLDS = {
    "maze": "mazes:Maze",
    "maze_velocity": "mazes:VelocityMaze",
    "four_rooms": "four_rooms:FourRooms",
    "patrolled_door": "patrolled_door:PatrolledDoor",
    "patrolled_door_one": "patrolled_door:PatrolledDoorOne",
} | {
    f"pointmaze_{maze}_{recipe}": f"pointmaze:{maze.title()}{recipe.title()}"
    for maze in ("medium", "large", "giant", "teleport")
    for recipe in ("navigate", "stitch")
}
"""Built-in worlds beside Two Rooms: name -> module in hjepa_lib/worlds and class."""


def names_world(source: str) -> bool:
    """Whether a `data.source` is a world other than Two Rooms: of `WORLDS`, or an own one."""
    return source in WORLDS or bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source))


class TrackingConfig(Section):
    """Where the chosen `tracker` files its copy of the curves."""

    project: str = "hjepa"
    """Project at Weights & Biases (WANDB_PROJECT wins)."""
    entity: str = ""
    """User or team there; "": the account's."""
    run_name_prefix: str = ""
    """Its run is "<prefix>-YYYYMMDD-HHMMSS", the start; "": the run's name."""


class DataConfig(Section, good_fraction=0.02, exclude_wall="28-36", exclude_door="26-38"):
    """Offline trajectories (PLDM's wall data and its relatives)."""

    source: str = "generated"
    """`generated`, `published` (Google Drive), an .npz file like those, a world's name, an own
    one's `module:Class`, or recorded frames: .h5 of stable-worldmodel, .npz of OGBench,
    `minari:ID`."""
    position: str = ""
    """Column and components of a recording that say where it is, `state:0,1`; "": none."""
    world: str = ""
    """World to play a recording's agent in, named like a source; "": none."""
    recipe: Literal[
        "good", "random", "short17", "short33", "short65", "no_crossing", "eb_jepa", "navigate",
    ] = "good"  # fmt: skip
    """How generated trajectories move; `navigate` is for other worlds."""
    transitions: Int[16:100_000_000] = 325_000
    """Their exact number; the last trajectory is cut."""
    layouts: Literal["fixed", "random", "many"] = "fixed"
    """`fixed`: wall 32, door 10, or a world's first; `random`: those of training; `many`: a longer
    list."""
    dynamics: Literal["blocked", "bounce", "slide"] = "blocked"
    """Collision rule; `blocked` in published data."""
    val_fraction: Float[0.0:0.5] = 0.05
    """Share of trajectories for validation."""

    @property
    def played(self) -> str:
        """Names the world of episodes."""
        return self.world or self.source

    def refused(self) -> Iterator[tuple[object, str]]:
        """A misspelt name of a world."""
        known, form = ("generated", "published", *WORLDS), r"[A-Za-z_]\w*|(?!minari:)[^/\\]{2,}:\w*"
        unknown = re.fullmatch(form, self.source) and self.source not in known
        unknown = unknown and not names_world(self.source)
        text = f"source must be one of {', '.join(known)}, a file, or an own world's module:Class"
        yield unknown, f"{text}; got {self.source!r}"


class LossConfig(Section):
    """Coefficients of the six named terms (models/objectives.py)."""

    form: Literal["pldm", "eb_jepa"] = needs("std>0 or cov>0", "eb_jepa")
    """`pldm`: std and cov on frame 0; `eb_jepa`: pooled over batch and time."""
    sim: Float[0:] = 1.0
    """Prediction: squared error of imagined latents."""
    std: Float[0:] = 2.2
    """Variance: hinge at a standard deviation of 1 over the batch."""
    std_t: Float[0:] = 0.0
    """Over the time of a window."""
    cov: Float[0:] = 0.5
    """Squared covariances of components."""
    sim_t: Float[0:] = 0.5
    """Slowness: squared distance of neighbours in time."""
    idm: Float[0:] = 2.0
    """Inverse dynamics: squared error of actions."""


class Level1LossConfig(LossConfig):
    """One more, of level 1 alone."""

    static: Float[0:] = needs("level1.static_dim>0", 2.0)
    """Static parts alike in a layout, apart in others."""


class Level1Config(
    Section, idm_frozen=False, depth=2, heads=4, target="online", ema_decay=0.99,
):  # fmt: skip
    """JEPA over single steps (PLDM, arXiv 2502.14819)."""

    load: str = ""
    """Run (name, `pretrained` or folder) to take level 1 from; "" trains it."""
    encoder: Literal["impala", "fast", "keypoint", "vit", "place"] = "fast"
    """What reads a frame."""
    latent_dim: Int[2:] = 128
    """Components of a latent."""
    width: Int[4:] = needs("encoder=fast|keypoint|vit|place", 32)
    """Channels of `fast` and `place`, maps of `keypoint`, width of `vit`'s tokens."""
    predictor: Literal["gru", "mlp", "transformer", "local"] = "mlp"
    """What imagines the next latent; with `gru` the encoder ends in a LayerNorm."""
    hidden: Int[4:] = needs("predictor=mlp|transformer|local", 256)
    """Width of the `mlp`'s layers or of the tokens of `transformer`."""
    layers: Int[1:32] = needs("predictor=mlp|local", 2)
    """Their hidden layers; `mlp` needs 6 in random layouts."""
    static_dim: Int[0:] = 0
    """First components of a latent: of the layout, never moving."""
    refine_updates: Int[0:] = 0
    """Updates of the predictors alone, afterwards, on stored latents."""
    predictors: Int[1:16] = 1
    """Ensemble size K of 003's L_sim and PLDM v2."""
    idm_hidden: Int[4:] = needs("level1.loss.idm>0 and predictor!=local", 256)
    """Width of the inverse-dynamics head."""
    window: Int[3:] = 17
    """States per training window."""
    rollout: Int[0:] = needs("predictor!=local", 0)
    """Imagined steps in the loss; 0 = the whole window."""
    foresight: Int[0:] = 0
    """Steps foreseen of what moves by itself; 0: nothing does."""
    layouts_per_batch: Int[0:] = needs("data.layouts=random|many", 0)
    """Layouts in a batch; 0 = any number."""
    loss: Level1LossConfig = needs("predictor!=local", Level1LossConfig())
    optim: OptimConfig = OptimConfig()
    patch: Int[1:] = needs("encoder=vit", 13)
    """Side of a patch, px; divides the image's."""
    pretrain_mask: Float[0:0.95] = 0.0
    """Share of patches hidden in pre-training; 0 = none."""
    pretrain_updates: Int[1:] = needs("pretrain_mask>0", 300)
    """Updates of that pre-training."""

    def refused(self) -> Iterator[tuple[object, str]]:
        """What the encoder, the predictor or the width of the latent cannot do."""
        if self.encoder != "vit":
            yield self.pretrain_mask, "level1.pretrain_mask needs level1.encoder=vit"
        if self.predictor == "gru":  # its norm is the encoder's
            needed = "needs a predictor that adds to z, not gru"
            yield self.static_dim, f"level1.static_dim {needed}"
            yield self.refine_updates, f"level1.refine_updates {needed}"
        together = (self.encoder == "place") != (self.predictor == "local")
        yield together, "level1.encoder=place and level1.predictor=local need each other"
        blind = self.foresight and self.predictor != "local"
        yield blind, "level1.foresight needs level1.predictor=local"
        if self.predictor == "local":
            yield not self.refine_updates, "level1.predictor=local needs level1.refine_updates"
        if self.static_dim:
            alone = self.layouts_per_batch == 1
            yield alone, "level1.static_dim needs level1.layouts_per_batch other than 1"
            left = f"level1.static_dim must leave at least 2 of level1.latent_dim={self.latent_dim}"
            yield self.static_dim > self.latent_dim - 2, left


class DistanceConfig(Section, ema_rate=0.02, future_goals=0.5, form="metric"):
    """Temporal-distance head on frozen level-1 latents (idea: HILP, Park et al. 2024)."""

    teacher: Literal["bootstrap", "graph"] = "bootstrap"
    """`bootstrap`: n-step targets of a slow copy; `graph`: shortest recorded paths."""
    link: Float[1e-3:] = needs("teacher=graph", 0.8)
    """Usual steps between joined states; keep it below a wall."""
    graph_trajectories: Int[1:200] = needs("teacher=graph", 40)
    """Trajectories of one layout in a graph."""
    dim: Int[1:] = 32
    """Width of the embedding phi."""
    hidden: Int[4:] = 256
    """Width of the head's hidden layers."""
    n_step: Int[1:] = needs("teacher=bootstrap", 8)
    """Recorded steps before a target asks the slow copy."""
    gamma: Float[0:1] = needs("teacher=bootstrap", 0.99)
    """Discount per step; low ones flatten the far side."""
    expectile: Float[0.5:1] = needs("teacher=bootstrap", 0.9)
    """Of the targets: near 1 the fastest known way."""
    trajectories: Int[1:] = 3500
    """Training trajectories with latents in memory."""
    optim: OptimConfig = OptimConfig(updates=3000, batch=1024, weight_decay=0.0, warmup=0.02)

    def refused(self) -> Iterator[tuple[object, str]]:
        """A validation that would select."""
        why = "a bootstrapped loss says nothing about quality"
        yield self.optim.patience, f"distance.optim.patience must be 0: {why}"
        yield self.optim.schedule == "plateau", f"distance.optim.schedule must be no plateau: {why}"

    @property
    def discount(self) -> float:
        """Per step: gamma, or 1 for the lengths of paths."""
        return self.gamma if self.teacher == "bootstrap" else 1.0


class PolicyConfig(Section, encoder="fast"):
    """What acts without imagining: rows `gcbc` and `idm`."""

    latent_dim: Int[2:] = 128
    """Width of what it reads."""
    hidden: Int[4:] = 256
    """Width of the two layers behind it."""
    optim: OptimConfig = OptimConfig(updates=2000, batch=128)


class MacroConfig(Section):
    """The clock of a level above the first."""

    step_skip: Int[1:] = 8
    """Environment steps of a macro step; at level 3 a multiple of level 2's."""
    macro_steps: Int[1:] = 4
    """Macro steps of a training window."""


class Level2Config(MacroConfig, levels=[8], free_nats=0.0, kl_balance=0.0, subgoal=0.0):
    """RSSM over level-1 latents, `step_skip` steps at a time."""

    disable_l2: bool = False
    """Level 1 alone, bit-equal to a run without any level-2 code."""
    train: Literal["frozen", "joint"] = "frozen"
    """`frozen`: on a trained level 1; `joint`: together."""
    latent: Literal["gaussian", "categorical"] = "gaussian"
    """z: normal dimensions, or groups of classes."""
    z_dim: Int[1:] = 8
    """Dimensions of z; groups of a categorical one."""
    classes: Int[2:] = needs("latent=categorical", 8)
    """Classes per group."""
    state_dim: Int[0:] = 0
    """Width of the recurrent state; 0 = level 1's latent (no projector)."""
    hidden: Int[4:] = 256
    """Width of posterior and decoder."""
    min_std: Float[1e-6:] = needs("latent=gaussian", 0.1)
    """Smallest standard deviation of z."""
    actions: Literal["none", "concat", "only", "learned"] = "none"
    """What the GRU is fed: z, z and concatenated actions, these only, or learned ones (HWM)."""
    macro_dim: Int[1:] = needs("actions=learned", 8)
    """Width of a learned macro-action."""
    kl: Float[0:] = 0.2
    """Weight of the divergence of posterior and prior."""
    conditioning: bool = False
    """Joint training: level-1 actions get + linear(z)."""
    feedback: bool = False
    """Joint training: level-1 latents get + MLP of the macro step before."""
    loss: LossConfig = LossConfig(std=0.0, cov=0.0, sim_t=0.0, idm=0.0)
    optim: OptimConfig = needs(
        "train=frozen", OptimConfig(updates=1500, batch=128, weight_decay=1e-6)
    )

    def refused(self) -> Iterator[tuple[object, str]]:
        """What a frozen level 1 cannot learn."""
        if self.train != "joint":
            loss = {f"loss.{name}": value for name, value in vars(self.loss).items()}
            for name in ("conditioning", "feedback", "loss.std", "loss.std_t", "loss.cov",
                         "loss.sim_t", "loss.idm"):  # fmt: skip
                needed = f"level2.{name} needs level2.train=joint: level 1 is frozen"
                yield (vars(self) | loss)[name], needed


class Level3Config(MacroConfig):
    """A third level: level 2's settings on a slower clock."""

    enabled: bool = False
    """Train it and plan with it, too."""
    step_skip: Int[1:] = 32
    macro_steps: Int[1:] = 2
