"""A machine with CUDA, checked in a few minutes: `python -m hjepa_lib gpu-check`.

One JSON holds what is known so far, so a cut leaves what was done. Weights, data and noise are
drawn on the CPU: both devices do the same work.
"""

import dataclasses
import datetime
import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa_lib.config import profile
from hjepa_lib.evaluation import Case
from hjepa_lib.files import first_line, read_json, write_json
from hjepa_lib.planning import METHODS
from hjepa_lib.planning.agent import Agent
from hjepa_lib.runs import machine
from hjepa_lib.runs.keys import core_stages
from hjepa_lib.runs.places import outputs_root
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.score import COSTS, play
from hjepa_lib.runs.stages import load_run, load_trained
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training.loop import Report
from hjepa_lib.workbench import bench
from hjepa_lib.worlds.trials import load_trials

TOLERANCE = {"fp32": (1e-4, 1e-2), "torch": (1e-2, 1e-1), "bf16": (5e-2, 5e-1)}
"""Largest relative gaps to the CPU's fp32, (loss, gradient norm); `torch` is fp32 as torch sets it
up, whose convolutions round to tf32."""
PLANS = (1e-3, 5e-2)
"""The same of plans in fp32: relative gap of their costs, largest gap of their actions in px."""
COMPILE, LAPTOP, PLAY = 60.0, 150.0, 20.0
"""Seconds that one compilation, the part `laptop` and 100 trials are taken to need."""
_QUICK = {"data.transitions": 2000, "distance.trajectories": 10, "level2.macro_steps": 2}
_QUICK |= {"evaluation.trials": 2, "evaluation.steps": 8}
_QUICK |= {f"{part}.optim.updates": 4 for part in ("level1", "distance", "level2")}
_LOCAL = {"data.source": "patrolled_door", "level1.foresight": 4, "level1.refine_updates": 4}


class Check:
    """What is known so far, the file that holds it, and the time that is left."""

    def __init__(self, output: Path | None, end: float, device: str, quick: bool) -> None:
        self.end, self.device, self.quick = end, device, quick
        self.name = f"gpu-check-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        self.output = output or outputs_root() / self.name / "gpu-check.json"
        self.parts: dict[str, dict[str, Any]] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def save(self) -> None:
        """Write the file."""
        about = {"device": self.device, "quick": self.quick, "seconds_left": self.left}
        write_json(self.output, about | {"runs": self.name, "parts": self.parts})

    def lacks(self, seconds: float) -> dict[str, str]:
        """A sentence under `skipped` where so many seconds are not left."""
        if self.left > (0 if self.quick else seconds):
            return {}
        return {"skipped": f"takes about {seconds:.0f} s, {max(self.left, 0):.0f} s are left"}

    def run(self, work: Callable[["Check", dict], None], seconds: float) -> None:
        """One part, which fills its entry; a fault ends it alone."""
        begin, found = time.monotonic(), self.lacks(seconds)
        self.parts[work.__name__] = found
        try:
            if not found:
                work(self, found)
        except Exception as error:
            found["failed"] = f"{type(error).__name__}: {first_line(error)}"
            found["trace"] = traceback.format_exc().splitlines()
        finally:
            torch.backends.cudnn.allow_tf32 = True  # as torch sets it up
            found |= {"seconds": time.monotonic() - begin, "seconds_left": self.left}
            self.save()
        ended = [found[key] for key in ("failed", "skipped", "cut") if key in found]
        print(f"{work.__name__}: {found['seconds']:.0f} s", *ended, sep="; ", flush=True)

    def follow(self, reports: Iterator[Report], found: dict[str, Any]) -> bool:
        """Train until the training or the time ends, with a point of `curve` every 5 seconds."""
        begin, point, curve = time.monotonic(), 0.0, found.setdefault("curve", [])
        for one in reports:
            now = time.monotonic()
            if one.validation or now - point > 5 or one.update == one.updates:
                point, row = now, one._asdict()
                names = ("stage", "update", "loss", "grad_norm", "validation")
                curve.append({name: row[name] for name in names} | {"seconds": now - begin})
                self.save()
            if self.left < 0:
                reports.close()
                found["cut"] = f"the time was over after {one.update} of {one.updates} updates"
                return False
        found["training_seconds"] = time.monotonic() - begin
        return True

    def workspace(self, name: str, found: dict[str, Any], **tiny: Any) -> Workspace:
        """A new run of a profile, or tiny of these settings, with its data; no latest one."""
        quick = self.quick or tiny
        config = profile("smoke" if quick else name).override(_QUICK | tiny if quick else {})
        run = Run.create(f"{self.name}/{name}", config.override({"device": self.device}))
        ws, begin = Workspace("gpu-check", run), time.monotonic()
        data = read_json(ws.obtain(core_stages(run.config)["data"]) / "meta.json")
        found |= {"precision": ws.precision, "data_sha256": data["hash"]}
        found["data_seconds"] = time.monotonic() - begin
        return ws


