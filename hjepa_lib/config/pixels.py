"""Settings of the world-model comparison on pixels (notebooks 10-15, seeds 001, 002, 004).

Sizes of networks and losses are those of the seeds. Budgets (episodes, updates), and the learning
rates that fit so few updates, are the `laptop` profile's; the seeds' own stand in the profile
`full`. A training section counts in epochs as the seeds do; `updates` above 0 fixes the number of
updates whatever the size of the data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hjepa_lib.config.fields import Checked, ConfigError, choice, number
from hjepa_lib.config.two_rooms import GuardedOptimConfig

MODELS = ("enc_dec", "enc_dec_jepa", "jepa", "vjepa2")
"""The four world models of the comparison; frozen, untrained encoders stand beside them
(`pixelrows.UNTRAINED`)."""


@dataclass(frozen=True)
class EpochsConfig(Checked):
    """AdamW over passes through the training part (TRAIN-2)."""

    epochs: int = number(20, 1)
    updates: int = number(0, 0)
    """Fixed number of updates; 0 = `epochs` passes."""
    batch: int = number(32, 2)
    lr: float = number(3e-4, 0)
    weight_decay: float = number(1e-5, 0)
    schedule: str = choice("constant", "constant", "plateau", "step")
    """`plateau`: halved after more than `plateau_patience` validations without progress (VJ-5);
    `step`: halved every 20 epochs (GRID-5)."""
    plateau_patience: int = number(2, 0)
    min_lr: float = number(1e-6, 0)
    clip: float = number(1.0, 0)
    """Gradient norm limit; 0 switches clipping off."""
    patience: int = number(3, 0)
    """Early stop after this many epochs without improvement; 0 = never."""
    delta: float = number(0.001, 0)
    """Least fall of the validation loss that counts as improvement."""

    def optim(self, rows: int) -> GuardedOptimConfig:
        """What the common training loop needs for `rows` training rows; validates once an epoch."""
        epoch = max(1, rows // self.batch)
        return GuardedOptimConfig(
            updates=self.updates or self.epochs * epoch,
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
            validate_every=min(epoch, self.updates or epoch),
            patience=self.patience,
            schedule=self.schedule,
            delta=self.delta,
            plateau_patience=self.plateau_patience,
            min_lr=self.min_lr,
            decay_every=20 * epoch,
        )


@dataclass(frozen=True)
class EnvironmentConfig(Checked):
    """Which pixels, and how they are seen (ENV-1 to ENV-8)."""

    id: str = "ALE/Breakout-v5"
    """Any Gymnasium id; `hjepa/Drift-v0` and `hjepa/Push-v0` are built in and need no extra."""
    image_size: int = number(64, 16, 256)
    grayscale: bool = True
    stack: int = number(4, 1, 16)
    """Frames of one state, oldest first."""
    action_repeat: int = number(0, 0, 64)
    """The same action this many times, rewards summed; 0 or 1 = off. PPO collection only."""
    frame_skip: int = number(0, 0, 64)
    """Extra steps per decision with new actions each; must be 0 with action_repeat above 1."""
    max_steps: int = number(300, 2)
    """Environment steps of an episode at most, skipped ones included."""


@dataclass(frozen=True)
class CollectionConfig(Checked):
    """Where transitions come from (DATA-1 to DATA-10)."""

    method: str = choice("random", "random", "ppo")
    episodes: int = number(100, 2)
    transitions: int = number(3_000, 0)
    """Stop collecting at this many transitions, cutting the last episode; 0 = no limit."""
    path: str = ""
    """A data folder to load; "" collects. Missing or of another environment: collected anew."""
    validation_split: float = number(0.2, 0.01, 0.5)
    """Share of episodes, not of transitions: neighbours never stand on both sides."""
    sequence: int = number(8, 2)
    """Transitions of a training window (DATA-10)."""


@dataclass(frozen=True)
class PpoConfig(Checked):
    """Stable-Baselines3 PPO that collects with a skilled, stochastic policy (DATA-2)."""

    steps: int = number(500_000, 1)
    n_envs: int = number(8, 1)
    """Parallel environments, capped at the number of CPUs."""
    learning_rate: float = number(3e-4, 0)
    n_steps: int = number(1024, 2)
    batch: int = number(32, 2)
    epochs: int = number(5, 1)
    gamma: float = number(0.99, 0, 1)
    gae_lambda: float = number(0.95, 0, 1)
    clip_range: float = number(0.2, 0, 1)
    policy: str = choice("CnnPolicy", "CnnPolicy", "MlpPolicy")
    log_std_noise: float = number(0.0, 0)
    """Added to a continuous policy's log-std before collecting."""
    action_repeat: int = number(2, 0, 64)
    """Holds where `environment.action_repeat` is 0."""


