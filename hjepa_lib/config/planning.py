"""Settings of planners, of their trials, and of what single notebooks show or try."""

import math
from collections.abc import Iterator
from typing import Literal

from hjepa_lib.config.fields import Float, Int, Section, needs


class SearchConfig(Section, lr=0.3, last_k=3, mean_weight=0.2):
    """One level of planning: proposal, horizon, cost form and sample budget."""

    method: Literal["mppi", "cem"] = "mppi"
    """How plans are improved (planning/search.py)."""
    horizon: Int[1:] = 8
    """Planned steps: of the environment at level 1, else macro steps."""
    samples: Int[2:] = 64
    """Candidate plans of one iteration."""
    iterations: Int[1:] = 2
    """Rounds of proposing and choosing."""
    sigma: Float[1e-6:] = 1.5
    """Spread of proposals: px at level 1, else standard deviations."""
    temperature: Float[0 : math.inf] = needs("method=mppi", 0.05)
    """Weights softmax(-(cost - min) / (temperature * unit)); 0: arg-min, inf: plain mean."""
    temperature_unit: Literal["spread", "cost"] = needs("method=mppi", "spread")
    """`spread`: standard deviation of a trial's costs; `cost`: 1."""
    elites: Int[1:] = needs("method=cem", 20)
    """Candidates that refit the proposal."""
    form: Literal["auto", "sum"] = "auto"
    """What counts of the costs over the horizon; `auto`: their sum if they are steps, in latents
    the closest approach."""


class PlannerConfig(SearchConfig):
    """A search with level 1, which may be an ensemble."""

    disagreement: Float[0:] = 0.0
    """Weight of the ensemble's disagreement (PLDM v2)."""


class HierarchyConfig(Section):
    """How level 2 commands level 1."""

    level2: SearchConfig = SearchConfig(horizon=12)
    tracker: PlannerConfig = PlannerConfig(horizon=4)
    replan: Int[1:] = 4
    """Environment steps between level-2 plans."""
    near: Float[0 : math.inf] = 1.0
    """Level 1 goes straight to goals within near * step_skip steps."""
    clip: Float[0:] = 3.0
    """z stays in [-clip, clip], learned macro-actions in their box; 0 = unbounded."""
    reachable: Float[0:] = 1.0
    """Weight of what macro-steps exceed step_skip steps by (temporal distance only)."""
    control: Literal["none", "zero", "shuffle", "perturb", "untrained"] = "none"
    """What is done to level 2's sub-goals; `untrained`: initial weights."""


class Level3PlannerConfig(SearchConfig):
    """The third level's search, above those of `hierarchy`."""

    horizon: Int[1:] = 3
    samples: Int[2:] = 128
    sigma: Float[1e-6:] = 1.0
    replan: Int[1:] = 16
    """Environment steps between level-3 plans."""


class PlanningConfig(Section):
    """Everything a planner needs besides the models."""

    cost: Literal["latent", "distance", "graph"] = "distance"
    """What one planner minimises: distance of latents, learned steps, or (`graph`, with
    level1.predictor=local) imagined ones."""
    action_cap: Float[0:] = 0.0
    """Largest action, px in Two Rooms; 0: P1 1.8365, P2 2.45, a world's own."""
    replan: Int[1:] = 4
    """Environment steps of a flat plan that are executed."""
    flat: PlannerConfig = PlannerConfig()
    hierarchy: HierarchyConfig = needs("level2.disable_l2=false", HierarchyConfig())
    idm_steps: Int[1:] = 16
    """Steps in which the policy `idm` means to reach the goal."""
    ahead: Int[1:] = 4
    """Steps to the node that the method `graph` aims at, or less to a bend."""
    truth: Literal["none", "dynamics", "distance"] = "none"
    """What flat planning is told: the world's steps, or its ways instead of learned or imagined."""
    level3: Level3PlannerConfig = needs("level3.enabled=true", Level3PlannerConfig())


