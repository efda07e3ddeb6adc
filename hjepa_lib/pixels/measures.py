"""Measures of a frozen model: errors beside trivial guesses, and px; what is in a data set (DATA-8,
DATA-9), and where gradients arrive."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.pixels.training import CHUNK, in_chunks
from hjepa_lib.pixels.transitions import Transitions, scaled
from hjepa_lib.pixels.worlds import foresee
from hjepa_lib.training.probes import fit_ridge

MOST = 600  # samples of a report
LOOKED = 1_000  # transitions of each part that are looked at, at most
STEPS = 8  # imagined ones, at most
WINDOWS = 1_000  # scored, and those that true frames are read on
READ, STRENGTH = 10_000, 1e-3  # windows that drawn frames are read on: chance needs many; weight
Predict = Callable[[Any], Tensor]
"""A batch of transitions -> next frames (B, C, H, W)."""


@torch.no_grad()
def transition_errors(
    train: Transitions,
    data: Transitions,
    device: torch.device | str,
    model: Any = None,
    predict: Predict | None = None,
) -> dict[str, np.ndarray]:
    """Mean squared errors (M,) per transition of `data`, and of guesses that know `train` alone.

    `frame` of `predict`, `copy_last_frame` and `mean_frame` in pixels of [0, 1]; `latent`,
    `copy_last_latent` and `mean_latent` where `model` imagines encodings; `frame_guess` and
    `latent_guess`: the better of both (X1).
    """
    mean, named = train.mean_frame.to(device), model is not None and model.predicts_latents
    if named:
        centre = latents(model, train, pick(len(train)), target=True).mean(0).float().to(device)

    def errors(batch: Any) -> dict[str, Tensor]:
        before, after = scaled(batch.state[:, -1]), scaled(batch.next_state[:, -1])
        pairs = {"copy_last_frame": (before, after), "mean_frame": (mean.expand_as(after), after)}
        if predict is not None:
            pairs["frame"] = predict(batch), after
        if named:
            truth = model.encode_target(batch.next_state)
            pairs["latent"] = model.imagine(model.encode(batch.state), batch.action), truth
            pairs["copy_last_latent"] = model.encode_target(batch.state), truth
            pairs["mean_latent"] = centre.expand_as(truth), truth
        return {
            name: (one.float() - two.float()).square().flatten(1).mean(1).cpu().double()
            for name, (one, two) in pairs.items()
        }

    found = {name: part.numpy() for name, part in in_chunks(errors, data, device).items()}
    return found | {
        f"{of}_guess": min(found[f"copy_last_{of}"], found[f"mean_{of}"], key=np.mean)
        for of in ("frame", "latent")
        if f"mean_{of}" in found
    }


@torch.no_grad()
def place_errors(
    model: Any, train: Transitions, data: Transitions, seed: int, most: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Squared distances (W, K), px^2, from true positions after 1..K actions; episodes (W,).

    K is `STEPS`, `most` or the longest episode of a part, whatever is least.
    `encoded`: what one ridge, fitted on training windows, reads from the latents of true frames;
    `imagined`: the same one from latents that should equal them, for it would learn the dynamics
    itself from imagined ones that merely hold the action; but a ridge of each step from encodings
    of drawn frames, fitted on such: how these differ from true ones says nothing about what they
    show. `permuted`: imagined with the actions of another window; `last`, `mean`: the first
    position, the mean one of training; `between`: ridges of the first position; `guess`: the best
    of these three at each step; `possible`: that of the best model, in worlds of our own. Empty
    without positions.
    """
    if train.position is None:
        return {}, np.empty(0)
    steps = min(STEPS, most, *(int(part.lengths.max()) for part in (train, data)))

    def windows(part: Transitions, most: int) -> Tensor:
        first = part.windows(steps)
        return first[pick(len(first), most, seed)][:, None] + torch.arange(steps)  # rows (W, K)

    few, seen, asked = windows(train, WINDOWS), windows(train, READ), windows(data, WINDOWS)
    learned, truth = train.position[train.after[seen]], data.position[data.after[asked]]
    # True frames show the place, whatever the step: one ridge for all.
    shown, found = (
        latents(model, part, rows.flatten(), target=True)[:, None]
        for part, rows in ((train, few), (data, asked))
    )
    at_once = _reader(shown, train.position[train.after[few]].flatten(0, 1)[:, None])

    def read(values: Tensor) -> Tensor:
        return at_once(values.flatten(0, -2)[:, None]).view(truth.shape)

    places, action = {"encoded": read(found)}, data.action[asked]
    if (ahead := _imagined(model, data, asked, action)) is not None:
        if not model.predicts_latents:
            read = _reader(_imagined(model, train, seen, train.action[seen]), learned)
        other = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
        places["imagined"] = read(ahead)
        places["permuted"] = read(_imagined(model, data, asked, action[other]))
    begun, first = (part.position[part.now[rows[:, 0]]][:, None].expand(-1, steps, -1)
                    for part, rows in ((train, seen), (data, asked)))  # fmt: skip
    places |= {"last": first, "mean": train.position[train.now].mean(0).expand_as(truth)}
    places["between"] = _reader(begun.double(), learned)(first.double())
    said = foresee(data.world, first[:, 0].numpy(), data.action[asked].numpy())
    places |= {} if said is None else {"possible": torch.from_numpy(said)}
    found = {
        name: (place - truth).square().sum(-1).double().numpy() for name, place in places.items()
    }
    guesses = np.stack([found[name] for name in ("last", "mean", "between")])  # (3, W, K)
    best = guesses.mean(1).argmin(0)  # (K,)
    found["guess"] = np.take_along_axis(guesses, best[None, None], 0)[0]
    return found, data.episode[asked[:, 0]].numpy()


