"""Settings of the world-model comparison on pixels (notebooks 10-15, seeds 001, 002, 004).

Sizes of networks and losses are the seeds'. Budgets, and learning rates that fit so few updates,
are the `laptop` profile's; the seeds' own stand in the profile `full`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from hjepa_lib.config.fields import Checked, ConfigError, choice, number, setting
from hjepa_lib.config.grids import GridConfig
from hjepa_lib.config.optim import EpochsConfig, LoadingConfig, PpoConfig

MODELS = ("enc_dec", "enc_dec_jepa", "jepa", "vjepa2")
"""The four world models of the comparison; frozen, untrained encoders stand beside them."""


@dataclass(frozen=True)
class EnvironmentConfig(Checked):
    """Which pixels, and how they are seen (ENV-1 to ENV-8)."""

    id: str = "ALE/Breakout-v5"
    """Any Gymnasium id; `hjepa/Drift-v0` and `hjepa/Push-v0` are built in and need no extra."""
    image_size: int = number(64, 16, 256)
    """Side of a frame, px."""
    grayscale: bool = True
    """One plane a frame instead of three."""
    stack: int = number(4, 1, 16)
    """Frames of one state, oldest first."""
    action_repeat: int = number(0, 0, 64, needs="pixels.data.method=ppo")
    """The same action this many times, rewards summed; 0 or 1 = off. PPO collection only."""
    frame_skip: int = number(0, 0, 64)
    """Extra steps per decision with new actions each; must be 0 with action_repeat above 1."""
    max_steps: int = number(300, 2)
    """Environment steps of an episode at most, skipped ones included."""


@dataclass(frozen=True)
class CollectionConfig(Checked):
    """Where transitions come from (DATA-1 to DATA-10)."""

    method: str = choice("random", "random", "ppo")
    """Who acts: chance, or a policy trained by PPO."""
    episodes: int = number(100, 2)
    """Episodes to collect at most."""
    transitions: int = number(3_000, 0)
    """Stop collecting at this many transitions, cutting the last episode; 0 = no limit."""
    path: str = ""
    """A data folder to load; "" collects. Missing or of another environment: collected anew."""
    validation_split: float = number(0.2, 0.01, 0.5)
    """Share of episodes, not of transitions: neighbours never stand on both sides."""
    sequence: int = number(8, 2)
    """Transitions of a training window (DATA-10)."""


@dataclass(frozen=True)
class PixelEncoderConfig(Checked):
    """One field switches the encoder of all models (MOD-1 to MOD-4)."""

    kind: str = choice("cnn", "vit", "cnn", "mlp")
    """The encoder of all models but `vjepa2`, which has a ViT of its own."""
    latent_dim: int = number(64, 2)
    """Components of a latent; width of the tokens of a ViT."""
    patch: int = number(8, 1, needs="kind=vit")
    """Side of a patch, px."""
    depth: int = number(4, 1, needs="kind=vit")
    """Blocks over the patches of one frame."""
    heads: int = number(4, 1)
    """Attention heads of a ViT, `vjepa2` included."""
    head_dim: int = number(64, 1)
    """Width of a head."""
    mlp_dim: int = number(512, 1)
    """Width of the feed-forward layers."""
    dropout: float = number(0.2, 0, 0.9)
    """Dropout inside the blocks."""
    embedding_dropout: float = number(0.1, 0, 0.9)
    """Dropout of the embedded patches."""
    pool: str = choice("cls", "cls", "mean", needs="kind=vit")
    """What is read of the tokens: the class token or their mean."""
    temporal_depth: int = number(2, 0, needs="kind=vit")
    """Blocks over the frames of a stack."""
    temporal_heads: int = number(8, 1, needs="kind=vit")
    """Attention heads of these blocks."""
    temporal_mlp: int = number(256, 1, needs="kind=vit")
    """Width of their feed-forward layers."""
    temporal_dropout: float = number(0.1, 0, 0.9, needs="kind=vit")
    """Dropout inside them."""
    cnn_layers: int = number(3, 1, needs="kind=cnn")
    """Convolutions of stride 2."""
    cnn_filters: int = number(32, 1, needs="kind=cnn")
    """Of the first layer; doubled from layer to layer."""
    cnn_activation: str = choice("relu", "relu", "gelu", needs="kind=cnn")
    """Between the convolutions."""
    cnn_hidden: int = number(0, 0, needs="kind=cnn")
    """Width of an extra fully connected layer; 0 = none."""
    cnn_dropout: float = number(0.0, 0, 0.9, needs="kind=cnn")
    """Dropout of whole maps."""
    mlp_hidden: int = number(256, 1, needs="kind=mlp")
    """Width of the hidden layers."""
    mlp_layers: int = number(2, 0, needs="kind=mlp")
    """Hidden layers of the `mlp` encoder; 0 = linear."""
    mlp_activation: str = choice("relu", "relu", "gelu", needs="kind=mlp")
    """Between the layers."""
    mlp_dropout: float = number(0.0, 0, 0.9, needs="kind=mlp")
    """Dropout of the hidden layers."""


@dataclass(frozen=True)
class DecoderConfig(Checked):
    """Transformer decoder with one learned query per output patch (MOD-6)."""

    patch: int = number(8, 1)
    """Side of a patch, px."""
    dim: int = number(64, 8)
    """Width of the tokens."""
    depth: int = number(5, 1)
    """Blocks."""
    heads: int = number(4, 1)
    """Attention heads."""
    head_dim: int = number(16, 1)
    """Width of a head."""
    mlp_dim: int = number(512, 1)
    """Width of the feed-forward layers."""
    dropout: float = number(0.2, 0, 0.9)
    """Dropout inside the blocks."""
    source: str = choice("predictor", "predictor", "online", "target")
    """What JEPA's frozen decoder reads: the imagined latent, or an encoding of s_{t+1} (MOD-10)."""
    optim: EpochsConfig = field(default=EpochsConfig(updates=400, lr=1e-3, patience=5))


