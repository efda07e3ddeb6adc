"""Settings of planners, of their trials, and of what single notebooks show or try."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from hjepa_lib.config.fields import Float, Int, Section, needs


class SearchConfig(Section):
    """One level of planning: proposal, horizon, cost form and sample budget."""

    method: Literal["mppi", "cem", "gradient"] = "mppi"
    """How plans are improved (planning/search.py)."""
    horizon: Int[1:] = 8
    """Planned steps of this level: of the environment at level 1, else macro steps."""
    samples: Int[2:] = 64
    """Candidate plans of one iteration."""
    iterations: Int[1:] = 2
    """Rounds of proposing, imagining, choosing."""
    sigma: Float[1e-6:] = 1.5
    """Standard deviation of proposals: px at level 1, else those of the prior."""
    temperature: Float[0 : math.inf] = needs("method=mppi", 0.05)
    """Weights softmax(-(cost - min) / (temperature * unit)); 0 = arg-min, inf = plain mean."""
    temperature_unit: Literal["spread", "cost"] = needs("method=mppi", "spread")
    """`spread`: the standard deviation of a trial's costs; `cost`: 1."""
    elites: Int[1:] = needs("method=cem", 20)
    """Candidates that refit the proposal."""
    lr: Float[0:] = needs("method=gradient", 0.3)
    """Step size of Adam."""
    form: Literal["auto", "last", "sum", "closest", "last_k", "last_mean"] = "auto"
    """How costs over the horizon become one number; `auto`: `sum` of steps, `closest` in
    latents."""
    last_k: Int[1:] = needs("form=last_k", 3)
    """Steps of `last_k`, the last ones."""
    mean_weight: Float[0:] = needs("form=last_mean", 0.2)
    """Weight of the mean in `last_mean`."""


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
    """Level 1 goes straight to goals within near * step_skip steps, as the cost tells."""
    clip: Float[0:] = 3.0
    """Standardised z stays in [-clip, clip], learned macro-actions in their box; 0 = unbounded."""
    reachable: Float[0:] = 1.0
    """Weight of imagined macro-steps' excess over step_skip steps (temporal distance only)."""
    control: Literal["none", "zero", "shuffle", "perturb", "untrained"] = "none"
    """Controls of level 2's sub-goals; `untrained`: its initial weights."""


class Level3PlannerConfig(SearchConfig):
    """The third level's search; level 2 and the tracker below it are those of `hierarchy`."""

    horizon: Int[1:] = 3
    samples: Int[2:] = 128
    sigma: Float[1e-6:] = 1.0
    replan: Int[1:] = 16
    """Environment steps between level-3 plans."""


class PlanningConfig(Section):
    """Everything a planner needs besides the models."""

    cost: Literal["latent", "distance"] = "distance"
    """What is minimised where one cost is played or drawn: learned steps, or distance of
    latents."""
    action_cap: Float[0:] = 0.0
    """Largest Euclidean action, px; 0 = the protocol's (P1 1.8365, P2 2.45)."""
    replan: Int[1:] = 4
    """Environment steps of a flat plan that are executed."""
    flat: PlannerConfig = PlannerConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()
    level3: Level3PlannerConfig = needs("level3.enabled=true", Level3PlannerConfig())


class EvaluationConfig(Section):
    """Trials and protocols (evaluation/results.py says what P1 and P2 fix)."""

    protocol: Literal["p1", "p2_seen", "p2_heldout"] = "p1"
    """P1: the fixed layout; P2: a layout per trial, of the training ones or of no training."""
    split: str = "test"
    """`validation` chooses settings, `test` tells the result; or an .npz file of the command
    `trials`."""
    trials: Int[1:500] = 100
    """How many of them, from the first."""
    steps: Int[1:] = 200
    """Environment steps of an episode at most."""
    matched_dynamics: bool = True
    """Also play the best planner on the dynamics of the training data, `blocked`."""
    budgets: tuple[Float[0.001:1000], ...] = (0.25, 0.5, 1.0)
    """Factors on the samples of success against compute (validation trials)."""
    budget_trials: Int[1:500] = 40
    """Trials of each of these budgets."""
    latency: bool = True
    """Also time one episode alone (batch 1)."""

    def refused(self) -> Iterator[tuple[object, str]]:
        """Trials that are nowhere."""
        known = self.split in ("validation", "test") or self.split.endswith(".npz")
        text = "split must be one of validation, test or a file of trials"
        yield not known, f"{text}, got {self.split!r}"


class ChaptersConfig(Section):
    """Parameters of the notebooks; each text begins with the number of the one that reads it."""

    data_panels: Int[1:24] = 12
    """01: trajectories and trials drawn."""
    level1_horizon: Int[1:500] = 48
    """02: steps of the open-loop measurement."""
    level1_trial: Int[0:499] = 7
    """02: validation trial whose goal the cost landscape shows."""
    level2_horizon: Int[1:500] = 64
    """03: steps of the open-loop measurement, one macro step or more."""
    level2_samples: Int[2:500] = 80
    """03: moves drawn from level 2 per start."""
    level2_starts: Int[1:24] = 8
    """03: validation trials whose starts are shown."""
    plan_trial: Int[0:499] = 7
    """04: validation trial looked at closely."""
    control_trials: Int[1:500] = 20
    """04: validation trials of the level-2 controls."""
    compare_panels: Int[1:24] = 10
    """05: episodes drawn per method."""
    compare_trial: Int[-1:499] = -1
    """05: test trial of the GIF; -1: the first on which the methods differ."""
    inspect_trial: Int[0:499] = 3
    """06: trial looked at, below `evaluation.trials`."""
    inspect_moments: Int[2:8] = 5
    """06: moments in a film strip."""
    study_trials: Int[1:500] = 20
    """07: validation trials per planner."""
    study_budgets: tuple[Float[0.001:1000], ...] = (0.03125, 0.125, 0.5, 4.0)
    """07: factors on the planners' samples."""
    study_updates: Int[1:1_000_000] = 600
    """07: level-2 updates of every small training."""
    collapse_horizon: Int[8:500] = 192
    """08: steps of the open-loop measurement."""
    collapse_windows: Int[8:2000] = 128
    """08: held-out walks of the open-loop measurement."""
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
    """08: level-1 updates of every small training."""
    pixel_samples: Int[1:12] = 4
    """10: transitions on the sample sheet."""
    pixel_pictures: Int[1:200] = 50
    """10: transitions written as pictures of their own."""
    pixel_points: Int[10:1000] = 200
    """10: frames of each part in PCA and t-SNE."""
    ppo_steps: Int[0:10_000_000] = 1024
    """10: training steps of the PPO demonstration; 0 leaves it out."""
    reconstructions: Int[1:12] = 6
    """11: reconstructions shown side by side."""
    variant_updates: Int[2:10_000] = 60
    """11: most updates of a short training of JEPA's variants."""
    imagined_steps: Int[1:] = 8
    """12: imagined steps of the roll-outs, `pixels.data.sequence` at most."""
    masks: Int[1:8] = 4
    """12: masks drawn as an example."""
    lookahead_study: bool = True
    """13: also the study in the two built-in reward worlds."""
    grid_panels: Int[1:8] = 4
    """14: held-out transitions that are drawn."""
    planner_updates: Int[1:100_000] = 1000
    """15: updates of the transformer that plans on Two Rooms."""
