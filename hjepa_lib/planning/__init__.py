"""Planners over latents: search, levels, and the agent; this page names them and needs no torch."""

from __future__ import annotations

import dataclasses

from hjepa_lib.config import PlanningConfig

METHODS = ("flat", "l1+l2")
THREE_LEVELS = "l1+l2+l3"  # needs level3.enabled
P1_CAP = 1.8365  # px: 2.45 x 0.7496, the action cap of protocol P1, and here without a protocol


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
