"""Settings of the world-model comparison on pixels (notebooks 10-15, seeds 001, 002, 004).

The defaults are for two cores; the seeds' own are the profile `full`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from hjepa_lib.config.fields import Float, Int, Section, needs
from hjepa_lib.config.optim import Blocks, EpochsConfig, LoadingConfig, PpoConfig

MODELS = ("enc_dec", "enc_dec_jepa", "jepa", "vjepa2")
"""The world models of the comparison; untrained encoders stand beside them."""
_COSINE = EpochsConfig(lr=1e-3, batch=64, schedule="cosine")


class EnvironmentConfig(Section, action_repeat=0):
    """Which pixels, and how they are seen (ENV-1 to ENV-8)."""

    id: str = "hjepa/Calm-v0"
    """Any Gymnasium id."""
    image_size: Int[16:256] = 32
    """Side of a frame, px."""
    grayscale: bool = True
    """One plane a frame, not three."""
    stack: Int[1:16] = 1
    """Frames of one state; what moves by itself needs more."""
    frame_skip: Int[0:64] = 0
    """Extra steps per decision, with new actions; none beside PPO's repeated ones."""
    max_steps: Int[2:] = 16
    """Most steps of an episode, with skipped ones."""


class CollectionConfig(Section):
    """Where transitions come from (DATA-1 to DATA-10)."""

    method: Literal["random", "ppo"] = "random"
    """Who acts: chance, or a policy of PPO."""
    episodes: Int[2:] = 1_250
    """Episodes to collect at most."""
    transitions: Int[0:] = 20_000
    """At most, too; 0 = no limit."""
    path: str = ""
    """Folder of data; "", missing or of another world: collected."""
    validation_split: Float[0.01:0.5] = 0.2
    """Share of whole episodes held out."""
    sequence: Int[2:] = 8
    """Transitions of a training window (DATA-10)."""


class PixelEncoderConfig(
    Blocks, pool="cls", temporal_heads=8, temporal_mlp=256, temporal_dropout=0.1,
    cnn_activation="relu", cnn_hidden=0, mlp_activation="relu",
):  # fmt: skip
    """The encoder of all models but `vjepa2` (MOD-1 to MOD-4)."""

    kind: Literal["vit", "cnn", "mlp", "places"] = "places"
    """Kind of network; `places` is `cnn` and where maps of its own are brightest."""
    latent_dim: Int[2:] = 256
    """Components of a latent, and of the tokens of `kind=vit`."""
    patch: Int[1:] = needs("kind=vit", 8)
    """Side of a patch, px."""
    depth: Int[1:] = needs("kind=vit", 4)
    heads: Int[1:] = 4
    """Attention heads of a ViT, of `vjepa2` too."""
    head_dim: Int[1:] = 16
    mlp_dim: Int[1:] = 128
    dropout: Float[0:0.9] = 0.0
    """Dropout inside the blocks."""
    embedding_dropout: Float[0:0.9] = 0.0
    """Dropout of the embedded patches."""
    temporal_depth: Int[1:] = needs("kind=vit", 2)
    """Blocks over the frames of a stack."""
    cnn_layers: Int[1:] = needs("kind=cnn|places", 2)
    """Convolutions of stride 2."""
    cnn_filters: Int[1:] = needs("kind=cnn|places", 16)
    """Of the first layer, doubled by each."""
    cnn_dropout: Float[0:0.9] = needs("kind=cnn|places", 0.0)
    """Dropout of whole maps."""
    places: Int[1:] = needs("kind=places", 32)
    """Maps whose places are read, two numbers each."""
    mlp_hidden: Int[1:] = needs("kind=mlp", 256)
    """Width of the hidden layers."""
    mlp_layers: Int[0:] = needs("kind=mlp", 2)
    """Hidden layers; 0 = linear."""
    mlp_dropout: Float[0:0.9] = needs("kind=mlp", 0.0)
    """Dropout of the hidden layers."""


class DecoderConfig(Blocks):
    """Transformer decoder with one learned query per output patch (MOD-6)."""

    depth: Int[1:] = 2
    head_dim: Int[1:] = 16
    mlp_dim: Int[1:] = 128
    patch: Int[1:] = 8
    """Side of a patch, px."""
    dim: Int[8:] = 64
    """Width of the tokens."""
    dropout: Float[0:0.9] = 0.0
    """Dropout inside the blocks."""
    source: Literal["predictor", "online", "target"] = "predictor"
    """JEPA's decoder reads the imagined latent or an encoding of s_{t+1}."""
    optim: EpochsConfig = replace(_COSINE, updates=1_000, lr=3e-3, patience=5)