@dataclass(frozen=True)
class LoadingConfig(Checked):
    """Weights to start from, and whether training may be skipped then (TRAIN-6)."""

    path: str = ""
    kind: str = choice("jepa", "std_enc_dec", "jepa", "enc_dec_jepa_style")
    skip_training: bool = False
    """Skip the training of the loaded model; only if the load worked."""


@dataclass(frozen=True)
class PixelEncoderConfig(Checked):
    """One field switches the encoder of all models (MOD-1 to MOD-4)."""

    kind: str = choice("cnn", "vit", "cnn", "mlp")
    latent_dim: int = number(64, 2)
    patch: int = number(8, 1)
    depth: int = number(4, 1)
    heads: int = number(4, 1)
    head_dim: int = number(64, 1)
    mlp_dim: int = number(512, 1)
    dropout: float = number(0.2, 0, 0.9)
    embedding_dropout: float = number(0.1, 0, 0.9)
    pool: str = choice("cls", "cls", "mean")
    temporal_depth: int = number(2, 0)
    temporal_heads: int = number(8, 1)
    temporal_mlp: int = number(256, 1)
    temporal_dropout: float = number(0.1, 0, 0.9)
    cnn_layers: int = number(3, 1)
    cnn_filters: int = number(32, 1)
    """Of the first layer; doubled from layer to layer."""
    cnn_activation: str = choice("relu", "relu", "gelu")
    cnn_hidden: int = number(0, 0)
    """Width of an extra fully connected layer; 0 = none."""
    cnn_dropout: float = number(0.0, 0, 0.9)
    mlp_hidden: int = number(256, 1)
    mlp_layers: int = number(2, 0)
    """Hidden layers of the `mlp` encoder; 0 = linear."""
    mlp_activation: str = choice("relu", "relu", "gelu")
    mlp_dropout: float = number(0.0, 0, 0.9)


@dataclass(frozen=True)
class DecoderConfig(Checked):
    """Transformer decoder with one learned query per output patch (MOD-6)."""

    patch: int = number(8, 1)
    dim: int = number(64, 8)
    depth: int = number(5, 1)
    heads: int = number(4, 1)
    head_dim: int = number(16, 1)
    mlp_dim: int = number(512, 1)
    dropout: float = number(0.2, 0, 0.9)
    source: str = choice("predictor", "predictor", "online", "target")
    """What JEPA's frozen decoder reads: the imagined latent, or an encoding of s_{t+1} (MOD-10)."""
    optim: EpochsConfig = EpochsConfig(updates=400, lr=1e-3, patience=5)