@dataclass(frozen=True)
class AuxiliaryConfig(Checked):
    """The loss that keeps latents from collapsing (LOSS-2 to LOSS-5)."""

    kind: str = choice("vicreg", "none", "vicreg", "barlow_twins", "dino")
    """Which loss."""
    weight: float = number(1.0, 0)
    """Its weight beside the prediction."""
    use_for_jepa: bool = True
    """JEPA has it."""
    use_for_enc_dec: bool = False
    """The encoder-decoder models have it, too."""
    sim: float = number(1.0, 0, needs="kind=vicreg")
    """Weight of the similarity term of VICReg."""
    std: float = number(1.0, 0, needs="kind=vicreg")
    """Weight of its variance hinge."""
    cov: float = number(0.1, 0, needs="kind=vicreg")
    """Weight of its covariances."""
    eps: float = number(1e-4, 1e-12, needs="kind=vicreg")
    """Added to the variance under VICReg's square root."""
    projector: bool = setting(False, needs="kind=vicreg")
    """Linear-BN-ReLU twice and Linear before the VICReg terms."""
    projector_dim: int = number(512, 1, needs="kind=vicreg and projector=true")
    """Width of the projector's layers."""
    clamp: bool = setting(False, needs="kind=vicreg")
    """The seed's clamps: projections +-10, covariances +-100, terms at most 100."""
    barlow_lambda: float = number(0.0051, 0, needs="kind=barlow_twins")
    """Weight of the redundancy between components."""
    barlow_scale: float = number(1.0, 0, needs="kind=barlow_twins")
    """Factor on the whole Barlow Twins loss."""
    barlow_eps: float = number(1e-5, 1e-12, needs="kind=barlow_twins")
    """Added to the variance that a batch is standardised by."""
    dino_momentum: float = number(0.9, 0, 1, needs="kind=dino")
    """Share that the centre keeps at every batch."""


@dataclass(frozen=True)
class PixelJepaConfig(Checked):
    """JEPA with an EMA target (MOD-8, MOD-9)."""

    target: str = choice("default", "default", "vjepa2", "none")
    """Whose latents go in and are predicted; see models/pixels.py."""
    ema_decay: float = number(0.99, 0, 1, needs="target=default|vjepa2")
    """Share that the target encoder keeps at every update."""
    predictor: str = choice("mlp", "mlp", "transformer")
    """What imagines the next latent."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of its hidden layers or blocks."""
    dropout: float = number(0.0, 0, 0.9)
    """Dropout inside it."""
    lr: float = number(0.0, 0)
    """Learning rate of JEPA alone; 0 = that of `pixels.optim` (TRAIN-2)."""
    frozen: bool = False
    """A frozen JEPA is loaded, never trained (TRAIN-6)."""