def judged(gaps: tuple[float, float], limits: tuple[float, float]) -> dict[str, Any]:
    """Two gaps and whether both are within their limits; NaN is not."""
    within = all(gap <= limit for gap, limit in zip(gaps, limits, strict=True))
    return {"gaps": gaps, "tolerance": limits, "within": within}


# --- both devices do the same
def about(check: Check, found: dict[str, Any]) -> None:
    """Device, versions, and what bf16 is worth."""
    found |= {"versions": machine.versions(), "threads": torch.get_num_threads()}
    if check.device == "cuda":
        found["properties"] = str(torch.cuda.get_device_properties(0))
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def losses(check: Check, found: dict[str, Any]) -> None:
    """Loss and gradient norm of the first update of level 1, against the CPU's."""
    for one in bench.configs(check.quick):
        here = bench.updates(one.level1, "fp32")()
        told = found[f"level 1, {one.level1.encoder}"] = {"loss": here[0]}
        for name, limits in TOLERANCE.items():
            torch.backends.cudnn.allow_tf32 = name != "fp32"
            kept = "bf16" if name == "bf16" else "fp32"
            there = bench.updates(one.level1, kept, check.device)()
            told[name] = judged(tuple(((there - here) / here).abs().tolist()), limits)


def plans(check: Check, found: dict[str, Any]) -> None:
    """One call of the committed model's planners, against the CPU's."""
    tasks = load_trials("p1", "test", 2 if check.quick else 20)
    world, run = tasks.begin("bounce", 0), Run.named("pretrained")

    def plan(agent: Agent, method: str, cost: str) -> tuple[Tensor, Tensor]:
        start, goal = (agent.encode(world.render(place)) for place in (tasks.start, tasks.goal))
        planner = agent.planner(method, dataclasses.replace(agent.planning, cost=cost))
        planner.reset(tasks.numbers)
        plan = planner.plan(start, goal, executed=0)
        return plan.search.costs.cpu(), plan.actions.cpu()

    torch.backends.cudnn.allow_tf32 = False
    agents = [load_run(run, (), "fp32", device) for device in ("cpu", check.device)]
    for method, cost in itertools.product(METHODS, COSTS):
        costs, actions = zip(*(plan(agent, method, cost) for agent in agents), strict=True)
        gaps = bench.difference(*costs), float((actions[0] - actions[1]).abs().max())
        found[f"{method} {cost}"] = judged(gaps, PLANS)


def local(check: Check, found: dict[str, Any]) -> None:
    """Places, a graph and level 2 above them in a world with a guard, tiny: that it all runs."""
    ws = check.workspace("local", found, **_LOCAL)
    wanted = [(method, "graph", "none") for method in METHODS]
    wanted += [("flat", "distance", truth) for truth in ("dynamics", "distance")]
    for method, cost, truth in wanted:
        planning = dataclasses.replace(ws.config.planning, truth=truth)
        case = Case.of(ws.config, method, cost, split="test", planning=planning)
        played = play(ws, load_trained(ws, case.stages), case, latency=False).row
        found[f"{method} {cost}, told {truth}"] = {"success_rate": played["success_rate"]}