class AuxiliaryConfig(
    Section, eps=1e-4, projector=False, projector_dim=512, clamp=False, use_for_jepa=True,
    barlow_scale=1.0, barlow_eps=1e-5, dino_momentum=0.9,
):  # fmt: skip
    """The loss that keeps latents from collapsing (LOSS-2 to LOSS-5)."""

    kind: Literal["none", "vicreg", "barlow_twins", "dino"] = "vicreg"
    """Which loss."""
    weight: Float[0:] = 1.0
    """Weight beside the prediction."""
    use_for_enc_dec: bool = False
    """Encoder-decoders have it."""
    sim: Float[0:] = needs("kind=vicreg", 1.0)
    """Weight of VICReg's similarity."""
    std: Float[0:] = needs("kind=vicreg", 1.0)
    """Weight of its variance hinge."""
    cov: Float[0:] = needs("kind=vicreg", 0.1)
    """Weight of its covariances."""
    barlow_lambda: Float[0:] = needs("kind=barlow_twins", 0.0051)
    """Weight of the redundancy."""


class PixelJepaConfig(Section, frozen=False):
    """JEPA with an EMA target (MOD-8, MOD-9)."""

    target: Literal["default", "vjepa2", "none"] = "vjepa2"
    """See pixels/models.py."""
    ema_decay: Float[0:1] = needs("target=default|vjepa2", 0.99)
    """Share kept by the target encoder."""
    predictor: Literal["mlp", "transformer"] = "mlp"
    """What imagines the next latent."""
    hidden: tuple[Int[1:], ...] = (256, 256)
    """Widths of its layers or blocks."""
    dropout: Float[0:0.9] = 0.0
    """Dropout inside it."""
    lr: Float[0:] = 1e-3
    """JEPA's learning rate; 0 = that of `pixels.optim`."""


class RewardConfig(Section, activation="relu"):
    """Reward MLP and look-ahead reward predictor (MOD-11, MOD-12)."""

    hidden: Int[1:] = 128
    """Width of the hidden layers."""
    layers: Int[1:] = 2
    """Hidden layers."""
    dropout: Float[0:0.9] = 0.2
    """Dropout of the hidden layers."""
    labels: tuple[Int[16:], ...] = (200, 1_000, 4_000, 16_000)
    """Labelled rows of the look-ahead study."""
    optim: EpochsConfig = replace(
        _COSINE, updates=600, batch=256, lr=3e-3, weight_decay=0.01, delta=0.0
    )
    log_every: Int[1:] = 100
    """Updates between logged losses."""
    standardise: bool = True
    """Scale inputs by the training part."""


class Stage1Config(Section, mask_token="latent", loss="l1"):
    """Masked pre-training of V-JEPA 2 style (VJ-1 to VJ-6)."""

    mask: Float[0:0.95] = 0.4
    """Hidden share of the patches."""
    patch: Int[1:] = 8
    """Side of a patch, px."""
    width: Int[8:] = 64
    """Width of its tokens."""
    depth: Int[1:] = 4
    """Blocks of the encoder."""
    patch_loss: Float[0:] = 1.0
    """Weight of the loss per masked patch."""
    ema_decay: Float[0:1] = 0.996
    """Share kept by the target encoder."""
    hidden: tuple[Int[1:], ...] = (256, 256)
    """Widths of the predictor."""
    read: Literal["tokens", "cls"] = "tokens"
    """Where a latent is read: from all patches by their main directions, or the class token."""
    checkpoint: str = ""
    """File of stage 1 in place of a training (VJ-12)."""
    optim: EpochsConfig = replace(_COSINE, epochs=10, updates=1_000, lr=5e-4)


class Stage2Config(Blocks, checkpoint=""):
    """Causal action-conditioned transformer over frozen latents (VJ-7 to VJ-11)."""

    depth: Int[1:] = 2
    heads: Int[1:] = 8
    head_dim: Int[1:] = 16
    mlp_dim: Int[1:] = 256
    dropout: Float[0:0.9] = 0.0
    """Dropout inside the blocks."""
    teacher_forcing: Float[0:1] = 0.7
    """Weight of teacher forcing; the roll-out has the rest."""
    teacher_forcing_ratio: Float[0:1] = 0.8
    """Share of earlier steps that see true latents."""
    rollout_steps: Int[1:] = 4
    """Steps of the roll-out."""
    optim: EpochsConfig = replace(_COSINE, epochs=30, updates=1_000, batch=32, lr=3e-3)
    output: Literal["latent", "change"] = "change"
    """The last layer gives the next latent, or its change."""