@dataclass(frozen=True)
class AuxiliaryConfig(Checked):
    """The loss that keeps latents from collapsing (LOSS-2 to LOSS-5)."""

    kind: str = choice("vicreg", "none", "vicreg", "barlow_twins", "dino")
    weight: float = number(1.0, 0)
    use_for_jepa: bool = True
    use_for_enc_dec: bool = False
    sim: float = number(1.0, 0)
    std: float = number(1.0, 0)
    cov: float = number(0.1, 0)
    eps: float = number(1e-4, 1e-12)
    """Added to the variance under VICReg's square root."""
    projector: bool = False
    """Linear-BN-ReLU twice and Linear before the VICReg terms."""
    projector_dim: int = number(512, 1)
    """Width of the projector's layers."""
    clamp: bool = False
    """The seed's clamps: projections +-10, covariances +-100, terms at most 100."""
    barlow_lambda: float = number(0.0051, 0)
    barlow_scale: float = number(1.0, 0)
    barlow_eps: float = number(1e-5, 1e-12)
    """Added to the variance that a batch is standardised by."""
    dino_momentum: float = number(0.9, 0, 1)


@dataclass(frozen=True)
class PixelJepaConfig(Checked):
    """JEPA with an EMA target (MOD-8, MOD-9)."""

    target: str = choice("default", "default", "vjepa2", "none")
    """Whose latents go in and are predicted; see models/pixels.py."""
    ema_decay: float = number(0.99, 0, 1)
    predictor: str = choice("mlp", "mlp", "transformer")
    hidden: tuple[int, ...] = (256, 256)
    dropout: float = number(0.0, 0, 0.9)
    lr: float = number(0.0, 0)
    """Learning rate of JEPA alone; 0 = that of `pixels.optim` (TRAIN-2)."""
    frozen: bool = False
    """A frozen JEPA is loaded, never trained (TRAIN-6)."""


@dataclass(frozen=True)
class RewardConfig(Checked):
    """Reward MLP and look-ahead reward predictor share all of this (MOD-11, MOD-12)."""

    hidden: int = number(512, 1)
    layers: int = number(3, 1)
    activation: str = choice("relu", "relu", "leaky", "tanh", "sigmoid")
    dropout: float = number(0.2, 0, 0.9)
    seeds: int = number(5, 1, 20)
    """Training seeds of the look-ahead study on the built-in reward worlds."""
    study_transitions: int = number(3_000, 100)
    optim: EpochsConfig = EpochsConfig(updates=1_000, weight_decay=0.01, delta=0.0)
    log_every: int = number(100, 1)
    """Updates between logged training losses."""
    standardise: bool = True
    """Inputs scaled by mean and deviation of the training part, so that no model's units decide."""
    study_updates: int = number(200, 0)
    """Updates of a base model (of each of its stages) in the study at most; 0 = as in the run."""


@dataclass(frozen=True)
class Stage1Config(Checked):
    """Masked pre-training of V-JEPA 2 style (VJ-1 to VJ-6)."""

    mask: float = number(0.4, 0, 0.95)
    patch: int = number(8, 1)
    depth: int = number(4, 1)
    loss: str = choice("l1", "l1", "mse", "smooth_l1")
    patch_loss: float = number(0.0, 0)
    """Weight of the additional per-patch loss on masked tokens."""
    ema_decay: float = number(0.996, 0, 1)
    hidden: tuple[int, ...] = (256, 256)
    mask_token: str = choice("latent", "latent", "projected")
    """`projected`: a 64-wide token with its own projection (VJ-2)."""
    optim: EpochsConfig = EpochsConfig(
        epochs=10, updates=600, lr=1e-4, weight_decay=0.05, schedule="plateau", delta=0.0
    )


@dataclass(frozen=True)
class Stage2Config(Checked):
    """Causal action-conditioned transformer over frozen latents (VJ-7 to VJ-11)."""

    depth: int = number(4, 1)
    heads: int = number(8, 1)
    head_dim: int = number(64, 1)
    mlp_dim: int = number(512, 1)
    dropout: float = number(0.1, 0, 0.9)
    teacher_forcing: float = number(0.7, 0, 1)
    """Weight of the teacher-forced term; the roll-out term has the rest."""
    teacher_forcing_ratio: float = number(0.8, 0, 1)
    """Share of the steps before the roll-out that see true latents."""
    rollout_steps: int = number(4, 1)
    optim: EpochsConfig = EpochsConfig(
        epochs=30, updates=1_150, lr=1e-4, weight_decay=0.05, schedule="plateau", delta=0.0
    )
    output: str = choice("latent", "latent", "change")
    """What the world model's last layer gives: the next latent, or its difference to the present
    one, which starts as copy-last."""


