"""Speed, measured fairly: `python -m hjepa_lib.bench` (or `make bench`).

What is measured is listed in `cases`; how, in timing.py: baseline and candidate interleaved in one
process, medians of 20 rounds. The baseline of the level-1 update is the reference architecture as
one would write it down first: float32, channels first, eager. Everything runs on the CPU, where
this workbook has to be quick.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from hjepa_lib import machine
from hjepa_lib.config import Config, ConfigError, Level1Config
from hjepa_lib.config import profile as make_profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.evaluation.results import protocol_cap
from hjepa_lib.files import write_json
from hjepa_lib.models.distance import Distance
from hjepa_lib.models.encoders import ImpalaEncoder, ResidualBlock
from hjepa_lib.models.geometry import DistanceGeometry
from hjepa_lib.models.jepa import Jepa
from hjepa_lib.planning.levels import PrimitiveLevel, plan_costs
from hjepa_lib.planning.planner import Plan, Planner
from hjepa_lib.timing import BenchError, Case, Side, describe, measure, relative_difference
from hjepa_lib.training.level1 import train_level1
from hjepa_lib.training.loop import Report
from hjepa_lib.worlds.rendering import render, render_reference
from hjepa_lib.worlds.trials import load_trials

_SAMPLE = 20_312  # transitions of the data that the updates draw from


# --- level-1 update ---------------------------------------------------------------------------
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


def plain_impala(encoder: ImpalaEncoder, x: Tensor) -> Tensor:
    """The textbook forward pass, whatever tricks the shipped one may use. (M, C, Hpx, Wpx)."""
    for layer in encoder.stacks:
        if isinstance(layer, ResidualBlock):
            x = F.relu(x + layer.conv2(F.relu(layer.conv1(x))))
        else:
            x = layer(x)
    return encoder.norm(encoder.head(F.relu(x).flatten(1)))


def update_of(kind: type[Jepa], config: Level1Config, data: Trajectories, precision: str) -> Side:
    """Whole updates of a new model: draw, render, forward, backward, clip, AdamW -> Report."""
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
    """The reference architecture against its plain self, and the fast one against both."""
    data = generate("good", _SAMPLE)
    plain = update_of(PlainJepa, reference, data, "fp32")
    shipped = update_of(Jepa, reference, data, precision)
    quick = update_of(Jepa, fast, data, precision)
    names = [f"{config.encoder} {precision}" for config in (reference, fast)]
    frames = [config.optim.batch * config.window for config in (reference, fast)]
    return [
        Case(
            "level-1 update", f"{reference.encoder} fp32 channels first", names[0],
            plain, shipped, same_update, frames[0], "frames",
        ),
        Case(
            "level-1 update, fast encoder", names[0], names[1],
            shipped, quick, None, frames[1], "frames",
        ),
    ]  # fmt: skip


# --- planner call -----------------------------------------------------------------------------
def planner_cases(config: Config, precision: str, trials: int) -> list[Case]:
    """Flat planning with random weights: precision, and one batch against a loop over trials."""
    torch.manual_seed(0)
    model = Jepa(config.level1, Normaliser.fit(generate("good", _SAMPLE), 0)).eval()
    head = Distance(config.distance, model.latent_dim).eval()
    geometry = DistanceGeometry(head)
    tasks = load_trials("p1", "validation", trials)
    with torch.no_grad():
        start = model.encode(render(tasks.start, tasks.layout))  # (B, D)
        goal = model.encode(render(tasks.goal, tasks.layout))
    cap = protocol_cap("p1", config.planning.action_cap)
    level = PrimitiveLevel(model, config.planning.flat, cap, None)
    planner = Planner(level, geometry, seed=0)

    def call(kind: str, rows: slice = slice(None)) -> Plan:
        planner.reset()
        with _autocast(kind):
            return planner.plan(start[rows], goal[rows], executed=0)

    def loop() -> Plan:
        plans = [call(precision, slice(row, row + 1)) for row in range(trials)]
        searches = [plan.search for plan in plans]
        joined = [torch.cat(parts) for parts in zip(*searches, strict=True)]
        return plans[0]._replace(search=type(searches[0])(*joined))

    def same_costs(baseline: Plan, _: Plan) -> float:
        """The baseline's candidates, costed once more the candidate's way."""
        candidates = baseline.search.candidates
        with torch.no_grad(), _autocast(precision):
            costs = plan_costs(level, geometry, start, candidates, geometry.embed(goal))
        return relative_difference(baseline.search.costs, costs.float())

    batched = f"{trials} trials at once, {precision}"
    return [
        Case(
            "planner call", f"{trials} trials at once, fp32", batched,
            lambda: call("fp32"), lambda: call(precision), same_costs, trials, "plans",
        ),
        Case(
            "planner call, batched", f"one by one, {precision}", batched,
            loop, lambda: call(precision), same_costs, trials, "plans",
        ),
    ]  # fmt: skip


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


# --- world ------------------------------------------------------------------------------------
def world_cases(frames: int, transitions: int) -> list[Case]:
    """Rendering against the direct formula; generation of trajectories (time only)."""
    length = 17
    windows = Windows(generate("good", _SAMPLE), length)
    batch = windows.sample(frames // length, torch.Generator().manual_seed(0))
    work = (batch.positions, batch.layout)
    return [
        Case(
            "rendering", "direct formula", "patch renderer",
            lambda: render_reference(*work), lambda: render(*work), relative_difference,
            batch.positions[..., 0].numel(), "frames",
        ),
        Case(
            "data generation", "", "vectorised simulation",
            None, lambda: generate("good", transitions), None, transitions, "transitions",
        ),
    ]  # fmt: skip


def cases(
    reference: Config,
    laptop: Config,
    precision: str,
    trials: int = 20,
    frames: int = 1088,
    transitions: int = 100_000,
) -> list[Case]:
    """Everything `make bench` measures; smaller numbers and configs make it a test."""
    return [
        *level1_cases(reference.level1, laptop.level1, precision),
        *planner_cases(laptop, precision, trials),
        *world_cases(frames, transitions),
    ]


@dataclass
class BenchCommand:
    """Baseline against candidate, interleaved in one process; medians."""

    rounds: int = 20
    """Timed rounds per case."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the shipped path; auto takes the faster one, by measurement."""
    threads: int | None = None
    """Threads of both sides; all usable cores if empty."""
    only: str = ""
    """Measure only the cases whose name contains this text."""
    output: Path | None = None
    """Also write the rows to this JSON file."""

    def __call__(self) -> int:
        threads = machine.set_up(self.threads)
        precision = machine.choose_precision("cpu", self.precision)
        found = cases(make_profile("full"), make_profile("laptop"), precision)
        chosen = [case for case in found if self.only in case.name]
        if not chosen:
            names = ", ".join(case.name for case in found)
            raise ConfigError(f"no case is called like {self.only!r}; there are: {names}")
        print(f"{threads} threads, {precision}, medians of {self.rounds} rounds")
        rows = [measure(case, self.rounds) for case in chosen]
        print(describe(rows))
        if self.output:
            about = {"threads": threads, "precision": precision, "versions": machine.versions()}
            write_json(self.output, about | {"rows": [row._asdict() for row in rows]})
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Parse the options and measure; one sentence and status 2 when that is not possible."""
    try:
        return tyro.cli(BenchCommand, prog="python -m hjepa_lib.bench", args=arguments)()
    except (ConfigError, BenchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
