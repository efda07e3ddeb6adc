"""A scene, and its story: one rolled-out trial with all that its planner saw, imagined and chose.

Lengths are px, (x, y) with y down; S steps, R planning calls.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hjepa_lib.config import Config, PlanningConfig, flatten
from hjepa_lib.evaluation import Case
from hjepa_lib.evaluation.episodes import LatentPolicy, run_episodes
from hjepa_lib.evaluation.metrics import near_goal, solved
from hjepa_lib.figures.data import room_of
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.local import Scene as LocalScene
from hjepa_lib.planning.agent import P1_CAP, Agent
from hjepa_lib.worlds.base import World
from hjepa_lib.worlds.layout import DOOR_RANGE, WALL_RANGE, Layout
from hjepa_lib.worlds.trials import Trials
from hjepa_lib.worlds.two_rooms import TwoRooms

AHEAD = 16  # steps of the open-loop prediction
COMPANIONS = 3  # other tasks in a batch whose sub-goals are shuffled
UNITS = {"latent": "latent cost", "distance": "distance (steps)", "graph": "graph (steps)"}
_APART = 1  # px between neighbouring places of the landscape
Knobs = Mapping[str, Any]
"""Settings below `planning`: {"hierarchy.control": "zero"}."""


class Scene(NamedTuple):
    """One task: states of a world, in Two Rooms places in px, and the row of a layout."""

    start: tuple[float, ...]
    goal: tuple[float, ...]
    row: tuple[int, int]  # in Two Rooms the wall's column and the door's row
    kind: type[World] = TwoRooms

    def world(self, count: int = 1) -> World:
        """The world with `count` rows of this layout."""
        return self.kind(Layout.of([self.row] * count))

    @property
    def ends(self) -> np.ndarray:
        """Places (2, 2) px of start and goal."""
        return self.kind.xy(np.array([self.start, self.goal]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame, px."""
        return self.kind.frame_shape[:0:-1]

    @property
    def room(self) -> np.ndarray:
        """Its rendered layout (Hpx, Wpx), or (Hpx, Wpx, 3), the background of every figure."""
        return room_of(self.world().render(torch.tensor([self.goal])))[0]

    def moved(self, start: tuple[float, float], goal: tuple[float, float]) -> "Scene":
        """The scene with its ends at other places, px."""
        places = torch.as_tensor(np.array([[start], [goal]]), dtype=torch.float32)
        found = map(_moved, 2 * [self.kind], (self.start, self.goal), places)
        return Scene(*(tuple(states[0].tolist()) for states in found), self.row, self.kind)


def _moved(world: type[World], state: tuple[float, ...], places: Tensor) -> Tensor:
    """States (n, N) like `state` at other places (n, 2); a past or a velocity of it is kept."""
    state = torch.tensor([state])
    found = state + (world.at_rest(places) - world.at_rest(world.xy(state)))
    found[:, list(world.place)] = places  # exactly
    return found


def scene_of(trials: Trials, trial: int) -> Scene:
    """One of the stored trials as a scene; WorkbookError when there is no such trial."""
    if not 0 <= trial < trials.count:
        last = trials.count - 1
        raise WorkbookError(f"{trials.name} has trials 0 to {last}, {trial} was asked for")
    columns = (trials.start, trials.goal, trials.layout.pairs().int())
    return Scene(*(tuple(column[trial].tolist()) for column in columns), trials.world)


def checked_scene(scene: Scene) -> Scene:
    """`scene` itself; WorkbookError in one sentence when the dot cannot be where it says."""
    ranges = (("wall", WALL_RANGE), ("door", DOOR_RANGE))
    for (name, (low, high)), value in zip(ranges, scene.row, strict=True):
        if issubclass(scene.kind, TwoRooms) and not low <= value <= high:
            told = f"the {name} is at {value}, but must be between {low} and {high} px"
            raise WorkbookError(told)
    world, (width, height) = scene.world(2), scene.size
    states = torch.tensor([scene.start, scene.goal])
    for name, (x, y), free in zip(("start", "goal"), scene.ends, world.free(states), strict=True):
        if not (free and 0 <= x < width and 0 <= y < height):  # NaN never is
            told = f"the {name} ({x:g}, {y:g}) is in a wall or outside"
            raise WorkbookError(f"{told}: move it to a free place")
    if world.oracle_length(states, states.flip(0)).isinf().any():
        raise WorkbookError("no way leads from the start to the goal")
    return scene


