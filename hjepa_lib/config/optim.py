"""How models are trained: the loop's section, its form that counts in epochs, PPO, loading."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hjepa_lib.config.fields import Checked, choice, number, setting


@dataclass(frozen=True)
class _Optim(Checked):
    """AdamW: what both ways of counting have."""

    batch: int = number(64, 2)
    """Windows, pairs or transitions of one update."""
    lr: float = number(1e-3, 0)
    """Peak learning rate."""
    weight_decay: float = number(1e-5, 0)
    """AdamW's decay of weights towards 0."""
    schedule: str = choice("constant", "constant", "plateau", "step")
    """`plateau`: the rate is halved after more than `plateau_patience` validations without progress
    (VJ-5); `step`: halved at equal intervals (GRID-5)."""
    plateau_patience: int = number(2, 0, needs="schedule=plateau")
    """Validations without progress that are borne; the next one halves the rate."""
    min_lr: float = number(1e-6, 0, needs="schedule=plateau|step")
    """No halving goes below this rate."""
    clip: float = number(1.0, 0)
    """Gradient norm limit; 0 switches clipping off."""
    patience: int = number(0, 0)
    """Early stop after this many validations without progress; 0 = never."""
    delta: float = number(0.0, 0, needs="patience>0 or schedule=plateau")
    """Least fall of the validation loss that counts as progress."""


@dataclass(frozen=True)
class OptimConfig(_Optim):
    """What the training loop reads; its cosine never rises again after the warm-up (PL4)."""

    updates: int = number(2500, 1)
    """Steps of the optimiser."""
    schedule: str = choice("cosine", "cosine", "constant", "plateau", "step")
    """`cosine`: linear warm-up, then down to `final`; the others start at the peak. `plateau` is
    halved after more than `plateau_patience` validations without progress, `step` at intervals."""
    warmup: float = number(0.1, 0, 1, needs="schedule=cosine")
    """Share of the updates spent warming up."""
    final: float = number(1e-3, 0, 1, needs="schedule=cosine")
    """Last learning rate as a share of the peak."""
    decay_every: int = number(1_000, 1, needs="schedule=step")
    """Updates between two halvings."""
    min_lr: float = number(0.0, 0, needs="schedule=plateau|step")
    clip: float = number(2.0, 0)
    validate_every: int = number(500, 1)
    """Updates between two validations; the last update is validated in any case."""
    non_finite: str = choice("fail", "fail", "skip")
    """What a loss or gradient that is not finite does: end the training, or lose the update."""


@dataclass(frozen=True)
class EpochsConfig(_Optim):
    """Passes through the training part, as seeds 001, 002 and 004 count (TRAIN-2)."""

    epochs: int = number(20, 1, needs="updates=0")
    """Passes through the training part."""
    updates: int = number(0, 0)
    """Fixed number of updates, whatever the size of the data; 0 = `epochs` passes. It is spent
    whole: models stopped early at different times had different budgets."""
    batch: int = number(32, 2)
    lr: float = number(3e-4, 0)
    patience: int = number(3, 0, needs="updates=0")
    """Early stop after this many epochs without progress; 0 = never."""
    delta: float = number(0.001, 0, needs="updates=0 or schedule=plateau")

    def optim(self, rows: int) -> OptimConfig:
        """What the training loop needs for `rows` training rows; validates once an epoch."""
        epoch = max(1, rows // self.batch)
        shared = {item.name: getattr(self, item.name) for item in dataclasses.fields(_Optim)}
        own = {"patience": 0, "validate_every": min(epoch, self.updates)} if self.updates else {}
        return OptimConfig(
            **{"updates": self.updates or self.epochs * epoch, "validate_every": epoch}
            | {"decay_every": 20 * epoch, "non_finite": "skip"}
            | shared
            | own
        )


@dataclass(frozen=True)
class PpoConfig(Checked):
    """Stable-Baselines3 PPO that collects with a skilled, stochastic policy (DATA-2)."""

    steps: int = number(500_000, 1)
    """Environment steps of its training."""
    n_envs: int = number(8, 1)
    """Parallel environments, capped at the number of CPUs."""
    learning_rate: float = number(3e-4, 0)
    """Step size of its optimiser."""
    n_steps: int = number(1024, 2)
    """Steps per environment between two updates."""
    batch: int = number(32, 2)
    """Rows of a mini-batch."""
    epochs: int = number(5, 1)
    """Passes through the collected steps at each update."""
    gamma: float = number(0.99, 0, 1)
    """Discount per step."""
    gae_lambda: float = number(0.95, 0, 1)
    """Trade-off of bias and variance in the advantages."""
    clip_range: float = number(0.2, 0, 1)
    """How far a policy may move at one update."""
    policy: str = choice("CnnPolicy", "CnnPolicy", "MlpPolicy")
    """Network of the policy; `CnnPolicy` needs pictures of at least 36 px."""
    log_std_noise: float = number(0.0, 0)
    """Added to a continuous policy's log-std before collecting."""
    action_repeat: int = number(2, 0, 64)
    """Holds where `environment.action_repeat` is 0."""


@dataclass(frozen=True)
class LoadingConfig(Checked):
    """Weights to start from, and whether training may be skipped then (TRAIN-6)."""

    path: str = ""
    """Weights file or folder; "" starts from scratch."""
    kind: str = choice("jepa", "std_enc_dec", "jepa", "enc_dec_jepa_style", needs="path!=")
    """Which model they belong to."""
    skip_training: bool = setting(False, needs="path!=")
    """Skip the training of the loaded model; only if the load worked."""
    run: str = ""
    """A run whose models are taken as they are; data, heads and decoders stay this run's own."""
