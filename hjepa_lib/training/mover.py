"""Training of what moves by itself: its place, then where it goes and what meeting it ends.

What changes between two frames where the agent is not shows it.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.models.level1 import Jepa
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.local import BATCH, BETA, RECENT, SURE, ended, typical_step
from hjepa_lib.training.loop import Fit, Loss, Task

LAGS = 3, 8  # steps between two frames that are compared
OWN = 6.0  # px around the agent: changes there are its own
RATE = 5e-3
ENOUGH = 0.5  # of the usual amount of change; less shows no place


def gone_from(now: Tensor, later: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (M, C, Hpx, Wpx) twice -> the middle (M, 2) px and the amount (M,) of what has gone.

    Changes around `own` (M, 2) px are left out.
    """
    less = F.relu(now.float() - later.float()).sum(1)  # (M, Hpx, Wpx)
    y, x = (torch.arange(side, device=less.device) for side in less.shape[1:])
    far = (x - own[:, :1]).square()[:, None] + (y - own[:, 1:]).square()[:, :, None] > OWN**2
    less = less * far
    amount = less.sum((1, 2))
    middle = torch.stack([less.sum(1) @ x.float(), less.sum(2) @ y.float()], 1)
    return middle / amount.clamp(min=1)[:, None], amount


def find_mover(model: Jepa, store: LatentStore, *, seed: int, **options: Any) -> Fit:
    """Iterate to train the place of the mover of `model` in place: smooth L1 in px."""
    encoder, picture = model.mover.encoder, model.encoder.picture
    channels = model.frame[0] // encoder.stacked
    first = store.windows(LAGS[1] + 1)
    optim = model.config.optim
    optim = dataclasses.replace(optim, patience=0, updates=max(1, optim.updates // 2))

    def loss_fn(generator: torch.Generator) -> Loss:
        index = first[torch.randint(len(first), (optim.batch,), generator=generator)]
        lag = torch.randint(LAGS[0], LAGS[1] + 1, (optim.batch,), generator=generator)
        now, later = store.frames(index), store.frames(index + lag)
        own = picture.pixels(store.latents[index].to(now.device))
        middle, amount = gone_from(now[:, -channels:], later[:, -channels:], own)
        shown = amount > ENOUGH * amount.median()
        found = encoder.attempts(model.pixels(now), *encoder.maps.parameters())
        gap = (picture.pixels(found) - middle[:, None])[shown]
        errors = F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none").mean((0, 2))
        encoder.error.lerp_(errors.detach(), RECENT)
        return errors.sum(), {"px": errors[encoder.kept]}

    return Fit(Task(encoder, loss_fn), optim, seed=seed, stage="l1_mover", **options)


def train_foresight(model: Jepa, store: LatentStore, *, seed: int, **options: Any) -> Fit:
    """Iterate to train what the mover of `model` does next, and which steps are an agent's last.

    Smooth L1 of roll-outs in the agent's usual steps, and the log-odds along them. Half of a batch
    are windows with a last step, weighted by how often there is one.
    """
    mover, device = model.mover, model.pixel_mean.device
    total, steps = len(store.latents), mover.steps
    states = store.encode(mover.encoder).cpu()
    usual = typical_step(store)
    over = ended(store, usual)
    last = F.pad(over[1:] & ~over[:-1], (0, 1))
    # So near the end of a recording nobody knows whether a step was the last.
    known = ~over & (torch.arange(total) + SURE < store.starts[1:][store.trajectory])
    first = store.windows(steps + 1)
    first = first[~over[first]]
    times = F.pad(last.cumsum(0), (1, 0))
    meets = times[first + steps] > times[first]
    pools = [pool for pool in (first[meets], first[~meets]) if len(pool)]
    optim = dataclasses.replace(
        model.config.optim, patience=0, updates=model.config.refine_updates, batch=BATCH, lr=RATE
    )

    def loss_fn(generator: torch.Generator) -> Loss:
        each = BATCH // len(pools)
        index = [pool[torch.randint(len(pool), (each,), generator=generator)] for pool in pools]
        rows = torch.cat(index)[:, None] + torch.arange(steps + 1)  # (B, T)
        ahead = mover.foresee(states[rows[:, 0]].to(device))
        sim = F.smooth_l1_loss(ahead / usual, states[rows, :2].to(device) / usual, beta=BETA)
        odds = mover.odds(ahead.detach(), store.latents[rows].to(device))
        share = torch.tensor([len(pool) / len(first) for pool in pools])
        weight = (share.repeat_interleave(each)[:, None] * known[rows[:, :-1]]).to(device)
        wanted = last[rows[:, :-1]].float().to(device)
        ends = F.binary_cross_entropy_with_logits(odds, wanted, weight, reduction="sum")
        ends = ends / weight.sum().clamp(min=1e-9)
        return sim + ends, {"sim": sim, "ends": ends}

    own = torch.nn.ModuleList([mover.move, mover.last])
    return Fit(Task(own, loss_fn), optim, seed=seed, stage="l1_foresight", **options)