@dataclass(frozen=True)
class VJepa2Config(Checked):
    """The two-stage model of seed 002."""

    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()


@dataclass(frozen=True)
class GridConfig(Checked):
    """Seed 004: JEPA on discrete grids with a generative twin (GRID-1 to GRID-12)."""

    path: str = ""
    """Replay buffer (.npz, .pt or .h5); "" plays the built-in grid world."""
    size: int = number(10, 3, 30)
    """Cells per side of a built-in canvas; the seed has 30, which is for the profile full."""
    episodes: int = number(300, 2)
    """One goal each: what the reward heads learn from is mostly the number of goals."""
    steps: int = number(10, 2)
    """Transitions per episode."""
    encoder: str = choice("transformer", "transformer", "cnn")
    encoder_depth: int = number(2, 1)
    latent_dim: int = number(128, 8)
    action_dim: int = number(64, 4)
    action_encoder: str = choice("table", "table", "one_hot")
    depth: int = number(4, 1)
    heads: int = number(8, 1)
    head_dim: int = number(64, 1)
    mlp_dim: int = number(256, 1)
    ema_decay: float = number(0.995, 0, 1)
    action_weight: float = number(0.1, 0)
    """Weight of the generative twin's action cross-entropy."""
    checkpoint_every: int = number(0, 0)
    """Keep a numbered checkpoint every so many epochs; 0 = only the best."""
    log_every: int = number(10, 1)
    """Updates between logged training losses, of the grid models and their reward heads."""
    optim: EpochsConfig = EpochsConfig(
        epochs=100, updates=300, lr=1e-4, weight_decay=1e-4, patience=15, delta=0.0
    )
    reward_optim: EpochsConfig = EpochsConfig(
        updates=400, lr=1e-4, schedule="plateau", plateau_patience=5, patience=10, delta=0.0
    )


@dataclass(frozen=True)
class PixelsConfig(Checked):
    """Everything that notebooks 10 to 15 read."""

    seeds: int = number(3, 1, 20)
    """Training seeds `seed`, `seed + 1`, ... of every model, on the same data."""
    environment: EnvironmentConfig = EnvironmentConfig()
    data: CollectionConfig = CollectionConfig()
    ppo: PpoConfig = PpoConfig()
    loading: LoadingConfig = LoadingConfig()
    encoder: PixelEncoderConfig = PixelEncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    jepa: PixelJepaConfig = PixelJepaConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    action_dim: int = number(32, 1)
    """Width of the action embedding (MOD-5)."""
    optim: EpochsConfig = EpochsConfig(updates=600, lr=1e-3)
    """Encoder-decoder models and JEPA."""
    log_every: int = number(20, 1)
    """Updates between logged training losses of world models and state decoders."""
    reward: RewardConfig = RewardConfig()
    vjepa2: VJepa2Config = VJepa2Config()
    grid: GridConfig = GridConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        seen = self.environment
        if seen.frame_skip and seen.action_repeat > 1:
            raise ConfigError(
                "pixels.environment.frame_skip must be 0 when action_repeat is above 1"
            )
        if not seen.id.strip():
            raise ConfigError("pixels.environment.id is empty; name a Gymnasium environment")

    def optim_of(self, model: str) -> EpochsConfig:
        """How `model` is trained: by `optim`, JEPA at its own learning rate if it has one."""
        own = self.jepa.lr if model == "jepa" else 0.0
        return dataclasses.replace(self.optim, lr=own) if own else self.optim
