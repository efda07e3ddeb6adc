"""Settings of notebook 14: JEPA on discrete grids with a generative twin (seed 004)."""

from __future__ import annotations

from dataclasses import dataclass, field

from hjepa_lib.config.fields import Checked, choice, number
from hjepa_lib.config.optim import EpochsConfig


@dataclass(frozen=True)
class GridConfig(Checked):
    """Data, both models and the reward heads on them (GRID-1 to GRID-12)."""

    path: str = ""
    """Replay buffer (.npz, .pt or .h5); "" plays the built-in grid world."""
    size: int = number(10, 3, 30, needs="path=")
    """Cells per side of a built-in canvas; the seed has 30, which is for the profile full."""
    episodes: int = number(300, 2, needs="path=")
    """One goal each: what the reward heads learn from is mostly the number of goals."""
    steps: int = number(10, 2, needs="path=")
    """Transitions per episode."""
    encoder: str = choice("transformer", "transformer", "cnn")
    """What reads a grid."""
    encoder_depth: int = number(2, 1, needs="encoder=transformer")
    """Blocks of the encoder."""
    latent_dim: int = number(128, 8)
    """Components of a latent."""
    action_dim: int = number(64, 4)
    """Width of the action embedding."""
    action_encoder: str = choice("table", "table", "one_hot")
    """A learned row per action, or an MLP over its one-hot code."""
    depth: int = number(4, 1)
    """Blocks of the transition model."""
    heads: int = number(8, 1)
    """Attention heads of encoder and transition model."""
    head_dim: int = number(64, 1)
    """Width of a head of the transition model."""
    mlp_dim: int = number(256, 1)
    """Width of the feed-forward layers."""
    ema_decay: float = number(0.995, 0, 1)
    """Share that the target encoder keeps at every update."""
    action_weight: float = number(0.1, 0)
    """Weight of the generative twin's action cross-entropy."""
    checkpoint_every: int = number(0, 0)
    """Keep a numbered checkpoint every so many epochs; 0 = only the best."""
    log_every: int = number(10, 1)
    """Updates between logged training losses, of the grid models and their reward heads."""
    optim: EpochsConfig = field(
        default=EpochsConfig(
            epochs=100, updates=300, lr=1e-4, weight_decay=1e-4, patience=15, delta=0.0
        )
    )
    reward_optim: EpochsConfig = field(
        default=EpochsConfig(
            updates=400, lr=1e-4, schedule="plateau", plateau_patience=5, patience=10, delta=0.0
        )
    )
