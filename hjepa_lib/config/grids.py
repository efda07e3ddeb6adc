"""Settings of notebook 14: JEPA on discrete grids with a generative twin (seed 004)."""

from typing import Literal

from hjepa_lib.config.fields import Float, Int, needs
from hjepa_lib.config.optim import Blocks, EpochsConfig


class GridConfig(Blocks, action_encoder="factored"):
    """Data and both models (GRID-1 to GRID-12)."""

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
