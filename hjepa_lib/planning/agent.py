"""A trained run, ready to plan: `hjepa_lib.load(run).controller(goal_frame).act(frame)`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.files import FileError, WorkbookError
from hjepa_lib.models import checkpoint
from hjepa_lib.models.checkpoint import TrainedMacro
from hjepa_lib.models.distance import Distance, Geometry, LatentGeometry, Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.local import Scene
from hjepa_lib.planning import GRAPH, METHODS, P1_CAP, THREE_LEVELS, interval
from hjepa_lib.planning.graph import GraphDistance
from hjepa_lib.planning.levels import MacroLevel, PrimitiveLevel
from hjepa_lib.planning.planner import Plan, Planner
from hjepa_lib.planning.truth import TrueDistance, TrueDynamics, witness
from hjepa_lib.worlds.base import World


@dataclass
class Agent:
    """Models of one training seed; every module is in eval mode on one device."""

    level1: Jepa
    probe: Probe
    distance: Distance | None
    level2: Level2 | None
    reach: dict[str, float]
    box: Tensor | None
    planning: PlanningConfig
    seed: int
    precision: str
    device: torch.device
    level3: TrainedMacro | None = None
    ball: bool = True  # the cap is of an action's norm, else of each component

    def geometry(self, cost: str) -> Geometry:
        """`latent`, `distance` or `graph`; ConfigError when it was not trained."""
        if cost == "latent":
            return LatentGeometry()
        if cost == "graph":
            if self.level1.map is None:
                raise ConfigError("cost 'graph' needs level1.predictor=local")
            return GraphDistance(self.level1, self.planning.action_cap or P1_CAP)
        if self.distance is None:
            raise ConfigError("cost 'distance' needs a trained distance head; use 'latent'")
        return self.distance

    def planner(self, method: str, planning: PlanningConfig | None = None) -> Planner:
        """A fresh one: `flat`, `l1+l2` or `l1+l2+l3`, of the cost `planning.cost`, or `graph`."""
        planning = planning or self.planning
        models = {"flat": self.level1, "l1+l2": self.level2, THREE_LEVELS: self.level3}
        level = "flat" if method == GRAPH else method
        if level not in models:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        count = list(models).index(level) + 1
        if models[level] is None:
            raise ConfigError(f"method {method!r} needs a trained level {count}; this run has none")
        geometry = self.geometry(GRAPH if method == GRAPH else planning.cost)
        hierarchy, level2 = planning.hierarchy, self.level2
        cap = planning.action_cap or self.planning.action_cap or P1_CAP
        geometry = TrueDistance(self.probe, cap) if planning.truth == "distance" else geometry
        steps = self.level1
        if planning.truth == "dynamics":
            steps = TrueDynamics(self.encode, steps)
        if hierarchy.control == "untrained" and count > 1:
            level2 = _fresh_level2(level2, self.seed)
        below, acting = (hierarchy.tracker, level2) if count > 1 else (planning.flat, None)
        levels = [PrimitiveLevel(steps, below, geometry, cap, acting, self.ball)]
        above = [
            (hierarchy.level2, hierarchy.replan, (level2, self.reach, self.box)),
            (planning.level3, planning.level3.replan, self.level3),
        ]
        for search, replan, (model, reach, box, *_) in above[: count - 1]:
            rest = (cap, hierarchy, box, self.level1, self.ball)
            level = MacroLevel(model, search, geometry, *rest)
            level.replan, level.reach = replan, reach.get(planning.cost, model.config.step_skip)
            levels.append(level)
        ahead = planning.ahead if method == GRAPH else 0
        return Planner(levels, self.seed, interval(planning, method), hierarchy, ahead)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, C, Hpx, Wpx) uint8 -> (B, D) float32."""
        with torch.no_grad(), self.autocast():
            pieces = self.level1.pieces(frames)
            parts = [self.level1.encode(piece.to(self.device)) for piece in pieces]
        return torch.cat(parts)

    @torch.no_grad()
    def scene(self, frames: Tensor) -> Scene | None:
        """What a local level 1 sees of frames (B, C, Hpx, Wpx) uint8; None for others."""
        if self.level1.map is None:
            return None
        return self.level1.scene(frames.to(self.device))

    def autocast(self) -> torch.autocast:
        """bf16 where it was measured faster, else a no-op."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def controller(
        self, goal_frame, method: str = "flat", *, planning: PlanningConfig | None = None,
        trial: int = 0,
    ) -> "Controller":  # fmt: skip
        """A closed loop to one goal frame, with the noise of task `trial`."""
        return Controller(self, method, planning or self.planning).start(
            _channels_first(goal_frame, self.level1), [trial]
        )

    def plan(self, frame, goal_frame, method: str = "flat") -> tuple[np.ndarray, Plan]:
        """One plan from nothing, for frames as in `act`: ((k, 2) px, the whole plan)."""
        controller = self.controller(goal_frame, method)
        return controller.act(frame), controller.last

    def cost_to(self, goal_frame: Tensor, cost: str) -> Callable[[Tensor], Tensor]:
        """What makes costs (M,) of latents (M, D), for a goal (C, Hpx, Wpx)."""
        geometry, frame = self.geometry(cost), goal_frame[None]
        with torch.no_grad(), self.autocast():
            goal = self.encode(frame)
            geometry.begin(self.scene(frame), goal)
            end = geometry.embed_goal(goal)

        def costs(latents: Tensor) -> Tensor:
            with torch.no_grad(), self.autocast():
                return geometry.between(geometry.embed(latents), end).float().cpu()

        return costs


def _fresh_level2(trained: Level2, seed: int) -> Level2:
    """With its initial weights: the control `untrained`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Level2(trained.config, trained.latent_dim, trained.action_dim, trained.image)
    device = next(trained.parameters()).device
    return fresh.to(device).eval().requires_grad_(False)