@dataclass(frozen=True)
class RewardConfig(Checked):
    """Reward MLP and look-ahead reward predictor share all of this (MOD-11, MOD-12)."""

    hidden: int = number(512, 1)
    """Width of the hidden layers."""
    layers: int = number(3, 1)
    """Hidden layers."""
    activation: str = choice("relu", "relu", "leaky", "tanh", "sigmoid")
    """Between the layers."""
    dropout: float = number(0.2, 0, 0.9)
    """Dropout of the hidden layers."""
    seeds: int = number(5, 1, 20)
    """Training seeds of the look-ahead study on the built-in reward worlds."""
    study_transitions: int = number(3_000, 100)
    """Transitions that each of these worlds gives."""
    optim: EpochsConfig = field(default=EpochsConfig(updates=1_000, weight_decay=0.01, delta=0.0))
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
    """Share of the patches that is hidden."""
    patch: int = number(8, 1)
    """Side of a patch, px."""
    depth: int = number(4, 1)
    """Blocks of the encoder."""
    loss: str = choice("l1", "l1", "mse", "smooth_l1")
    """Distance of predicted and target latents."""
    patch_loss: float = number(0.0, 0)
    """Weight of the additional per-patch loss on masked tokens."""
    ema_decay: float = number(0.996, 0, 1)
    """Share that the target encoder keeps at every update."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the predictor."""
    mask_token: str = choice("latent", "latent", "projected")
    """`projected`: a 64-wide token with its own projection (VJ-2)."""
    checkpoint: str = ""
    """A file of stage 1 that is taken instead of a training (VJ-12)."""
    optim: EpochsConfig = field(
        default=EpochsConfig(
            epochs=10, updates=600, lr=1e-4, weight_decay=0.05, schedule="plateau", delta=0.0
        )
    )


@dataclass(frozen=True)
class Stage2Config(Checked):
    """Causal action-conditioned transformer over frozen latents (VJ-7 to VJ-11)."""

    depth: int = number(4, 1)
    """Blocks of the transformer."""
    heads: int = number(8, 1)
    """Attention heads."""
    head_dim: int = number(64, 1)
    """Width of a head."""
    mlp_dim: int = number(512, 1)
    """Width of the feed-forward layers."""
    dropout: float = number(0.1, 0, 0.9)
    """Dropout inside the blocks."""
    teacher_forcing: float = number(0.7, 0, 1)
    """Weight of the teacher-forced term; the roll-out term has the rest."""
    teacher_forcing_ratio: float = number(0.8, 0, 1)
    """Share of the steps before the roll-out that see true latents."""
    rollout_steps: int = number(4, 1)
    """Steps of the autoregressive roll-out in the loss."""
    optim: EpochsConfig = field(
        default=EpochsConfig(
            epochs=30, updates=1_150, lr=1e-4, weight_decay=0.05, schedule="plateau", delta=0.0
        )
    )
    output: str = choice("latent", "latent", "change")
    """What the world model's last layer gives: the next latent, or its difference to the present
    one, which starts as copy-last."""
    checkpoint: str = ""
    """A file of stage 2 to go on from, encoder included, up to the updates set here (VJ-12)."""


@dataclass(frozen=True)
class VJepa2Config(Checked):
    """The two-stage model of seed 002."""

    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()


@dataclass(frozen=True)
class PixelsConfig(Checked):
    """Everything that notebooks 10 to 15 read."""

    seeds: int = number(3, 1, 20)
    """Training seeds `seed`, `seed + 1`, ... of every model, on the same data."""
    environment: EnvironmentConfig = EnvironmentConfig()
    data: CollectionConfig = CollectionConfig()
    ppo: PpoConfig = field(default=PpoConfig())
    loading: LoadingConfig = field(default=LoadingConfig())
    encoder: PixelEncoderConfig = PixelEncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    jepa: PixelJepaConfig = PixelJepaConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    action_dim: int = number(32, 1)
    """Width of the action embedding (MOD-5)."""
    optim: EpochsConfig = field(default=EpochsConfig(updates=600, lr=1e-3))
    """Encoder-decoder models and JEPA."""
    log_every: int = number(20, 1)
    """Updates between logged training losses of world models and state decoders."""
    reward: RewardConfig = RewardConfig()
    vjepa2: VJepa2Config = VJepa2Config()
    grid: GridConfig = field(default=GridConfig())

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
