"""Speed on the CPU: `python -m hjepa_lib bench`, on torch.utils.benchmark, with random weights."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.benchmark import Measurement, Timer

from hjepa_lib.config import Config, ConfigError, Level1Config, profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.trajectories import Trajectories
from hjepa_lib.data.windows import Windows
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.distance import Distance
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.planning.agent import Agent
from hjepa_lib.training.level1 import train_level1
from hjepa_lib.worlds.layout import render, render_reference
from hjepa_lib.worlds.trials import load_trials

TOLERANCE = 0.05
"""Largest relative difference between ways of one work: bf16 rounding stays below it."""
_QUICK = {"level1.latent_dim": 16, "level1.window": 4, "level1.optim.batch": 4}
Call = Callable[[], Tensor]
Ways = dict[str, Callable[[], Call]]
"""Ways of doing one work, by name: what builds each, which is not timed."""


# --- what is timed
def configs(quick: bool = False) -> tuple[Config, Config]:
    """(reference, laptop): PLDM's architecture and the default profile."""
    names = ("full", "smoke" if quick else "laptop")
    return tuple(profile(name).override(_QUICK if quick else {}) for name in names)


def sample() -> Trajectories:
    """The data that updates draw from."""
    return generate("good", 20_312)


def untrained(config: Level1Config) -> Jepa:
    """A level 1 whose weights are the same at every call."""
    torch.manual_seed(0)
    return Jepa(config, Normaliser.fit(sample(), 0))


def updates(config: Level1Config, precision: str, device: str = "cpu", backend: str = "") -> Call:
    """Whole level-1 updates (draw, render, forward, backward, clip, AdamW) of a new model.

    A call returns its loss and gradient norm; a `backend` of torch.compile takes the encoder.
    """
    model = untrained(config).to(device)
    if backend:
        model.encoder.compile(backend=backend, dynamic=False)
    windows = Windows(sample(), config.window)
    fit = iter(train_level1(model, windows, None, seed=0, precision=precision))

    def call() -> Tensor:
        report = next(fit)
        return torch.tensor([report.loss, report.grad_norm])

    return call


class Planning:
    """A flat planner over the first `trials` validation trials; a `backend` compiles predictors."""

    def __init__(self, config: Config, trials: int, device: str = "cpu", backend: str = "") -> None:
        model = untrained(config.level1).eval().to(device)
        for member in model.predictors if backend else ():
            member.compile(backend=backend, dynamic=False)
        head = Distance(config.distance, model.latent_dim).eval().to(device)
        about = (None, {}, None, config.planning, 0, "fp32", torch.device(device))
        self.agent = Agent(model, None, head, *about)
        self.planner = self.agent.planner("flat")
        tasks = load_trials("p1", "validation", trials)
        self.start, self.goal = (  # (B, D) each
            self.agent.encode(render(place, tasks.layout)) for place in (tasks.start, tasks.goal)
        )

    def call(self, precision: str, batch: int = 0) -> Tensor:
        """Costs (B, N) of the candidates of one call for all trials, without a warm start.

        `batch` trials at a time, if given: each meets what it meets beside the others.
        """
        self.agent.precision, costs = precision, []
        for rows in torch.arange(len(self.start)).split(batch or len(self.start)):
            self.planner.reset(rows.tolist())
            with self.agent.autocast():
                plan = self.planner.plan(self.start[rows], self.goal[rows], executed=0)
            costs.append(plan.search.costs)
        return torch.cat(costs)


def works(quick: bool = False) -> dict[str, Ways]:
    """Every work that is timed, in the ways it can be done here."""
    reference, laptop = configs(quick)
    trials, shown, transitions = (3, 34, 500) if quick else (20, 1088, 100_000)
    both = ("fp32", "bf16")

    def plan(batch: int, kept: str) -> Call:
        return partial(Planning(laptop, trials).call, kept, batch)

    def walk() -> Call:
        return lambda: generate("good", transitions).positions

    def draw(rule: Callable[..., Tensor]) -> Call:
        windows = Windows(sample(), 17)
        batch = windows.sample(shown // 17, torch.Generator().manual_seed(0))
        return partial(rule, batch.positions, batch.layout)

    found: dict[str, Ways] = {
        f"level-1 update, {one.encoder}": {kept: partial(updates, one, kept) for kept in both}
        for one in (reference.level1, laptop.level1)
    }
    for kept in both:
        ways = {"one by one": partial(plan, 1, kept), "all at once": partial(plan, 0, kept)}
        found[f"plan {trials} trials, {kept}"] = ways
    rules = {"direct formula": render_reference, "patches": render}
    found[f"draw {shown:,} frames"] = {name: partial(draw, rule) for name, rule in rules.items()}
    return found | {f"generate {transitions:,} transitions": {"vectorised": walk}}


# --- timing
def timer(call: Call, **labels: str) -> Timer:
    """What times a call on all threads, and waits for a GPU."""
    threads = torch.get_num_threads()
    return Timer(
        "call()", globals={"call": call}, num_threads=threads, description="time", **labels
    )


def measure(chosen: dict[str, Ways], rounds: int) -> list[Measurement]:
    """One measurement per way; WorkbookError where two ways of a work give other numbers."""
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    timers = []
    for work, ways in chosen.items():
        calls = {name: make() for name, make in ways.items()}
        # Also the warm-up: memory is mapped and kernels are chosen here.
        (first, wanted), *others = ((name, call()) for name, call in calls.items())
        for name, outcome in others:
            gap = difference(wanted, outcome)
            if not gap <= TOLERANCE:
                raise WorkbookError(
                    f"{work}: {first} and {name} differ by {gap:.3g}, more than {TOLERANCE}"
                )
        timers += [timer(call, label=work, sub_label=name) for name, call in calls.items()]
    turns = [[one.timeit(1) for one in timers] for _ in range(rounds)]
    return [Measurement.merge(times)[0] for times in zip(*turns, strict=True)]


def difference(one: Tensor, two: Tensor) -> float:
    """Mean absolute difference as a share of the mean absolute value."""
    one, two = one.double(), two.double()
    return float((one - two).abs().mean() / one.abs().mean())
