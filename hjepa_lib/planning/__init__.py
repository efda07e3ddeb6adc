"""Planners over latents: search, levels, and the agent; this page names them and needs no torch."""

from __future__ import annotations

import dataclasses

from hjepa_lib.config import ConfigError, PlanningConfig

METHODS = ("flat", "l1+l2")
THREE_LEVELS = "l1+l2+l3"  # needs level3.enabled
P1_CAP = 1.8365  # px: 2.45 x 0.7496, the action cap of protocol P1, and here without a protocol


def interval(planning: PlanningConfig, method: str) -> int:
    """Environment steps from one planning call to the next.

    Level 1 plans anew every `planning.replan` steps, and whenever a level above it does (Q3).
    ConfigError where a plan would be over before the next one, or a clock would not be kept.
    """
    above = {"hierarchy": planning.hierarchy.replan, "level3": planning.level3.replan}
    names = {"flat": [], "l1+l2": ["hierarchy"]}.get(method, [*above])
    every = min([planning.replan, *(above[name] for name in names)])
    for name in names:
        if above[name] % every:
            raise ConfigError(
                f"planning.{name}.replan={above[name]} must be a multiple of {every}, "
                "the steps between plans of level 1"
            )
    level1 = planning.hierarchy.tracker if names else planning.flat
    if every > level1.horizon:
        name = "hierarchy.tracker" if names else "flat"
        raise ConfigError(
            f"a plan of planning.{name}.horizon={level1.horizon} steps is over before the next "
            f"one, {every} steps later: raise it, or plan more often (planning.replan)"
        )
    return every


def scale_samples(planning: PlanningConfig, factor: float) -> PlanningConfig:
    """The same planner with `factor` times the samples at every level (success against compute)."""

    def scaled(level):
        return dataclasses.replace(level, samples=max(2, round(level.samples * factor)))

    hierarchy = dataclasses.replace(
        planning.hierarchy,
        level2=scaled(planning.hierarchy.level2),
        tracker=scaled(planning.hierarchy.tracker),
    )
    flat, level3 = scaled(planning.flat), scaled(planning.level3)
    return dataclasses.replace(planning, flat=flat, hierarchy=hierarchy, level3=level3)
