"""How models are trained: the loop, passes, PPO, loading; and the size of a transformer."""

import dataclasses
from typing import Literal

from hjepa_lib.config.fields import Float, Int, Section, needs


class Blocks(Section):
    """Size of a transformer."""

    depth: Int[1:] = 4
    """Blocks."""
    heads: Int[1:] = 4
    """Attention heads."""
    head_dim: Int[1:] = 64
    """Width of a head."""
    mlp_dim: Int[1:] = 512
    """Width of the feed-forward layers."""


class _Optim(Section):
    """AdamW: what both ways of counting have."""

    batch: Int[2:] = 64
    """Rows of one update."""
    lr: Float[0:] = 1e-3
    """Peak learning rate."""
    weight_decay: Float[0:] = 1e-5
    """AdamW's decay of weights."""
    schedule: Literal["cosine", "constant", "plateau"] = "constant"
    """`cosine`: linear warm-up, then down to a thousandth; `plateau` (VJ-5): from the peak, halved
    after three validations without progress."""
    clip: Float[0:] = 1.0
    """Gradient norm limit; 0 switches clipping off."""
    patience: Int[0:] = 0
    """Validations without progress that end the training; 0 = never."""
    delta: Float[0:] = needs("patience>0 or schedule=plateau", 0.0)
    """Least fall of the validation loss that is progress."""


class OptimConfig(
    _Optim, decay_every=1000, non_finite="fail", plateau_patience=2, min_lr=0.0,
):  # fmt: skip
    """What the training loop reads; its cosine never rises again (PL4)."""

    updates: Int[1:] = 2500
    """Steps of the optimiser."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    warmup: Float[0:1] = needs("schedule=cosine", 0.1)
    """Share of the updates spent warming up."""
    final: Float[0:1] = needs("schedule=cosine", 1e-3)
    """Last learning rate as a share of the peak."""
    clip: Float[0:] = 2.0
    validate_every: Int[1:] = 500
    """Updates between two validations."""


class EpochsConfig(_Optim, plateau_patience=2, min_lr=1e-6):
    """Passes through the training part, as seeds 001, 002 and 004 count (TRAIN-2)."""

    epochs: Int[1:] = needs("updates=0", 20)
    """Passes through the training part."""
    updates: Int[0:] = 0
    """Fixed number of updates, all spent; 0 = `epochs` passes."""
    batch: Int[2:] = 32
    lr: Float[0:] = 3e-4
    patience: Int[0:] = needs("updates=0", 3)
    """Epochs without progress that end the training; 0 = never."""
    delta: Float[0:] = needs("updates=0 or schedule=plateau", 0.001)

    def optim(self, rows: int) -> OptimConfig:
        """What the training loop needs for `rows` training rows; validates once an epoch."""
        epoch = max(1, rows // self.batch)
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(_Optim)}
        own |= {"updates": self.epochs * epoch, "validate_every": epoch}
        if self.updates:
            own |= {"updates": self.updates, "validate_every": min(epoch, self.updates)}
            own["patience"] = 0
        return OptimConfig(**own)


class PpoConfig(
    Section, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2, log_std_noise=0.0,
    policy="CnnPolicy", batch=32, epochs=5,
):  # fmt: skip
    """Stable-Baselines3 PPO, whose skilled, stochastic policy collects (DATA-2)."""

    steps: Int[1:] = 500_000
    """Environment steps of its training."""
    n_envs: Int[1:] = 8
    """Environments, one per CPU at most."""
    n_steps: Int[2:] = 1024
    """Steps per environment between two updates."""
    action_repeat: Int[0:64] = 2
    """Repeats of an action, rewards summed; 0 or 1 = off."""


class LoadingConfig(Section, run=""):
    """Weights to start from (TRAIN-6)."""

    path: str = ""
    """Weights file or folder; "": from scratch."""
    kind: Literal["std_enc_dec", "jepa", "enc_dec_jepa_style"] = needs("path!=", "jepa")
    """Which model they belong to."""
    skip_training: bool = needs("path!=", False)
    """Skip its training if the load worked."""