def trials_of(scene: Scene, companions: int = 0, row: int = 0) -> Trials:
    """The scene, followed by `companions` random tasks in the same layout.

    `row` is the scene's number in a trial file: it meets the noise of the result stored there.
    """
    world = checked_scene(scene).world(1 + companions)
    start, goal = world.sample_start_goal(torch.Generator().manual_seed(0))
    start[0], goal[0] = torch.tensor([scene.start, scene.goal])
    return Trials.of(start, goal, world.layout, "scene", scene.kind, row)


class Maps(NamedTuple):
    """The cost of every place of a layout, for one goal."""

    x: np.ndarray  # (Gx,) px
    y: np.ndarray  # (Gy,)
    costs: dict[str, np.ndarray]  # name -> (Gy, Gx); NaN where the dot cannot be


@dataclass(frozen=True)
class Story:
    """See the module. `macro` is None without level 2, `plan` and `fan` with `planning.truth`."""

    title: str
    method: str
    cost: str
    scene: Scene
    replan: int  # steps between planning calls
    reached: int | None  # the step that solves the task; P3: the first of those that do
    positions: np.ndarray  # (S+1, 2)
    actions: np.ndarray  # (S, A)
    frames: np.ndarray  # (S+1, C, Hpx, Wpx) uint8
    way: np.ndarray  # (S+1,) shortest path to the goal, px
    costs: dict[str, np.ndarray]  # name -> (S+1,) cost of being there
    ahead: np.ndarray  # (S, AHEAD, 2) open-loop prediction from every step, NaN past the end
    maps: Maps
    near: np.ndarray  # (R,) bool: level 1 aims at the goal itself
    plan: np.ndarray | None = None  # (R, H, 2) the chosen plan as level 1 imagines it
    fan: np.ndarray | None = None  # (R, F, H, 2) candidates, cheapest first
    macro: np.ndarray | None = None  # (R, H2, 2) what level 2 imagines

    @property
    def steps(self) -> int:
        return len(self.actions)

    def call(self, step: int) -> int:
        """The planning call whose plan is carried out at `step`."""
        return min(step // self.replan, len(self.near) - 1)

    @property
    def outcome(self) -> str:
        """When it arrived and how far it went, or how long the way still is (N8)."""
        if self.reached is None:
            return f"missed the goal in {self.steps} steps: {self.way[-1]:.1f} px of way left"
        gone = self.positions[: self.reached + 1]
        travelled = np.linalg.norm(np.diff(gone, axis=0), axis=-1).sum()
        return (
            f"reached the goal at step {self.reached}: {travelled:.0f} px, "
            f"the shortest way is {self.way[0]:.0f} px"
        )


def play(
    agent: Agent,
    scene: Scene,
    method: str,
    planning: PlanningConfig | None = None,
    steps: int = 200,
    title: str = "",
    row: int = 0,
    protocol: str = "p1",
    dynamics: str = "bounce",
) -> Story:
    """Roll the scene out now; a second or so. WorkbookError before anything is played.

    It is cut where the task is solved, unless the protocol asks to stay. `row` is as in
    `trials_of`. The control `shuffle` hands around the sub-goals of a few other tasks of the
    layout, which are planned beside it and change nothing else (I13).
    """
    planning = planning or agent.planning
    shuffled = method != "flat" and planning.hierarchy.control == "shuffle"
    task = trials_of(scene, COMPANIONS if shuffled else 0, row)
    cap = planning.action_cap or P1_CAP
    policy = LatentPolicy(agent, method, dataclasses.replace(planning, action_cap=cap), fans=True)
    outcome = run_episodes(policy, task, dynamics, steps, cap, agent.seed)
    actions, states = outcome.actions[0], outcome.states
    states = torch.as_tensor((outcome.positions if states is None else states)[0])  # (S+1, N)
    world = scene.world(len(states))
    goals = torch.tensor([scene.goal]).expand_as(states)
    hits, success = (found[0] for found in solved(near_goal(outcome, protocol), protocol))
    reached = int(hits.argmax()) if success else None
    stays = protocol.startswith(("p2", "p3"))
    last = len(actions) if reached is None or stays else reached
    frames = world.render(states)
    latents = agent.encode(frames)
    maps, cost = look(agent, scene)
    way, every = world.oracle_length(states, goals).numpy(), np.arange(len(states))
    known = np.isfinite(way)  # not of a ball that is pressed into a wall
    way = np.interp(every, every[known], way[known])
    calls = max(1, -(-last // policy.replan))
    names = [name for name in ("plan", "fan", "macro") if f"{name}_xy" in outcome.seen]
    imagined = {name: outcome.seen[f"{name}_xy"][0, :calls] for name in names}
    return Story(
        title=title or f"{method}, {planning.cost} cost",
        method=method,
        cost=planning.cost,
        scene=scene,
        replan=policy.replan,
        reached=reached,
        positions=world.xy(states)[: last + 1].numpy(),
        actions=actions[:last],
        frames=frames[: last + 1].numpy(),
        way=way[: last + 1],
        costs={name: of(latents)[: last + 1].numpy() for name, of in cost.items()},
        ahead=_ahead(agent, latents, actions, agent.scene(frames[:-1]))[:last],
        maps=maps,
        near=outcome.seen["near"][0, :calls].astype(bool),
        **{name: one for name, one in imagined.items() if len(one) == calls},
    )


def tell(config: Config, agent: Agent, method: str, cost: str, trial: int) -> Story:
    """The story of one trial of the run's own case, as a result of these settings has it (I13).

    WorkbookError when there is no such trial.
    """
    case = Case.of(config, method, cost, trials=trial + 1)
    title = f"{method}, {cost} cost, {case.split} trial {trial}"
    scene = scene_of(case.tasks, trial)
    return _play(agent, scene, method, case, title, row=trial)


def options_of(agent: Agent, method: str) -> dict[str, tuple]:
    """What a panel changes of a planner: all of a list, or the least and the most of a number."""
    level1 = "flat" if method == "flat" else "hierarchy.tracker"
    found = {"cost": costs_of(agent), f"{level1}.horizon": (1, 48), f"{level1}.samples": (2, 512)}
    found["replan"] = (1, 16)
    if method != "flat":
        found |= {
            "hierarchy.control": ("none", "zero", "shuffle", "perturb", "untrained"),
            "hierarchy.level2.horizon": (1, 16),
            "hierarchy.level2.samples": (2, 512),
            "hierarchy.replan": (1, 32),
        }
    return found


def play_with(agent: Agent, scene: Scene, config: Config, method: str, knobs: Knobs) -> Story:
    """The story of the planner with other settings; the world's noise is the same. ConfigError."""
    changed = config.override({f"planning.{name}": value for name, value in knobs.items()})
    case, usual = Case.of(changed, method, changed.planning.cost), flatten(config.planning)
    other = [f"{k} {v}" for k, v in knobs.items() if k != "cost" and usual[k] != v]
    title = ", ".join([method, f"{case.cost} cost", *other])
    return _play(agent, scene, method, case, title)


def _play(agent: Agent, scene: Scene, method: str, case: Case, title: str, row: int = 0) -> Story:
    rules = {"protocol": case.protocol, "dynamics": case.dynamics}
    return play(agent, scene, method, case.planning, case.steps, title, row, **rules)


def _ahead(
    agent: Agent, latents: Tensor, actions: np.ndarray, seen: LocalScene | None
) -> np.ndarray:
    """Open-loop predictions (S, AHEAD, 2) px along an executed path of latents (S+1, D)."""
    steps = np.arange(len(actions))
    padded = pad(torch.as_tensor(actions), (0, 0, 0, AHEAD))
    windows = padded.unfold(0, AHEAD, 1)[: len(steps)].transpose(1, 2)  # (S, AHEAD, 2)
    with torch.no_grad():
        windows = windows.to(agent.device)
        found = agent.level1.rollout_members(latents[:-1], windows, scene=seen).mean(0)
        ahead = agent.probe(found[:, 1:]).cpu().numpy()
    ahead[steps[:, None] + np.arange(AHEAD) >= len(steps)] = np.nan
    return ahead


def costs_of(agent: Agent) -> tuple[str, ...]:
    """The costs that it has the heads for."""
    has = {"distance": agent.distance is not None, "graph": agent.level1.map is not None}
    return tuple(name for name in UNITS if has.get(name, True))


def look(agent: Agent, scene: Scene) -> tuple[Maps, dict[str, Any]]:
    """Maps of the scene, and by name what takes latents to their cost."""
    x, y = (torch.arange(0.0, side, _APART) for side in scene.size)
    places = torch.cartesian_prod(y, x).flip(1)  # (Gy * Gx, 2)
    states = _moved(scene.kind, scene.goal, places)
    free = scene.world(len(states)).free(states)
    latents = agent.encode(scene.world().render(states[None, free])[0])
    goal, maps = scene.world().render(torch.tensor([scene.goal]))[0], {}
    cost = {name: agent.cost_to(goal, name) for name in costs_of(agent)}
    for name, of in cost.items():
        values = torch.full((len(places),), torch.nan).masked_scatter_(free, of(latents))
        maps[name] = values.view(len(y), len(x)).numpy()
    return Maps(x.numpy(), y.numpy(), maps), cost
