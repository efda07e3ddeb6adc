"""Training of the local level 1: places by inverse dynamics alone, then a predictor on them.

Together they would collapse: places that do not move are predicted best.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.data.windows import Groups, WindowBatch, Windows
from hjepa_lib.models.layers import full_precision
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.local import Scene, read_patches
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import Fit, Loss, Task, Terms, held_out, step_generator
from hjepa_lib.training.probes import fit_ridge, rmse_px

VALIDATION_WINDOWS = 128
BETA = 0.3  # where the loss of a step turns from square to absolute, in its usual length
STEPS = 5  # of the roll-outs in the predictor's loss
BATCH = 512
SCENES = 32  # frames whose maps a batch reads, at least
STOPPED = 0.3  # usual lengths off the free step: something was in the way
CARRIED = 2.0  # usual lengths beyond the free step: no wall does that, a teleporter does
SEEN, MIDDLE = 512, 6  # frames that tell the middle of the agent, and px around it
STILL, SURE = 0.7, 6  # usual lengths that a place is off where it stays; states that show it
RECENT = 0.05  # weight of an update in the running error of an attempt


def typical_step(store: LatentStore) -> float:
    """Root mean square length of a recorded step, in units of a place."""
    step = (store.latents[1:, :2] - store.latents[:-1, :2]).float()
    return float(step[store.trajectory[:-1] == store.trajectory[1:]].square().sum(-1).mean().sqrt())


def ended(store: LatentStore, usual: float) -> Tensor:
    """(M,) bool: states from which the agent stays where its trajectory ends, for `SURE` or more.

    Meeting what moves by itself may end what an agent can do.
    """
    z, end = store.latents[:, :2].float().cpu(), store.starts[1:] - 1
    middle = torch.stack([z[(end - ago).clamp(min=0)] for ago in range(SURE - 1)]).median(0).values
    away = (z - middle[store.trajectory]).norm(dim=-1) > STILL * usual
    index = torch.arange(len(z))
    left = torch.where(away, index, -1)
    left = (store.starts[:-1] - 1).scatter_reduce(0, store.trajectory, left, "amax")
    return (index > left[store.trajectory]) & (left + SURE <= end)[store.trajectory]


def action_error(model: Jepa, latents: Tensor, actions: Tensor) -> Tensor:
    """latents (B, T, K, D), actions (B, T-1, A) normalised -> (K,) how badly moves tell actions.

    Smooth L1, as beside a wall steps say nothing; of single frames over two steps, too: noise in
    the places costs less.
    """
    with full_precision(latents):
        error = _gap(model.idm(latents[:, :-1], latents[:, 1:]), actions)
        if latents.shape[-1] == 2:
            both = model.idm(latents[:, :-2], latents[:, 2:])
            error = error + _gap(both, actions[:, :-1] + actions[:, 1:])
    return error


def _gap(told: Tensor, actions: Tensor) -> Tensor:
    wanted = actions[:, :, None].expand_as(told)  # (B, T, K, A)
    return F.smooth_l1_loss(told, wanted, beta=BETA, reduction="none").mean((0, 1, 3))


def train_places(
    model: Jepa, train: Windows, validation: Windows | None, *, seed: int, **options: Any
) -> Fit:
    """Iterate to train the encoder of `model` in place."""
    device, config = next(model.parameters()).device, model.config
    encoder = model.encoder

    def read(batch: WindowBatch) -> tuple[Tensor, Tensor]:
        """Latents (B, T, K, D) of all attempts, and the error (K,) of each."""
        frames, actions = batch.frames(device), model.normalise_actions(batch.actions.to(device))
        pixels = model.pixels(frames.flatten(0, 1))
        latents = encoder.attempts(pixels, *encoder.maps.parameters()).float()
        latents = latents.unflatten(0, frames.shape[:2])
        return latents, action_error(model, latents, actions)

    def loss_fn(generator: torch.Generator) -> Loss:
        _, errors = read(train.sample(config.optim.batch, generator))
        encoder.error.lerp_(errors.detach(), RECENT)
        return errors.sum(), {"idm": errors[encoder.kept]}

    def validate() -> Terms:
        batch, kept = validation.sample(VALIDATION_WINDOWS, step_generator(seed, 0)), encoder.kept
        latents, errors = read(batch)
        loss, flat = errors[kept], latents[:, :, kept].flatten(0, 1).cpu()
        truth = batch.world.xy(batch.positions).flatten(0, 1)
        if not truth.shape[1]:  # a recording that does not say where it is
            return {"loss": loss, "idm": loss}
        half = len(flat) // 2
        px = rmse_px(fit_ridge(flat[:half], truth[:half])(flat[half:]), truth[half:])
        return {"loss": loss, "idm": loss, "probe_position_px": px}

    task = Task(torch.nn.ModuleList([model.encoder, model.idm]), loss_fn, validation and validate)
    return Fit(task, config.optim, seed=seed, stage="l1", **options)


@torch.no_grad()
def centre_places(model: Jepa, train: Windows, seed: int) -> None:
    """Move the places of `model` to the middle of what is always seen around them.

    Inverse dynamics find places up to a shift, and a predictor would look beside the agent.
    """
    device, encoder = model.pixel_mean.device, model.encoder
    batch = train.sample(SEEN, step_generator(seed, 0))
    frames = batch.frames(device)[:, 0]
    places = encoder.picture.pixels(model.encode(frames))
    maps = model.pixels(frames)[:, -frames.shape[1] // encoder.stacked :].permute(0, 2, 3, 1)
    scene = Scene(maps.contiguous(), torch.arange(len(maps), device=device))
    side = 2 * MIDDLE + 1
    mean = read_patches(scene, places, MIDDLE).mean(0).reshape(side, side, -1)
    seen = (mean - mean.mean((0, 1))).norm(dim=-1)  # (side, side)
    seen = seen * (seen > seen.amax() / 2)
    along = torch.arange(-MIDDLE, MIDDLE + 1.0, device=device)
    middle = torch.stack([seen.sum(0) @ along, seen.sum(1) @ along]) / seen.sum()
    encoder.offset += middle / encoder.picture.unit


class Moves(NamedTuple):
    """Recorded steps, told apart by whether they went as far as they were meant to.

    In OGBench's teleport maze three of four that did not were carried.
    """

    free: Tensor  # (2, D - 2 + A) the linear step of those that did
    usual: float  # root mean square length of a step
    stopped: Tensor  # (M,) bool, of each state but those without a successor
    # (M,) bool, likewise: by something else than an action, a teleporter, say; or held for good.
    carried: Tensor

    @classmethod
    def of(cls, model: Jepa, store: LatentStore) -> "Moves":
        """Free are those whose action the moves tell; the linear step is fitted to these alone."""
        device = model.pixel_mean.device
        z = store.latents.float().cpu()  # as the rest of a store is
        actions = model.normalise_actions(store.actions.to(device)).cpu()
        here, later, actions = z[:-1], z[1:], actions[:-1]
        whole = store.trajectory[:-1] == store.trajectory[1:]
        told = model.idm(here.to(device), later.to(device), model.encoder.kept).cpu()
        near = whole & ((told - actions).abs().amax(-1) < BETA)
        inputs, step = torch.cat([here[:, 2:], actions], -1), later[:, :2] - here[:, :2]
        # In float64: where numbers lie in memory decides the last digits of a solution.
        free = torch.linalg.lstsq(inputs[near].double(), step[near].double()).solution.T.float()
        meant = inputs @ free.T

        def rms(some: Tensor) -> float:
            return float(step[some].square().sum(-1).mean().sqrt())

        carried = whole & (step.norm(dim=-1) > meant.norm(dim=-1) + CARRIED * rms(whole))
        if model.mover is not None:
            carried |= whole & ended(store, rms(whole))[:-1]
        walked = whole & ~carried
        usual = rms(walked)
        stopped = walked & ((step - meant).norm(dim=-1) > STOPPED * usual)
        return cls(free, usual, F.pad(stopped, (0, 1)), F.pad(carried, (0, 1)))


class Draw:
    """Windows in a few layouts each batch, every second one of a step that was stopped.

    None was carried: level 1 imagines what actions do.
    """

    def __init__(self, store: LatentStore, stopped: Tensor, carried: Tensor) -> None:
        first, times = store.windows(STEPS + 1), F.pad(carried.cumsum(0), (1, 0))
        first = first[times[first + STEPS] == times[first]]
        layout = store.trajectory[first]
        if store.data.record is None:  # else each recorded episode may have walls of its own
            layout = store.layout.numbers()[layout]
        layouts, layout = layout.unique(return_inverse=True)
        hit = stopped[first]
        self.any = Groups(first, layout)
        self.stopped = Groups(first[hit], layout[hit], len(layouts))

    def sample(self, batch: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First states (batch,), and which of the first windows' frames is each one's scene.

        `count` layouts, or all: layout i fills windows i, i + count, ...
        """
        chosen = torch.randperm(len(self.any.counts), generator=generator)[: count or None]
        rows = torch.arange(batch)
        group = chosen[rows % len(chosen)]
        share = torch.rand(batch, generator=generator, dtype=torch.float64)
        first = self.any.draw(group, share)
        wanted = (self.stopped.counts[group] > 0) & (rows // len(chosen) % 2 == 0)
        first[wanted] = self.stopped.draw(group[wanted], share[wanted])
        scenes = len(chosen) * max(1, SCENES // len(chosen))
        return first, rows % min(scenes, batch)


def train_local(
    model: Jepa, store: LatentStore, validation: LatentStore | None, *, seed: int, **options: Any
) -> Fit:
    """Iterate to train predictors and map of `model` in place, on places that no longer change.

    Smooth L1 of roll-outs in usual steps; and the log-odds that a place was visited, against places
    drawn anywhere in the picture.
    """
    device, config = next(model.parameters()).device, model.config
    moves = Moves.of(model, store)
    with torch.no_grad():
        for predictor in model.predictors:
            predictor.free.weight.copy_(moves.free)
    draws = {id(store): Draw(store, moves.stopped, moves.carried)}
    if validation:
        own = Moves.of(model, validation)
        draws[id(validation)] = Draw(validation, own.stopped, own.carried)
    own = {"updates": config.refine_updates, "batch": BATCH}
    optim = dataclasses.replace(config.optim, patience=0, **own)

    def loss(source: LatentStore, generator: torch.Generator) -> Loss:
        first, rows = draws[id(source)].sample(BATCH, config.layouts_per_batch, generator)
        batch = source.gather(first, STEPS + 1, scene=False)
        frames = source.frames(first[: int(rows.max()) + 1]).to(device)
        scene = Scene(model.scene(frames).maps, rows.to(device))
        latents, actions = batch.latents.to(device), batch.actions.to(device)
        ahead = model.rollout_members(latents[:, 0], actions, scene=scene)[:, :, 1:]
        truth = latents[None, :, 1:].expand_as(ahead)
        anywhere = latents[:, 0].clone()
        noise = torch.rand(BATCH, 2, generator=generator).to(device)
        picture = model.encoder.picture
        anywhere[:, :2] = picture.latents(noise * 2 * picture.centre)
        visited = torch.stack([
            F.softplus(-one.visit(latents[:, 0], scene)) + F.softplus(one.visit(anywhere, scene))
            for one in model.predictors
        ])  # fmt: skip
        sim = F.smooth_l1_loss(ahead / moves.usual, truth / moves.usual, beta=BETA)
        return sim + visited.mean(), {"sim": sim, "visited": visited.mean()}

    check = validation and held_out(partial(loss, validation), seed)
    task = Task(torch.nn.ModuleList([model.predictors, model.map]), partial(loss, store), check)
    return Fit(task, optim, seed=seed, stage="l1_refine", **options)
