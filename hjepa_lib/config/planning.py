"""Settings of planners, of their trials, and of what single notebooks show or try."""

from __future__ import annotations

from dataclasses import dataclass, field

from hjepa_lib.config.fields import Checked, ConfigError, choice, number


@dataclass(frozen=True)
class SearchConfig(Checked):
    """One level of planning: proposal, horizon, cost form and sample budget."""

    method: str = choice("mppi", "mppi", "cem", "gradient")
    """How plans are improved (planning/search.py)."""
    horizon: int = number(8, 1)
    """Planned steps of this level (primitive steps at level 1, macro steps at level 2)."""
    samples: int = number(64, 2)
    """Candidate plans of one iteration."""
    iterations: int = number(2, 1)
    """Rounds of proposing, imagining and choosing."""
    sigma: float = number(1.5, 1e-6)
    """Proposal standard deviation: px at level 1, prior standard deviations at level 2."""
    temperature: float = number(0.05, 0, float("inf"), needs="method=mppi")
    """Weights softmax(-(cost - min) / (temperature * unit)); 0 = arg-min, inf = plain mean."""
    temperature_unit: str = choice("spread", "spread", "cost", needs="method=mppi")
    """`spread`: a trial's standard deviation of costs, so one value fits every cost; `cost`: 1."""
    elites: int = number(20, 1, needs="method=cem")
    """Candidates that refit the proposal."""
    lr: float = number(0.3, 0, needs="method=gradient")
    """Step size of Adam."""
    form: str = choice("auto", "auto", "last", "sum", "closest", "last_k", "last_mean")
    """How per-step costs over the horizon become one number; `auto`: `sum` of a cost that counts
    steps, `closest` approach in the latent cost."""
    last_k: int = number(3, 1, needs="form=last_k")
    """Steps of `last_k`, counted from the end."""
    mean_weight: float = number(0.2, 0, needs="form=last_mean")
    """Weight of the horizon mean in `last_mean`."""


@dataclass(frozen=True)
class PlannerConfig(SearchConfig):
    """A search with level 1, which may be an ensemble."""

    disagreement: float = number(0.0, 0)
    """Weight of the ensemble disagreement cost (PLDM v2); needs level1.predictors > 1."""


@dataclass(frozen=True)
class HierarchyConfig(Checked):
    """How level 2 commands level 1."""

    level2: SearchConfig = SearchConfig(horizon=12, samples=64, iterations=2, sigma=1.5)
    tracker: PlannerConfig = PlannerConfig(horizon=4)
    replan: int = number(4, 1)
    """Environment steps between level-2 plans."""
    near: float = number(1.0, 0, float("inf"))
    """Level 1 goes straight to a goal within near * step_skip steps, by the cost's own scale."""
    clip: float = number(3.0, 0)
    """Standardised z stays in [-clip, clip], learned macro-actions in their percentile box; 0 =
    unbounded, both."""
    reachable: float = number(1.0, 0)
    """Weight of the excess of imagined macro-steps over step_skip steps (temporal distance only:
    the latent cost has no unit of time)."""
    control: str = choice("none", "none", "zero", "shuffle", "perturb", "untrained")
    """Built-in controls of level 2's sub-goals; `untrained`: level 2 with its initial weights."""


@dataclass(frozen=True)
class Level3PlannerConfig(SearchConfig):
    """The third level's search; level 2 and the tracker below it are those of `hierarchy`."""

    horizon: int = number(3, 1)
    samples: int = number(128, 2)
    sigma: float = number(1.0, 1e-6)
    replan: int = number(16, 1)
    """Environment steps between level-3 plans."""


