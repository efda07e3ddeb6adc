"""Planners over latents; this page names them and needs no torch."""

from dataclasses import replace

from hjepa_lib.config import ConfigError, PlanningConfig, SearchConfig

METHODS = ("flat", "l1+l2")
THREE_LEVELS = "l1+l2+l3"  # needs level3.enabled
ONE_STEP = "hilp"  # flat, one step ahead
GRAPH = "graph"  # straight to a node on the way, needs a local level 1
P1_CAP = 1.8365  # px: 2.45 x 0.7496, the action cap of protocol P1, and here without a protocol


def interval(planning: PlanningConfig, method: str) -> int:
    """Environment steps from one planning call to the next: the shortest of all intervals (Q3).

    ConfigError where a plan would be over before the next one, or a clock would not be kept.
    """
    stacked = {"l1+l2": ("hierarchy",), THREE_LEVELS: ("hierarchy", "level3")}
    above = stacked.get(method, ())
    clocks = {name: getattr(planning, name).replan for name in above}
    every = min([planning.replan, *clocks.values()])
    for name, replan in clocks.items():
        if replan % every:
            raise ConfigError(
                f"planning.{name}.replan={replan} must be a multiple of {every}, "
                "the steps between plans of level 1"
            )
    name = "hierarchy.tracker" if above else "flat"
    horizon = (planning.hierarchy.tracker if above else planning.flat).horizon
    if every > horizon:
        raise ConfigError(
            f"a plan of planning.{name}.horizon={horizon} steps is over before the next "
            f"one, {every} steps later: raise it, or plan more often (planning.replan)"
        )
    return every


def one_step(planning: PlanningConfig) -> PlanningConfig:
    """The flat planner of `hilp`: the sampled action whose imagined next latent costs least."""
    search = replace(planning.flat, method="mppi", horizon=1, iterations=1, temperature=0.0)
    return replace(planning, flat=search, replan=1)


def scale_samples(planning: PlanningConfig, factor: float) -> PlanningConfig:
    """The same planner with `factor` times the samples at every level."""

    def scaled(level: SearchConfig) -> SearchConfig:
        return replace(level, samples=max(2, round(level.samples * factor)))

    above = planning.hierarchy
    above = replace(above, level2=scaled(above.level2), tracker=scaled(above.tracker))
    flat, level3 = scaled(planning.flat), scaled(planning.level3)
    return replace(planning, flat=flat, hierarchy=above, level3=level3)
