"""What several models share: how they are trained, and the size of a transformer."""

from __future__ import annotations

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
    schedule: Literal["constant", "plateau", "step"] = "constant"
    """`plateau`: the rate is halved after more than `plateau_patience` validations without progress
    (VJ-5); `step`: halved at equal intervals (GRID-5)."""
    plateau_patience: Int[0:] = needs("schedule=plateau", 2)
    """Validations without progress that are borne before the rate is halved."""
    min_lr: Float[0:] = needs("schedule=plateau|step", 1e-6)
    """No halving goes below this rate."""
    clip: Float[0:] = 1.0
    """Gradient norm limit; 0 switches clipping off."""
    patience: Int[0:] = 0
    """Validations without progress that end the training; 0 = never."""
    delta: Float[0:] = needs("patience>0 or schedule=plateau", 0.0)
    """Least fall of the validation loss that is progress."""


class OptimConfig(_Optim):
    """What the training loop reads; its cosine never rises again after the warm-up (PL4)."""

    updates: Int[1:] = 2500
    """Steps of the optimiser."""
    schedule: Literal["cosine", "constant", "plateau", "step"] = "cosine"
    """`cosine`: linear warm-up, then down to `final`; the others start at the peak. `plateau` is
    halved after more than `plateau_patience` validations without progress, `step` at intervals."""
    warmup: Float[0:1] = needs("schedule=cosine", 0.1)
    """Share of the updates spent warming up."""
    final: Float[0:1] = needs("schedule=cosine", 1e-3)
    """Last learning rate as a share of the peak."""
    decay_every: Int[1:] = needs("schedule=step", 1_000)
    """Updates between two halvings."""
    min_lr: Float[0:] = needs("schedule=plateau|step", 0.0)
    clip: Float[0:] = 2.0
    validate_every: Int[1:] = 500
    """Updates between two validations; the last one is validated, too."""
    non_finite: Literal["fail", "skip"] = "fail"
    """What a loss or gradient that is not finite does: end the training, or lose the update."""


class EpochsConfig(_Optim):
    """Passes through the training part, as seeds 001, 002 and 004 count (TRAIN-2)."""

    epochs: Int[1:] = needs("updates=0", 20)
    """Passes through the training part."""
    updates: Int[0:] = 0
    """Fixed number of updates, whatever the size of the data; 0 = `epochs` passes. It is spent
    whole: models stopped early at different times had different budgets."""
    batch: Int[2:] = 32
    lr: Float[0:] = 3e-4
    patience: Int[0:] = needs("updates=0", 3)
    """Epochs without progress that end the training; 0 = never."""
    delta: Float[0:] = needs("updates=0 or schedule=plateau", 0.001)

    def optim(self, rows: int) -> OptimConfig:
        """What the training loop needs for `rows` training rows; validates once an epoch."""
        epoch = max(1, rows // self.batch)
        counted = {"updates": self.epochs * epoch, "validate_every": epoch}
        if self.updates:
            every = min(epoch, self.updates)
            counted = {"updates": self.updates, "validate_every": every, "patience": 0}
        shared = {item.name: getattr(self, item.name) for item in dataclasses.fields(_Optim)}
        own = {"decay_every": 20 * epoch, "non_finite": "skip"}
        return OptimConfig(**shared | counted | own)