@dataclass(frozen=True)
class PlanningConfig(Checked):
    """Everything a planner needs besides the models."""

    cost: str = choice("distance", "latent", "distance")
    """What a planner minimises where one cost is played or drawn: the learned number of steps, or
    the distance of latents."""
    action_cap: float = number(0.0, 0)
    """Largest Euclidean action, px; 0 = the protocol's: P1 1.8365 (2.45 x 0.7496), P2 2.45."""
    replan: int = number(4, 1)
    """Environment steps executed per flat plan."""
    flat: PlannerConfig = PlannerConfig()
    hierarchy: HierarchyConfig = HierarchyConfig()
    level3: Level3PlannerConfig = field(
        default=Level3PlannerConfig(), metadata={"needs": "level3.enabled=true"}
    )


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Trials and protocols (evaluation/results.py says what P1 and P2 fix)."""

    protocol: str = choice("p1", "p1", "p2_seen", "p2_heldout")
    """P1: the fixed layout; P2: a layout per trial, of the training ones or of no training."""
    split: str = "test"
    """Which trials: `validation` chooses settings, `test` tells the result; or an .npz file that
    the command `trials` made."""
    trials: int = number(100, 1, 500)
    """How many of them, from the first."""
    steps: int = number(200, 1)
    """Environment steps of an episode at most."""
    matched_dynamics: bool = True
    """Also run the best planner on `blocked`, the dynamics of the training data."""
    budgets: tuple[float, ...] = number((0.25, 0.5, 1.0), 0.001, 1000)
    """Sample budgets, as factors, of the success-against-compute figure (validation trials)."""
    budget_trials: int = number(40, 1, 500)
    """Trials of each of these budgets."""
    latency: bool = True
    """Also time one episode alone (batch 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in ("validation", "test") and not self.split.endswith(".npz"):
            raise ConfigError(
                f"split must be one of validation, test or a file of trials, got {self.split!r}"
            )


@dataclass(frozen=True)
class ChaptersConfig(Checked):
    """Parameters of the notebooks; each text begins with the number of the one that reads it."""

    data_panels: int = number(12, 1, 24)
    """01: trajectories and trials drawn."""
    level1_horizon: int = number(48, 1, 500)
    """02: steps of the open-loop measurement."""
    level1_trial: int = number(7, 0, 499)
    """02: validation trial whose goal the cost landscape shows."""
    level2_horizon: int = number(64, 1, 500)
    """03: environment steps of the open-loop measurement, one macro step or more."""
    level2_samples: int = number(80, 2, 500)
    """03: moves drawn from level 2 per start."""
    level2_starts: int = number(8, 1, 24)
    """03: validation trials whose starts are shown."""
    plan_trial: int = number(7, 0, 499)
    """04: validation trial looked at closely."""
    control_trials: int = number(20, 1, 500)
    """04: validation trials of the level-2 controls."""
    compare_panels: int = number(10, 1, 24)
    """05: episodes drawn per method."""
    compare_trial: int = number(-1, -1, 499)
    """05: test trial of the GIF; -1 takes the first one on which the methods differ."""
    inspect_trial: int = number(3, 0, 499)
    """06: trial looked at, below `evaluation.trials`."""
    inspect_moments: int = number(5, 2, 8)
    """06: moments in a film strip."""
    study_trials: int = number(20, 1, 500)
    """07: validation trials per planner."""
    study_budgets: tuple[float, ...] = number((0.03125, 0.125, 0.5, 4.0), 0.001, 1000)
    """07: factors on the planners' samples."""
    study_updates: int = number(600, 1, 1_000_000)
    """07: level-2 updates of every small training."""
    collapse_horizon: int = number(192, 8, 500)
    """08: steps of the open-loop measurement."""
    collapse_windows: int = number(128, 8, 2000)
    """08: held-out walks of the open-loop measurement."""
    collapse_trials: int = number(16, 1, 500)
    """08: validation trials per planner."""
    collapse_horizons: tuple[int, ...] = choice((5, 8, 24, 48, 96, 192), 5, 8, 24, 48, 96, 192)
    """08: planning horizons, steps."""
    collapse_replans: tuple[int, ...] = choice((1, 2, 4, 8, 16, 32), 1, 2, 4, 8, 16, 32)
    """08: steps between plans."""
    collapse_sizes: tuple[int, ...] = choice(
        (634, 1269, 5078, 20312), 634, 1269, 5078, 20312, 81250, 325_000, 1_500_000, 3_000_000
    )
    """08: transitions to train on."""
    collapse_epochs: tuple[int, ...] = choice((5,), 5, 25, 75, 200, 1000)
    """08: passes over 5,078 transitions."""
    collapse_updates: int = number(300, 1, 1_000_000)
    """08: level-1 updates of every small training."""
    pixel_samples: int = number(4, 1, 12)
    """10: transitions on the sample sheet."""
    pixel_pictures: int = number(50, 1, 200)
    """10: transitions written as pictures of their own."""
    pixel_points: int = number(200, 10, 1000)
    """10: frames of each part in PCA and t-SNE."""
    ppo_steps: int = number(1024, 0, 10_000_000)
    """10: training steps of the PPO demonstration; 0 leaves it out."""
    reconstructions: int = number(6, 1, 12)
    """11: reconstructions shown side by side."""
    variant_updates: int = number(60, 2, 10_000)
    """11: most updates of a short training of JEPA's variants."""
    imagined_steps: int = number(8, 1)
    """12: imagined steps of the roll-out figures, `pixels.data.sequence` or fewer."""
    masks: int = number(4, 1, 8)
    """12: masks drawn as an example."""
    lookahead_study: bool = True
    """13: also the look-ahead study in the two built-in reward worlds."""
    grid_panels: int = number(4, 1, 8)
    """14: held-out transitions that are drawn."""
    planner_updates: int = number(1000, 1, 100_000)
    """15: updates of the transformer that plans on Two Rooms."""
