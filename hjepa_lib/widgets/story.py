"""A scene, and its story: one rolled-out trial with all that its planner saw, imagined and chose.

Played live, or recalled from a stored result, where only what was not stored is computed again.
Lengths are px, (x, y) with y down; S steps, R planning calls.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import pad

from hjepa_lib.config import PlanningConfig
from hjepa_lib.evaluation.episodes import LatentPolicy, run_episodes
from hjepa_lib.evaluation.results import Result
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
_APART = 1  # px between neighbouring places of the landscape and of the latent map


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

    `row` is the scene's number in a trial file: it meets the noise that it meets there.
    """
    world = checked_scene(scene).world(1 + companions)
    start, goal = world.sample_start_goal(torch.Generator().manual_seed(0))
    start[0], goal[0] = torch.tensor([scene.start, scene.goal])
    return Trials.of(start, goal, world.layout, "scene", scene.kind, row)


@dataclass(frozen=True)
class Maps:
    """The layout for one goal: cost of every place, and where places lie in the latent plane."""

    x: np.ndarray  # (Gx,) px
    y: np.ndarray  # (Gy,)
    costs: dict[str, np.ndarray]  # name -> (Gy, Gx); NaN where the dot cannot be
    left: np.ndarray  # (M,) bool: of the free places those left of the wall, or of the middle
    plane: np.ndarray  # (M, 2) their latents' first two principal components
    explained: np.ndarray  # (2,) share of the variance


@dataclass(frozen=True)
class Story:
    """See the module. `plan`, `fan` and `macro` are None where nothing was planned or stored."""

    title: str
    method: str
    cost: str
    scene: Scene
    replan: int  # steps between planning calls
    reached: int | None  # first step that solves the task
    positions: np.ndarray  # (S+1, 2)
    actions: np.ndarray  # (S, A)
    frames: np.ndarray  # (S+1, C, Hpx, Wpx) uint8
    way: np.ndarray  # (S+1,) shortest path to the goal, px
    costs: dict[str, np.ndarray]  # name -> (S+1,) cost of being there
    ahead: np.ndarray  # (S, AHEAD, 2) open-loop prediction from every step, NaN past the end
    maps: Maps
    latents: dict[str, np.ndarray]  # in the plane: path (S+1, 2), goal (2,), plan (R, H, 2), macro
    plan: np.ndarray | None = None  # (R, H, 2) the chosen plan as level 1 imagines it
    fan: np.ndarray | None = None  # (R, F, H, 2) candidates, cheapest first
    macro: np.ndarray | None = None  # (R, H2, 2) what level 2 imagines
    near: np.ndarray | None = None  # (R,) bool: level 1 aims at the goal itself

    @property
    def steps(self) -> int:
        return len(self.actions)

    def call(self, step: int) -> int:
        """The planning call whose plan is carried out at `step`."""
        calls = 1 if self.plan is None else len(self.plan)
        return min(step // self.replan, calls - 1)

    @property
    def shown_cost(self) -> str:
        """The cost that its planner had; latent for a planner without one."""
        return self.cost if self.cost in self.costs else "latent"

    @property
    def outcome(self) -> str:
        """When it arrived and how far it went, or how long the way still is (N8)."""
        travelled = np.linalg.norm(np.diff(self.positions, axis=0), axis=-1).sum()
        if self.reached is None:
            return f"missed the goal in {self.steps} steps: {self.way[-1]:.1f} px of way left"
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
) -> Story:
    """Roll the scene out now; a second or so. WorkbookError before anything is played.

    `row` is the trial's number in its file: the story meets the noise of the stored result. The
    control `shuffle` hands around the sub-goals of a few other tasks of the layout, which are
    planned beside it and change nothing else (I13).
    """
    planning = planning or agent.planning
    cap = planning.action_cap or P1_CAP
    shuffled = method != "flat" and planning.hierarchy.control == "shuffle"
    task = trials_of(scene, COMPANIONS if shuffled else 0, row)
    policy = LatentPolicy(agent, method, dataclasses.replace(planning, action_cap=cap))
    outcome = run_episodes(policy, task, "bounce", steps, cap, agent.seed)
    seen = {key: value[0] for key, value in outcome.seen.items() if value.ndim}
    if "macro" in policy.log:
        seen["macro"] = torch.stack(policy.log["macro"], 1)[0]
    about = {"title": title or f"{method}, {planning.cost} cost", "method": method}
    about |= {"cost": planning.cost, "scene": scene, "replan": policy.replan}
    states = outcome.positions if outcome.states is None else outcome.states
    return _tell(agent, about, states[0], outcome.actions[0], seen)