class EvaluationConfig(Section):
    """Trials and protocols (evaluation/__init__.py)."""

    protocol: Literal[
        "p1", "p2_seen", "p2_heldout", "p3", "p3_large_dot", "p3_small_dot", "p3_dim",
        "p3_thick_wall", "p3_weak",
    ] = "p1"  # fmt: skip
    """Two Rooms: P1 the fixed layout; P2 one per trial, of training or held out; P3 strict, as it
    is and shifted."""
    split: str = "test"
    """`validation` chooses settings, `test` tells the result; or an .npz file of `trials`."""
    trials: Int[1:500] = 100
    """How many of them, from the first."""
    task_set: str = ""
    """One of a world's sets of tasks (`World.task_sets`); "" is all kinds."""
    steps: Int[0:] = 0
    """Most environment steps of an episode; 0: the world's own, 200 in Two Rooms."""
    rows: tuple[Literal["usual", "gcbc", "idm", "hilp", "graph"], ...] = ("usual",)
    """Of the table: the usual ones, cloned behaviour, inverse dynamics, one step ahead, a graph."""
    matched_dynamics: bool = True
    """Also play the best planner with the `blocked` dynamics of the data."""
    budgets: tuple[Float[0.001:1000], ...] = (0.25, 0.5, 1.0)
    """Factors on the samples: success against compute (validation trials)."""
    budget_trials: Int[1:500] = 40
    """Trials of each budget."""
    latency: bool = True
    """Also time one episode alone (batch 1)."""

    def refused(self) -> Iterator[tuple[object, str]]:
        """Trials that are nowhere."""
        known = self.split in ("validation", "test") or self.split.endswith(".npz")
        text = "split must be one of validation, test or a file of trials"
        yield not known, f"{text}, got {self.split!r}"
        yield "usual" not in self.rows, "evaluation.rows adds to the usual rows: begin with usual"


class ChaptersConfig(Section):
    """Parameters of the notebooks; texts begin with the number of the one that reads it."""

    level1_horizon: Int[1:500] = 48
    """02: steps of the open-loop measurement."""
    level1_trial: Int[0:499] = 7
    """02: validation trial of the cost landscape."""
    level2_horizon: Int[1:500] = 64
    """03: steps of the open-loop measurement."""
    plan_trial: Int[0:499] = 7
    """04: validation trial looked at."""
    control_trials: Int[1:500] = 20
    """04: validation trials of the level-2 controls."""
    compare_trial: Int[-1:499] = -1
    """05: test trial of the GIF; -1: the first that tells methods apart."""
    inspect_trial: Int[0:499] = 3
    """06: trial looked at, below `evaluation.trials`."""
    study_trials: Int[1:500] = 20
    """07: validation trials per planner."""
    study_budgets: tuple[Float[0.001:1000], ...] = (0.03125, 0.125, 0.5, 4.0)
    """07: factors on the planners' samples."""
    study_updates: Int[1:1_000_000] = 600
    """07: level-2 updates of a small training."""
    collapse_horizon: Int[8:500] = 192
    """08: steps of the open-loop measurement."""
    collapse_trials: Int[1:500] = 16
    """08: validation trials per planner."""
    collapse_horizons: tuple[Literal[5, 8, 24, 48, 96, 192], ...] = (5, 8, 24, 48, 96, 192)
    """08: planning horizons, steps."""
    collapse_replans: tuple[Literal[1, 2, 4, 8, 16, 32], ...] = (1, 2, 4, 8, 16, 32)
    """08: steps between plans."""
    collapse_sizes: tuple[
        Literal[634, 1269, 5078, 20312, 81250, 325_000, 1_500_000, 3_000_000], ...
    ] = (634, 1269, 5078, 20312)
    """08: transitions to train on."""
    collapse_epochs: tuple[Literal[5, 25, 75, 200, 1000], ...] = (5,)
    """08: passes over 5,078 transitions."""
    collapse_updates: Int[1:1_000_000] = 300
    """08: level-1 updates of a small training."""
    worlds_model: str = "maze"
    """09: the model of configs/worlds.yaml, a world, that is played there."""
    pixel_points: Int[10:1000] = 200
    """10: frames of each part in PCA and t-SNE."""
    ppo_steps: Int[0:10_000_000] = 1024
    """10: training steps of the PPO demonstration; 0: none."""
    imagined_steps: Int[1:] = 8
    """12: imagined steps, `pixels.data.sequence` at most."""
    lookahead_study: bool = True
    """13: also the study of labels."""