# --- speed
def rate(check: Check, make: Callable[[], bench.Call], failure: str = "failed") -> dict[str, Any]:
    """How often a second the call can be made, and its memory; a sentence, named
    `failure`, where it cannot."""
    begin, cuda = time.monotonic(), check.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        call = make()
        call()
        first = time.monotonic() - begin
        seconds = bench.timer(call).blocked_autorange(min_run_time=0 if check.quick else 3).mean
    except Exception as error:  # a compiler has many ways to fail, and the rest needs none
        return {failure: f"{type(error).__name__}: {first_line(error)}", "first_seconds": 0.0}
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return {"per_second": 1 / seconds, "first_seconds": first, "peak_bytes": peak}


def throughput(check: Check, found: dict[str, Any]) -> None:
    """Updates of the reference level 1, and its flat plans for 100 trials."""
    config, trials = bench.configs(check.quick)[0], 3 if check.quick else 100

    def update(precision: str, backend: str) -> bench.Call:
        return bench.updates(config.level1, precision, check.device, backend)

    def plan(precision: str, backend: str) -> bench.Call:
        planning = bench.Planning(config, trials, check.device, backend)
        return partial(planning.call, precision)

    ways = [(work, kept) for work in (update, plan) for kept in ("fp32", "bf16")]
    for work, kept in ways:
        found[f"{work.__name__}, {kept}"] = rate(check, partial(work, kept, ""))
    expected, backend = COMPILE, "aot_eager" if check.quick else "inductor"
    for work, kept in ways:
        name = f"{work.__name__}, {kept}, compiled"
        check.save()
        found[name] = check.lacks(expected + LAPTOP) or rate(
            check, partial(work, kept, backend), "error"
        )
        expected = max(expected, found[name].get("first_seconds", 0))
        torch.compiler.reset()


# --- runs
def laptop(check: Check, found: dict[str, Any]) -> None:
    """The profile laptop from its data to P1; a planner plays as soon as it is trained."""
    ws = check.workspace("laptop", found)
    for cost, method in itertools.product(COSTS[::-1], METHODS):
        case = Case.of(ws.config, method, cost, split="test")
        for name in ("l1", "distance", *case.stages[2:]):
            stage = core_stages(ws.config)[name]
            if not ws.done(stage) and not check.follow(ws.make(stage), found.setdefault(name, {})):
                return
        begin, played = time.monotonic(), check.lacks(PLAY)
        if not played:
            row = play(ws, load_trained(ws, case.stages), case, latency=False).row
            kept = ("success_rate", "ci95", "n", "path_efficiency", "seconds_per_episode")
            played = {key: row[key] for key in kept} | {"seconds": time.monotonic() - begin}
        found[f"{method} {cost}"] = played
        check.save()


def full(check: Check, found: dict[str, Any]) -> None:
    """Level 1 of the profile full, as far as the time goes."""
    ws = check.workspace("full", found)
    check.follow(ws.make(core_stages(ws.config)["l1"]), found)
    first, last = found["curve"][0], found["curve"][-1]
    if updates := last["update"] - first["update"]:
        found["per_second"] = updates / (last["seconds"] - first["seconds"])
        found["hours_for_all"] = ws.config.level1.optim.updates / found["per_second"] / 3600


PARTS = {about: 0, losses: 10, plans: 5, local: 30, throughput: 20, laptop: 40, full: 45}
"""What is done, with the seconds without which it is not begun."""


def wrong(found: Any) -> bool:
    """True when a part failed, or a gap is beyond its tolerance."""
    if not isinstance(found, dict):
        return False
    return found.get("within") is False or "failed" in found or any(map(wrong, found.values()))