def _reader(latents: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    """(W, K, D) latents and (W, K, P) places -> a ridge of each step: chance of later ones would be
    noise to the first."""
    centre, spread = latents.mean((0, 1)), latents.flatten(0, 1).std(0).clamp(min=1e-9)

    def scaled_steps(values: Tensor) -> Iterable[Tensor]:
        return ((values - centre) / spread).float().unbind(1)

    parts = zip(scaled_steps(latents), places.unbind(1), strict=True)
    ridges = [fit_ridge(*part, STRENGTH) for part in parts]

    def read(values: Tensor) -> Tensor:
        steps = zip(ridges, scaled_steps(values), strict=True)
        return torch.stack([ridge(part) for ridge, part in steps], 1)

    return read


def _imagined(model: Any, data: Transitions, rows: Tensor, action: Tensor) -> Tensor | None:
    """(W, K, D) float64 after 1..K of these actions (W, K, ...) from the first of `rows` (W, K)."""
    device, found = model.background.device, []
    for first, taken in zip(rows[:, 0].split(CHUNK), action.split(CHUNK), strict=True):
        ahead = model.unroll(data[first].state.to(device), taken.to(device))
        if ahead is None:
            return None
        found.append(ahead.cpu().double())
    return torch.cat(found)


def rms(squared: np.ndarray) -> np.ndarray:
    """(W, K) squared distances -> (K,) px."""
    return np.sqrt(squared.mean(0))


def latents(model: Any, data: Transitions, rows: Tensor, target: bool = False) -> Tensor:
    """(M, D) float64 on the CPU: the states of `rows`, or their next ones in the target latent."""

    def encode(batch: Any) -> dict[str, Tensor]:
        found = model.encode_target(batch.next_state) if target else model.encode(batch.state)
        return {"latent": found.cpu().double()}

    return in_chunks(encode, data, model.background.device, rows)["latent"]


def pick(count: int, most: int = MOST, seed: int = 0) -> Tensor:
    """At most `most` of `count` rows in ascending order, the same ones for every model."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def frame_points(
    train: Transitions, validation: Transitions, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `samples` newest frames of each part (N, C * H * W), and which are held out (N,)."""
    parts = [data[pick(len(data), samples, seed)].state[:, -1] for data in (train, validation)]
    return scaled(torch.cat(parts).flatten(1)).numpy(), np.repeat((0, 1), [*map(len, parts)])


def inspect(data: Transitions) -> dict[str, Any]:
    """What is in a data set: shapes, types, ranges, frame differences in [0, 1] (DATA-9)."""
    some = data[pick(len(data), LOOKED)]  # differences of a whole large set would fill memory
    change = (scaled(some.next_state[:, -1]) - scaled(some.state[:, -1])).abs().flatten(1)
    return {
        "transitions": len(data),
        "episodes": len(data.lengths),
        "episode length": f"{int(data.lengths.min())} to {int(data.lengths.max())}",
        "state": f"{data.state_shape} uint8",
        "action": f"{data.action_kind}, {data.action_dim}",
        "different actions": len(data.action.unique(dim=0)),
        "pixel range": f"{int(data.frames.min())} to {int(data.frames.max())}",
        "reward range": f"{float(data.reward.min()):.4g} to {float(data.reward.max()):.4g}",
        "non-zero rewards": int((data.reward != 0).sum()),
        "pixels that change per step": float((change > 0).float().mean()),
        "mean change of a pixel": float(change.mean()),
        "steps without any change": float((change.amax(1) == 0).float().mean()),
    }


def gradient_norms(model: Any, batch: Any) -> dict[str, float]:
    """Gradient norm of every trained part for the loss of one batch; 0 where none arrives (F3)."""
    loss, found = model.loss(batch)[0], {}
    for name, part in model.named_children():
        if own := [p for p in part.parameters() if p.requires_grad]:
            grads = torch.autograd.grad(loss, own, retain_graph=True, materialize_grads=True)
            found[name] = math.hypot(*(float(one.norm()) for one in grads))
    return found