def recall(agent: Agent, result: Result, scene: Scene, trial: int) -> Story:
    """One trial of a stored result, as it happened; candidates are stored for the first few only.

    `scene` is that trial's.
    """
    arrays, header = result.arrays, result.header
    about = {name: header[name] for name in ("method", "cost")} | {"scene": scene}
    about["title"] = f"{header['method']}, {header['cost']} cost, trial {trial}"
    states, actions = arrays.get("states", arrays["positions"])[trial], arrays["actions"][trial]
    # Floors and ceiling plan nothing.
    about["replan"] = header.get("replan", header["planner"].get("replan")) or len(actions)
    seen = {
        name.removeprefix("plan_"): values[trial]
        for name, values in arrays.items()
        if name.startswith("plan_") and values.ndim and trial < len(values)
    }
    return _tell(agent, about, states, actions, seen)


def _tell(
    agent: Agent, about: dict[str, Any], states: np.ndarray, actions: np.ndarray,
    seen: dict[str, Any],
) -> Story:  # fmt: skip
    """Cut at the first hit, and add what follows from the states (S+1, N)."""
    scene, replan = about["scene"], about["replan"]
    states, world = torch.as_tensor(states, dtype=torch.float32), scene.world(len(states))
    goals = torch.tensor([scene.goal]).expand_as(states)
    hits = world.reached(states, goals).numpy()
    reached = int(hits.argmax()) if hits.any() else None
    last = len(actions) if reached is None else reached
    calls = max(1, -(-last // replan))
    frames = world.render(states)
    latents = agent.encode(frames)
    maps, cost, goal, plane = look(agent, scene)
    way, every = world.oracle_length(states, goals).numpy(), np.arange(len(states))
    known = np.isfinite(way)  # not of a ball that is pressed into a wall
    way = np.interp(every, every[known], way[known])
    costs = {name: of(latents)[: last + 1].numpy() for name, of in cost.items()}
    drawn = {"path": plane(latents)[: last + 1], "goal": plane(goal)[0]}
    # Results without pictures keep the first plan only.
    seen = {key: value[:calls] for key, value in seen.items() if len(value) >= calls}
    if "plan" in seen:
        plans = torch.as_tensor(seen["plan"], dtype=torch.float32, device=agent.device)
        with torch.no_grad():
            calling = slice(0, calls * replan, replan)
            seen_then = agent.scene(frames[calling])
            imagined = agent.level1.rollout(latents[calling], plans, scene=seen_then)
        drawn["plan"] = plane(imagined[:, 1:])
    if "macro" in seen:
        drawn["macro"] = plane(seen["macro"])
    names = {"plan": "plan_xy", "fan": "fan_xy", "macro": "macro_xy"}
    kept = {name: seen[key] for name, key in names.items() if key in seen}
    if "near" in seen:
        kept["near"] = seen["near"].astype(bool)
    return Story(
        **about, **kept, reached=reached, positions=world.xy(states)[: last + 1].numpy(),
        actions=actions[:last], frames=frames[: last + 1].numpy(), costs=costs, maps=maps,
        way=way[: last + 1],
        ahead=_ahead(agent, latents, actions, agent.scene(frames[:-1]))[:last], latents=drawn,
    )  # fmt: skip


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


def look(agent: Agent, scene: Scene):
    """(maps of the scene, costs of latents by name, the goal's latent (1, D), the plane's)."""
    x, y = (torch.arange(0.0, side, _APART) for side in scene.size)
    places = torch.cartesian_prod(y, x).flip(1)  # (Gy * Gx, 2)
    states = _moved(scene.kind, scene.goal, places)
    free = scene.world(len(states)).free(states)
    latents = agent.encode(scene.world().render(states[None, free])[0])
    frame = scene.world().render(torch.tensor([scene.goal]))
    goal, costs = agent.encode(frame), {}
    cost = {name: agent.cost_to(frame[0], name) for name in costs_of(agent)}
    for name, of in cost.items():
        values = torch.full((len(places),), torch.nan).masked_scatter_(free, of(latents))
        costs[name] = values.view(len(y), len(x)).numpy()
    pca = PCA(n_components=2, random_state=0)
    plane = pca.fit_transform(latents.float().cpu().numpy())

    def project(values: Tensor) -> np.ndarray:  # (..., D) -> (..., 2)
        flat = values.float().cpu().numpy().reshape(-1, values.shape[-1])
        return pca.transform(flat).reshape(*values.shape[:-1], 2)

    shares = pca.explained_variance_ratio_
    middle = scene.row[0] if issubclass(scene.kind, TwoRooms) else scene.size[0] / 2
    left = (places[free, 0] < middle).numpy()
    maps = Maps(x.numpy(), y.numpy(), costs, left, plane, shares)
    return maps, cost, goal, project
