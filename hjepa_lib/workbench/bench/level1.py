"""Whole level-1 updates: draw, render, forward, backward, clip, AdamW.

The baseline is the reference architecture as one would write it down first: float32, channels
first, eager. The other cases change one thing each: encoder, precision, memory layout, compiler.
"""

from __future__ import annotations

import functools
import os
import shutil

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib.config import Level1Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.encoders import ImpalaEncoder, ResidualBlock
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.training.level1 import train_level1
from hjepa_lib.training.loop import Report
from hjepa_lib.workbench.timing import Case, Side

SAMPLE = 20_312  # transitions of the data that the updates draw from


class PlainJepa(Jepa):
    """The same model written down plainly: float32 pixels, channels first, no autocast."""

    def _pixels(self, frames: Tensor) -> Tensor:
        mean, std = self.pixel_mean.view(-1, 1, 1), self.pixel_std.view(-1, 1, 1)
        return (frames.float() - mean) / std

    def encode(self, frames: Tensor, encoder: torch.nn.Module | None = None) -> Tensor:
        lead = frames.shape[:-3]
        pixels = self._pixels(frames.reshape(-1, *frames.shape[-3:]))
        latents = plain_impala(encoder or self.encoder, pixels)
        return latents.reshape(*lead, self.latent_dim)


class ChannelsFirst(Jepa):
    """The shipped model with its pixels in the other memory layout."""

    def _pixels(self, frames: Tensor) -> Tensor:
        return super()._pixels(frames).contiguous()


class Compiled(Jepa):
    """The shipped model with encoder and predictors compiled, at their first call."""

    def __init__(self, config: Level1Config, normaliser: Normaliser) -> None:
        super().__init__(config, normaliser)
        for module in (self.encoder, *self.predictors):
            module.compile()


def plain_impala(encoder: ImpalaEncoder, x: Tensor) -> Tensor:
    """The textbook forward pass, whatever tricks the shipped one may use. (M, C, Hpx, Wpx)."""
    for layer in encoder.stacks:
        if isinstance(layer, ResidualBlock):
            x = F.relu(x + layer.conv2(F.relu(layer.conv1(x))))
        else:
            x = layer(x)
    return encoder.norm(encoder.head(F.relu(x).flatten(1)))


def update_of(kind: type[Jepa], config: Level1Config, data: Trajectories, precision: str) -> Side:
    """Whole updates of a new model, one `Report` per call."""
    torch.manual_seed(0)  # both sides of a case start from the same weights
    model = kind(config, Normaliser.fit(data, 0))
    fit = iter(
        train_level1(model, Windows(data, config.window), None, config, seed=0, precision=precision)
    )
    return lambda: next(fit)


def same_update(one: Report, two: Report) -> float:
    """Relative difference of losses and of gradient norms."""
    pairs = [torch.tensor([report.loss, report.grad_norm]) for report in (one, two)]
    return float(((pairs[0] - pairs[1]) / pairs[0]).abs().max())


def level1_cases(reference: Level1Config, fast: Level1Config, precision: str) -> list[Case]:
    """The reference architecture against its plain self, and what makes the fast one fast."""
    data = generate("good", SAMPLE)
    names = [f"{config.encoder} {precision}" for config in (reference, fast)]
    frames = [config.optim.batch * config.window for config in (reference, fast)]

    def update(kind: type[Jepa], config: Level1Config, kept: str) -> Side:
        make = functools.cache(lambda: update_of(kind, config, data, kept))
        return lambda: make()()  # built by the first call, which is not timed

    return [
        Case(
            "level-1 update", f"{reference.encoder} fp32 channels first", names[0],
            update(PlainJepa, reference, "fp32"), update(Jepa, reference, precision),
            same_update, frames[0], "frames",
        ),
        Case(
            "level-1 update, fast encoder", names[0], names[1],
            update(Jepa, reference, precision), update(Jepa, fast, precision),
            None, frames[1], "frames",
        ),
        Case(
            "level-1 update, fast against fp32", f"{reference.encoder} fp32", names[1],
            update(Jepa, reference, "fp32"), update(Jepa, fast, precision),
            None, frames[1], "frames",
        ),
        Case(
            "precision of an update", f"{fast.encoder} fp32", f"{fast.encoder} bf16",
            update(Jepa, fast, "fp32"), update(Jepa, fast, "bf16"),
            same_update, frames[1], "frames",
        ),
        *(
            Case(
                f"memory layout, {config.encoder}", "channels first", f"channels last, {precision}",
                update(ChannelsFirst, config, precision), update(Jepa, config, precision),
                same_update, count, "frames",
            )
            for config, count in ((reference, frames[0]), (fast, frames[1]))
        ),
        Case(
            "torch.compile of an update", f"eager {names[1]}", "encoder and predictor compiled",
            update(Jepa, fast, precision), update(Compiled, fast, precision),
            same_update, frames[1], "frames", skip=no_compiler(),
        ),
    ]  # fmt: skip


def no_compiler() -> str:
    """Why torch.compile cannot work on this CPU; empty when it can."""
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl"))
    if any(shutil.which(name) for name in names):
        return ""
    return "torch.compile needs a C++ compiler, and there is none"
