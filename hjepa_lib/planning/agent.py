"""A trained run, ready to plan: `hjepa_lib.load(run).plan(frame, goal_frame)`.

The agent bundles level 1, level 2 (if trained), the temporal-distance head and the position probe,
and builds planners from a `PlanningConfig`. The same class runs the evaluation, so what the README
shows is what the tables measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hjepa_lib.config import ConfigError, PlanningConfig
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.files import FileError
from hjepa_lib.models.checkpoint import (
    TrainedMacro,
    load_distance,
    load_level1,
    load_level2,
    load_probe,
)
from hjepa_lib.models.distance import Distance, Geometry, LatentGeometry
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.models.probe import Probe
from hjepa_lib.planning import METHODS, P1_CAP, THREE_LEVELS
from hjepa_lib.planning.levels import MacroLevel, PrimitiveLevel
from hjepa_lib.planning.planner import Layer, Plan, Planner


@dataclass
class Agent:
    """Models of one training seed; every module is in eval mode on one device."""

    level1: Jepa
    normaliser: Normaliser
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

    def geometry(self, cost: str) -> Geometry:
        """`latent` or `distance`; ConfigError when the head was not trained."""
        if cost == "latent":
            return LatentGeometry()
        if self.distance is None:
            raise ConfigError(
                "cost 'distance' needs a trained distance head; train one or use 'latent'"
            )
        return self.distance

    def planner(self, method: str, planning: PlanningConfig | None = None) -> Planner:
        """A fresh planner: `flat`, `l1+l2` or `l1+l2+l3`, in the cost geometry `planning.cost`."""
        planning = planning or self.planning
        macros = [("l1+l2", 2, self.level2), (THREE_LEVELS, 3, self.level3)]
        for name, number, model in macros:
            if method == name and model is None:
                raise ConfigError(
                    f"method {method!r} needs a trained level {number}; this run has none"
                )
        if method not in (*METHODS, THREE_LEVELS):
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        geometry, cap = self.geometry(planning.cost), planning.action_cap or P1_CAP
        if method == "flat":
            level = PrimitiveLevel(self.level1, planning.flat, geometry, cap)
            return Planner([Layer(level)], self.seed)
        hierarchy = planning.hierarchy
        level2 = self.level2
        if hierarchy.control == "untrained":
            level2 = _fresh_level2(level2, self.seed)
        tracker = PrimitiveLevel(self.level1, hierarchy.tracker, geometry, cap, level2)
        stack = [(level2, hierarchy.level2, hierarchy.replan, self.reach, self.box)]
        if method == THREE_LEVELS:
            model, reach, box = self.level3
            stack.append((model, planning.level3, planning.level3.replan, reach, box))
        layers = [Layer(tracker)]
        for model, search, replan, reach, box in stack:
            level = MacroLevel(model, search, geometry, cap, hierarchy, box, self.level1)
            layers.append(Layer(level, replan, reach[planning.cost]))
        return Planner(layers, self.seed, hierarchy)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, 2, 65, 65) uint8 -> (B, D) float32."""
        with torch.no_grad(), self.autocast():
            return self.level1.encode(frames.to(self.device))

    def autocast(self) -> torch.autocast:
        """bf16 where it was measured faster, else a no-op."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def plan(self, frame, goal_frame, method: str = "flat") -> tuple[np.ndarray, Plan]:
        """Next actions for one frame: ((k, 2) px, the whole plan), k = planning.replan.

        frame, goal_frame: (65, 65, 2) or (2, 65, 65) uint8 arrays or tensors in [0, 255].
        """
        planner = self.planner(method)
        planner.reset()
        latent, goal = (self.encode(_channels_first(one)[None]) for one in (frame, goal_frame))
        with self.autocast():
            plan = planner.plan(latent, goal, executed=0)
        return plan.actions[0, : self.planning.replan].cpu().numpy(), plan

    def cost_landscape(
        self, positions: Tensor, frames: Tensor, goal_frame: Tensor, cost: str
    ) -> Tensor:
        """Cost (M,) of standing at each rendered position for one goal (figures)."""
        geometry = self.geometry(cost)
        with torch.no_grad(), self.autocast():
            goal = geometry.embed(self.encode(goal_frame[None]))
            pieces = [
                geometry.between(geometry.embed(self.encode(part)), goal)
                for part in frames.split(1024)
            ]
        return torch.cat(pieces).float().cpu().reshape(positions.shape[:-1])


def _fresh_level2(trained: Level2, seed: int) -> Level2:
    """A level 2 of the same shape with its initial weights: the control `untrained`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Level2(trained.config, trained.latent_dim, trained.action_dim)
    device = next(trained.parameters()).device
    return fresh.to(device).eval().requires_grad_(False)


def _channels_first(frame) -> Tensor:
    """(65, 65, 2) or (2, 65, 65) uint8 -> (2, 65, 65) tensor."""
    frame = torch.as_tensor(np.asarray(frame))
    if frame.ndim != 3 or 2 not in (frame.shape[0], frame.shape[-1]):
        raise ValueError(f"a frame is (65, 65, 2) or (2, 65, 65) uint8, got {tuple(frame.shape)}")
    if frame.dtype != torch.uint8:
        raise ValueError(f"a frame holds uint8 values in [0, 255], got {frame.dtype}")
    return frame if frame.shape[0] == 2 else frame.permute(2, 0, 1)


def load_agent(
    l1: Path,
    l2: Path | None,
    planning: PlanningConfig,
    seed: int,
    precision: str,
    device: str,
    l3: Path | None = None,
) -> Agent:
    """Build the agent from stage folders; FileError names what is missing or does not fit."""
    level1, normaliser = load_level1(l1)
    probe = load_probe(l1)
    distance = load_distance(l1) if (l1 / "distance.json").exists() else None
    level2, level3 = (_load_macro(folder, l1, level1, device) for folder in (l2, l3))
    modules = [module for module in (level1, probe, distance) if module is not None]
    for module in modules:
        module.to(device).eval().requires_grad_(False)
    model, reach, box = level2 or (None, {}, None)
    return Agent(
        level1, normaliser, probe, distance, model, reach, box, planning, seed, precision,
        torch.device(device), level3,
    )  # fmt: skip


def _load_macro(folder: Path | None, l1: Path, level1: Jepa, device: str) -> TrainedMacro | None:
    """Level 2 or 3, frozen on the device."""
    if folder is None:
        return None
    model, reach, box = load_level2(folder)
    if model.latent_dim != level1.latent_dim:
        raise FileError(
            f"level {folder.name[-1]} in {folder} reads latents of width {model.latent_dim}, "
            f"level 1 in {l1} makes {level1.latent_dim}"
        )
    model.to(device).eval().requires_grad_(False)
    return TrainedMacro(model, reach, None if box is None else box.to(device))