def _channels_first(frame, model: Jepa) -> Tensor:
    """(Hpx, Wpx, C) or (C, Hpx, Wpx) uint8 -> (1, C, Hpx, Wpx) tensor."""
    frame = torch.as_tensor(np.asarray(frame))
    first, last = model.frame, (*model.frame[1:], model.frame[0])
    if tuple(frame.shape) not in (first, last):
        raise WorkbookError(f"a frame is {last} or {first} uint8, got {tuple(frame.shape)}")
    if frame.dtype != torch.uint8:
        raise WorkbookError(f"a frame holds uint8 values in [0, 255], got {frame.dtype}")
    return (frame if tuple(frame.shape) == first else frame.movedim(-1, 0))[None]


class Controller:
    """A planner at work in a closed loop: warm starts, the clocks of all levels, the cap."""

    def __init__(self, agent: Agent, method: str, planning: PlanningConfig) -> None:
        self.agent, self.planner = agent, agent.planner(method, planning)

    def start(self, goal_frames: Tensor, rows: Sequence[int]) -> "Controller":
        """Begin anew; goal_frames (B, C, Hpx, Wpx) of trials with these numbers."""
        self.planner.reset(rows)
        self.goal = self.agent.encode(goal_frames)
        self.latent: Tensor | None = None  # (B, D) of the last call
        self.last: Plan | None = None
        return self

    def act(self, frame) -> np.ndarray:
        """The next actions (k, 2) px for a frame (Hpx, Wpx, C) or (C, Hpx, Wpx), uint8.

        Carry all k of them out, then call again.
        """
        return self.step(_channels_first(frame, self.agent.level1))[0].cpu().numpy()

    def step(self, frames: Tensor, world: World | None = None) -> Tensor:
        """For a batch: (B, C, Hpx, Wpx) uint8 -> (B, k, 2); `world` tells the truth."""
        executed = 0 if self.last is None else self.planner.every
        self.latent = self.agent.encode(frames)
        with self.agent.autocast():
            self.scene = self.agent.scene(frames)
            if world is not None:
                self.scene = witness(world, self.scene, self.agent.device)
            self.last = self.planner.plan(self.latent, self.goal, executed, self.scene)
        return self.last.actions[:, : self.planner.every]


def load_agent(
    l1: Path, l2: Path | None, planning: PlanningConfig, seed: int, precision: str, device: str,
    l3: Path | None = None, ball: bool = True,
) -> Agent:  # fmt: skip
    """From stage folders; FileError names what is missing or does not fit."""
    level1, probe = (checkpoint.load_part(l1, kind) for kind in ("level1", "probe"))
    distance = checkpoint.load_part(l1, "distance") if (l1 / "distance.json").exists() else None
    level2, level3 = (_load_macro(folder, l1, level1, device) for folder in (l2, l3))
    for module in filter(None, (level1, probe, distance)):
        module.to(device).eval().requires_grad_(False)
    model, reach, box, _ = level2 or (None, {}, None, "")
    return Agent(
        level1, probe, distance, model, reach, box, planning, seed, precision,
        torch.device(device), level3, ball,
    )  # fmt: skip


def _load_macro(folder: Path | None, l1: Path, level1: Jepa, device: str) -> TrainedMacro | None:
    """Level 2 or 3, frozen on the device."""
    if folder is None:
        return None
    model, reach, box, trained_on = checkpoint.load_macro(folder)
    name = f"level {folder.name[-1]} in {folder}"
    if model.latent_dim != level1.latent_dim:
        raise FileError(
            f"{name} reads latents of width {model.latent_dim}, "
            f"level 1 in {l1} makes {level1.latent_dim}"
        )
    if trained_on and trained_on != checkpoint.fingerprint(level1):
        raise FileError(f"{name} was trained on another level 1 than that in {l1}")
    model.to(device).eval().requires_grad_(False)
    return TrainedMacro(model, reach, None if box is None else box.to(device), trained_on)