class VJepa2Config(Section):
    """The two-stage model of seed 002."""

    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()


class GridConfig(Blocks, action_encoder="factored"):
    """JEPA on discrete grids with a generative twin, notebook 14 (GRID-1 to GRID-12)."""

    heads: Int[1:] = 8
    mlp_dim: Int[1:] = 256
    path: str = ""
    """Replay buffer (.npz); "" plays the built-in grid world."""
    size: Int[3:30] = needs("path=", 6)
    """Cells per side of a built-in canvas."""
    episodes: Int[3:] = needs("path=", 300)
    """Of one goal each."""
    steps: Int[2:] = needs("path=", 10)
    """Transitions per episode."""
    encoder: Literal["transformer", "cnn"] = "transformer"
    """What reads a grid."""
    encoder_depth: Int[1:] = needs("encoder=transformer", 2)
    """Blocks of the encoder."""
    latent_dim: Int[8:] = 128
    """Components of a latent."""
    action_dim: Int[4:] = 64
    """Width of the action embedding."""
    depth: Int[1:] = 4
    """Blocks of the transition model."""
    ema_decay: Float[0:1] = 0.995
    """Share that the target keeps per update."""
    regulariser: Float[0:] = 1.0
    """Weight of spread and covariance of JEPA's encodings (VICReg); 0 = EMA alone, as seed 004."""
    action_weight: Float[0:] = 0.1
    """Weight of the twin's action cross-entropy."""
    checkpoint_every: Int[0:] = 0
    """Epochs between numbered checkpoints; 0: only the best."""
    log_every: Int[1:] = 10
    """Updates between logged losses."""
    optim: EpochsConfig = EpochsConfig(
        epochs=100,
        updates=600,
        lr=1e-3,
        weight_decay=1e-4,
        schedule="cosine",
        patience=15,
        delta=0.0,
    )


class PixelsConfig(Section):
    """Everything that notebooks 10 to 15 read."""

    seeds: Int[1:20] = 3
    """Training seeds `seed`, `seed + 1`, ... of every model."""
    environment: EnvironmentConfig = EnvironmentConfig()
    data: CollectionConfig = CollectionConfig()
    ppo: PpoConfig = PpoConfig()
    loading: LoadingConfig = LoadingConfig()
    encoder: PixelEncoderConfig = PixelEncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    jepa: PixelJepaConfig = PixelJepaConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    action_dim: Int[1:] = 32
    """Width of the action embedding (MOD-5)."""
    optim: EpochsConfig = replace(_COSINE, updates=2_000, lr=3e-3)
    """Encoder-decoder models and JEPA."""
    enc_dec_lr: Float[0:] = 6e-3
    """Learning rate of the plain encoder-decoder; 0 = that of `optim`."""
    log_every: Int[1:] = 20
    """Updates between logged losses."""
    reward: RewardConfig = RewardConfig()
    vjepa2: VJepa2Config = VJepa2Config()
    grid: GridConfig = GridConfig()

    def refused(self) -> Iterator[tuple[object, str]]:
        """An environment without a name, latents that are too small."""
        nameless = not self.environment.id.strip()
        yield nameless, "pixels.environment.id is empty; name a Gymnasium environment"
        stage, dim, places = self.vjepa2.stage1, self.encoder.latent_dim, self.encoder.places
        maps = self.encoder.kind == "places"
        text = f"leave nothing else of pixels.encoder.latent_dim={dim}"
        yield maps and 2 * places >= dim, f"pixels.encoder.places={places} {text}"
        text = "pixels.vjepa2.stage1.patch must be even: it cuts maps of half the size"
        yield maps and stage.read == "tokens" and stage.patch % 2, text
        text = f"pixels.vjepa2.stage1.read=cls needs a width of pixels.encoder.latent_dim={dim}"
        yield stage.read == "cls" and stage.width != dim, text

    def optim_of(self, model: str) -> EpochsConfig:
        """`optim`, with the model's own learning rate if it has one: best ones are far apart."""
        own = {"jepa": self.jepa.lr, "enc_dec": self.enc_dec_lr}.get(model)
        return replace(self.optim, lr=own) if own else self.optim
