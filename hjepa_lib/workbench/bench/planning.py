"""Planner calls with random weights: precision, one batch against a loop over trials, growth."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hjepa_lib.config import Config, PlannerConfig
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.evaluation import protocol_cap
from hjepa_lib.models.distance import Distance, Geometry, LatentGeometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.levels import PrimitiveLevel
from hjepa_lib.planning.planner import Layer, Plan, Planner
from hjepa_lib.workbench.bench.level1 import SAMPLE
from hjepa_lib.workbench.timing import Case, relative_difference
from hjepa_lib.worlds.rendering import render
from hjepa_lib.worlds.trials import load_trials

REFERENCE_CALLS = 3  # rounds of the reference planner: a call of it takes a minute in fp32
GROWTH = {
    "trials": (1, 3, 10, 30, 100, 300, 1000),
    "samples": (16, 64, 256, 1024),
    "horizon": (4, 8, 16, 32, 64, 96),
}
"""What grows, and its values; the rest stays as in the profile, with 20 trials."""
QUICK_GROWTH = {"trials": (1, 4), "samples": (8, 16), "horizon": (2, 4)}


class Bench:
    """A planner over `trials` validation trials, called in one precision or another."""

    def __init__(self, config: Config, trials: int, planner: PlannerConfig | None = None) -> None:
        torch.manual_seed(0)
        model = Jepa(config.level1, Normaliser.fit(generate("good", SAMPLE), 0)).eval()
        self.geometry: Geometry = LatentGeometry()
        if config.planning.cost == "distance":
            head = Distance(config.distance, model.latent_dim).eval()
            self.geometry = head
        tasks = load_trials("p1", "validation", min(trials, 500))
        rows = torch.arange(trials) % tasks.count  # the stored ones again, beyond 500
        with torch.no_grad():
            self.start = model.encode(render(tasks.start, tasks.layout))[rows]  # (B, D)
            self.goal = model.encode(render(tasks.goal, tasks.layout))[rows]
        cap = protocol_cap("p1", config.planning.action_cap)
        self.level = PrimitiveLevel(model, planner or config.planning.flat, self.geometry, cap)
        self.planner = Planner([Layer(self.level)], seed=0)
        self.trials = trials

    def call(self, precision: str, rows: slice = slice(None)) -> Plan:
        """One planning call for those trials, without a warm start."""
        self.planner.reset()
        return self._plan(precision, rows)

    def loop(self, precision: str) -> Plan:
        """The same code, one trial after the other."""
        plans = []
        for row in range(self.trials):
            self.planner.reset([row])
            plans.append(self._plan(precision, slice(row, row + 1)))
        searches = [torch.cat(parts) for parts in zip(*(p.search for p in plans), strict=True)]
        actions = torch.cat([plan.actions for plan in plans])
        return plans[0]._replace(actions=actions, search=type(plans[0].search)(*searches))

    def same_costs(self, baseline: Plan, precision: str) -> float:
        """The baseline's candidates, costed once more in `precision`: relative difference."""
        candidates = baseline.search.candidates
        with torch.no_grad(), _autocast(precision):
            goal = self.geometry.embed(self.goal)
            costs = self.level.costs(self.start, candidates, goal)
        return relative_difference(baseline.search.costs, costs.float())

    def _plan(self, precision: str, rows: slice) -> Plan:
        with _autocast(precision):
            return self.planner.plan(self.start[rows], self.goal[rows], executed=0)


def planner_cases(config: Config, reference: Config, precision: str, trials: int) -> list[Case]:
    """The profile's flat planner, and PLDM's on the reference architecture."""
    small = functools.cache(lambda: Bench(config, trials))  # made when it is first called
    batched = f"{trials} trials at once, {precision}"
    cases = [
        Case(
            "planner call", f"{trials} trials at once, fp32", batched,
            lambda: small().call("fp32"), lambda: small().call(precision),
            lambda plan, _: small().same_costs(plan, precision), trials, "plans",
        ),
        Case(
            "planner call, batched", f"one by one, {precision}", batched,
            lambda: small().loop(precision), lambda: small().call(precision),
            lambda plan, _: small().same_costs(plan, precision), trials, "plans",
        ),
    ]  # fmt: skip
    large = functools.cache(lambda: Bench(reference, trials))
    flat, model = reference.planning.flat, reference.level1
    label = f"{flat.samples:,} x {flat.horizon} steps, {model.predictor} {model.latent_dim}"
    for kept in dict.fromkeys((precision, "bf16")):
        cases.append(
            Case(
                f"reference planner, {kept}", f"one by one, fp32: {label}",
                f"{trials} trials at once, {kept}",
                lambda: large().loop("fp32"), lambda kept=kept: large().call(kept),
                lambda plan, _, kept=kept: large().same_costs(plan, kept), trials, "plans",
                most_rounds=REFERENCE_CALLS,
            )
        )  # fmt: skip
    return cases


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


# --- growth -----------------------------------------------------------------------------------
class Growth(NamedTuple):
    """One point of the scaling table."""

    axis: str  # what grows
    value: int
    seconds: float  # of one call
    milliseconds_per_plan: float
    transitions_per_second: float  # model transitions, all trials


def growth(
    config: Config,
    precision: str,
    axes: dict[str, Sequence[int]] = GROWTH,
    trials: int = 20,
    calls: int = 3,
) -> list[Growth]:
    """Time of a flat planning call as trials, samples and horizon grow; medians of `calls`."""
    points = []
    for axis, values in axes.items():
        for value in values:
            batch = value if axis == "trials" else trials
            change = {} if axis == "trials" else {axis: value}
            planner = dataclasses.replace(config.planning.flat, **change)
            bench = Bench(config, batch, planner)
            bench.call(precision)  # memory is mapped and kernels are chosen here
            seconds = statistics.median(_seconds(bench, precision) for _ in range(calls))
            work = batch * planner.samples * planner.iterations * planner.horizon
            points.append(Growth(axis, value, seconds, 1e3 * seconds / batch, work / seconds))
    return points


def _seconds(bench: Bench, precision: str) -> float:
    start = time.perf_counter()
    bench.call(precision)
    return time.perf_counter() - start


def describe_growth(points: list[Growth]) -> str:
    """The scaling table as text."""
    lines = [
        f"{'grows':<8} {'to':>6} {'s per call':>11} {'ms per plan':>12} {'M transitions/s':>16}"
    ]
    for point in points:
        lines.append(
            f"{point.axis:<8} {point.value:>6,} {point.seconds:>11.4f} "
            f"{point.milliseconds_per_plan:>12.3f} {point.transitions_per_second / 1e6:>16.2f}"
        )
    return "\n".join(lines)
