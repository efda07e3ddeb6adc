"""From finished episodes to numbers with intervals; what is played, a `Case`, needs no torch.

P1 (PLDM wall_medium): fixed layout, cap 1.8365 px, success at any step within sqrt(2) px.
P2 (EB-JEPA): a layout per trial, cap 2.45 px by default, success within 4.5 px after the last step.
P3 (strict, after CLEAR-LeWM): as P1, but 5 steps in a row; `p3_...` plays the same trials in a
world that the training has not seen (`SHIFTS`).
Another world has a protocol of its own: its cap, its steps, success at any step it calls reached.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa_lib.config import WORLDS, Config, ConfigError, PlanningConfig, flatten, names_world
from hjepa_lib.config.fields import gone_from
from hjepa_lib.files import json_sha256, read_json
from hjepa_lib.planning import METHODS, ONE_STEP, P1_CAP, THREE_LEVELS, one_step, scale_samples

if TYPE_CHECKING:
    from hjepa_lib.worlds.base import World
    from hjepa_lib.worlds.trials import Trials

P2_CAP, STEPS = 2.45, 200  # px; of an episode of P1 and P2
LAYOUTS = {"p1": "fixed", "p3": "fixed", "p2_seen": "train", "p2_heldout": "heldout"}
LEARNED = (*METHODS, THREE_LEVELS, ONE_STEP, "graph")
CLONED = ("gcbc", "idm")
RULES = ("heading", "rule")  # of worlds where something else than walls is in the way
FLOORS = ("random", "random-persistent", *RULES, "oracle")  # nothing trained
TOLD = {"random-persistent": "its position", "heading": "the walls", "rule": "what it reads"}
TOLD |= {"oracle": "the world"}
"""What a method gets beside frames and training data: such a row can meet no bar."""


def unplayed(config: Config) -> bool:
    """Frames that somebody recorded, and no world to go on in."""
    data = config.data
    if data.world or data.source in ("generated", "published", *WORLDS):
        return False
    from hjepa_lib.data.readers import is_recording

    return is_recording(data.source)


def world_of(config: Config) -> type[World] | None:
    """The world of these settings; None for Two Rooms, without an import of torch.

    ConfigError for another world and a protocol of Two Rooms.
    """
    source = config.data.played
    if not names_world(source) or unplayed(config):
        return None
    if config.evaluation.protocol != "p1":
        what = f"evaluation.protocol={config.evaluation.protocol} is of Two Rooms"
        raise ConfigError(f"{what}: {source} plays its own, leave that setting out")
    from hjepa_lib.worlds.base import find_world

    return find_world(source)


def played_cap(config: Config, wanted: float = 0.0) -> float:
    """The cap of actions: `wanted`, or for 0 the protocol's or the world's own.

    ConfigError for what they do not allow. 0 for a recording, whose actions tell it.
    """
    world, protocol = world_of(config), config.evaluation.protocol
    if world is None and unplayed(config):
        return wanted
    if world is not None:
        if wanted > (own := world.action_cap):
            raise ConfigError(f"planning.action_cap={wanted} is beyond the world's {own}")
        return wanted or own
    if protocol.startswith("p2"):
        return wanted or P2_CAP
    if wanted not in (0, P1_CAP):
        raise ConfigError(f"protocol {protocol} fixes planning.action_cap={P1_CAP}, got {wanted}")
    return P1_CAP


@dataclass(frozen=True)
class Case:
    """One method as it is played: all that shapes its result beside the weights."""

    method: str  # of `FLOORS`, `LEARNED` or `CLONED`
    cost: str  # latent or distance, "none" without a planner
    protocol: str
    dynamics: str
    budget: float  # factor on the samples of every level
    split: str
    trials: int  # the first so many rows of the file that `trials_hash` names
    world: str  # data.source, or data.world of a recording
    seed: int
    steps: int
    planning: PlanningConfig  # as played: cap, cost and budget are already in it
    task_set: str = ""  # of another world than Two Rooms

    @classmethod
    def of(
        cls,
        config: Config,
        method: str,
        cost: str = "none",
        *,
        planning: PlanningConfig | None = None,
        budget: float = 1.0,
        dynamics: str = "bounce",
        split: str = "",
        trials: int = 0,
    ) -> Case:
        """What settings describe; what is given replaces them. ConfigError for what cannot be."""
        evaluation, planning = config.evaluation, planning or config.planning
        if unplayed(config):
            what = "a recording has no environment to play in"
            raise ConfigError(f"{what}: data.world=module:Class names one")
        planning = one_step(planning) if method == ONE_STEP else planning
        split, world = split or evaluation.split, world_of(config)
        if split.endswith(".npz") and not trials:
            from hjepa_lib.worlds.trials import TwoRooms, read_trials

            trials = min(evaluation.trials, read_trials(split, world or TwoRooms).count)
        if evaluation.task_set and world is None:
            raise ConfigError("evaluation.task_set is of other worlds than Two Rooms")
        if method == "rule" and not hasattr(world, "rule_action"):
            raise ConfigError(f"method rule: {config.data.source} has no rule_action")
        planned = dataclasses.replace(
            scale_samples(planning, budget),
            action_cap=played_cap(config, planning.action_cap),
            cost=planning.cost if cost == "none" else cost,
        )
        if method == "graph" and (cost != "graph" or config.level1.predictor != "local"):
            raise ConfigError("method graph needs cost=graph and level1.predictor=local")
        goes_on = world is None or world.resumes
        able = {"none": True, "distance": method == "flat" and cost != "latent"}
        able["dynamics"] = method == "flat" and goes_on
        if method in LEARNED and not able[planned.truth]:
            what = f"{method}, {cost} cost in {config.data.played}"
            raise ConfigError(f"planning.truth={planned.truth} does not go with {what}")
        dynamics = "slide" if world and world.slides else dynamics
        case = cls(
            method, cost, "own" if world else evaluation.protocol, dynamics, float(budget), split,
            trials or evaluation.trials, config.data.played, config.seed,
            evaluation.steps or (world.max_steps if world else STEPS), planned, evaluation.task_set,
        )  # fmt: skip
        _ = case.trials_hash  # no such trials: refused here, before anything is trained for them
        return case

    @functools.cached_property
    def tasks(self) -> Trials:
        """Those of the split, or the first of its file."""
        from hjepa_lib.worlds.base import find_world
        from hjepa_lib.worlds.layout import Layout
        from hjepa_lib.worlds.trials import load_trials, read_trials, shifted

        if not self.split.endswith(".npz"):
            source = self.world if names_world(self.world) else self.protocol
            return load_trials(source, self.split, self.trials, self.task_set)
        found = read_trials(self.split, find_world(self.world) or shifted(self.protocol))
        if self._set in ("p1", "p3") and (found.layout.pairs() != Layout.fixed().pairs()).any():
            what = f"{self.split} has others: set evaluation.protocol"
            raise ConfigError(f"protocol {self.protocol} plays the fixed layout, {what}")
        return found.first(self.trials)

    @functools.cached_property
    def trials_hash(self) -> str:
        """SHA-256 of the trial file's content."""
        if self.split.endswith(".npz"):
            return self.tasks.sha256
        if names_world(self.world):
            from hjepa_lib.worlds.trials import trials_hash

            return trials_hash(self.world, self.split, self.trials, self.task_set)
        folder = Path(__file__).parents[1] / "worlds" / "trial_files"
        return read_json(folder / "index.json")[f"{self._set}_{self.split}"]

    @property
    def _set(self) -> str:
        """The protocol whose trials are played."""
        return "p3" if self.protocol.startswith("p3") else self.protocol

    @property
    def learned(self) -> bool:
        """True for a planner with a world model."""
        return self.method in LEARNED

    @property
    def planner(self) -> str:
        """That plays it, "" without a world model."""
        return ("flat" if self.method == ONE_STEP else self.method) if self.learned else ""

    @property
    def recipe(self) -> int:
        """Of the result (`runs.keys.Stage`): raised when code plays the same case otherwise."""
        # An edge of the graph is judged twice since 2, and ways to sub-goals bend since 3.
        return (3 if self.planner.startswith("l1+l2") else 2) if self.cost == "graph" else 1

    @property
    def stages(self) -> tuple[str, ...]:
        """The trained stages that the method reads."""
        used = {
            "l1": self.learned,
            "distance": self.learned and self.cost == "distance",
            "l2": self.planner.startswith("l1+l2"),
            "l3": self.method == THREE_LEVELS,
            "policies": self.method in CLONED,
        }
        return tuple(name for name, wanted in used.items() if wanted)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting that shapes the plans, dotted, or did: digests of before stay."""
        fixed = {"action_cap": self.planning.action_cap, "steps": self.steps}
        if self.method == "idm":
            return fixed | {"idm_steps": self.planning.idm_steps}
        if not self.learned:
            return fixed
        unused = ("idm_steps", "flat." if self.planner.startswith("l1+l2") else "hierarchy.")
        unused += () if self.method == THREE_LEVELS else ("level3.",)
        unused += () if self.method == "graph" else ("ahead",)
        unused += ("truth",) if self.planning.truth == "none" else ()
        used = (flatten(self.planning) | gone_from(PlanningConfig)).items()
        return fixed | {"seed": self.seed} | {k: v for k, v in used if not k.startswith(unused)}

    @property
    def header(self) -> dict[str, Any]:
        """The case as the columns of a row."""
        names = ("method", "cost", "protocol", "dynamics", "budget", "split", "world", "seed")
        row = {name: getattr(self, name) for name in names} | {
            "layouts": LAYOUTS.get(self._set) or self._layouts,
            "n": self.trials,
            "trials_hash": self.trials_hash,
            "planner": self.settings,
        }
        return row | ({"task_set": self.task_set} if self.task_set else {})

    @property
    def _layouts(self) -> str:
        from hjepa_lib.worlds.base import find_world

        several = len(find_world(self.world).layout_set("test")) > 1
        return "heldout" if several else "fixed"

    @property
    def digest(self) -> str:
        """Equal for equal cases alone (I8)."""
        return json_sha256(self.header)[:10]

    @property
    def name(self) -> str:
        """Readable, and unlike that of any other case."""
        split = Path(self.split).stem  # of a file of trials
        parts = (self.method, self.cost, self.protocol, f"{split}{self.trials}", self.task_set)
        return "__".join((*filter(None, parts), self.dynamics, f"x{self.budget:g}", self.digest))
