"""Other planner settings for the what-if panel: what can be changed, and what was changed."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from hjepa_lib.config import PlanningConfig

CONTROLS = ("none", "zero", "shuffle", "perturb", "untrained")


class Knobs(NamedTuple):
    """What a reader can change; the last four belong to level 2 and are ignored when flat."""

    method: str
    cost: str
    horizon: int  # steps that level 1 looks ahead
    samples: int  # candidates of level 1
    replan: int  # steps between plans of level 1
    control: str  # what is done to the sub-goals of level 2
    horizon2: int  # macro-steps that level 2 looks ahead
    samples2: int
    replan2: int  # steps between plans of level 2


def knobs_of(planning: PlanningConfig, method: str) -> Knobs:
    """The knobs as `planning` has them."""
    hierarchy = planning.hierarchy
    level1 = planning.flat if method == "flat" else hierarchy.tracker
    return Knobs(
        method, planning.cost, level1.horizon, level1.samples, planning.replan,
        hierarchy.control, hierarchy.level2.horizon, hierarchy.level2.samples, hierarchy.replan,
    )  # fmt: skip


def apply_knobs(planning: PlanningConfig, knobs: Knobs) -> PlanningConfig:
    """`planning` with the knobs' values; ConfigError when one is out of range."""
    replace = dataclasses.replace
    level1 = {"horizon": knobs.horizon, "samples": knobs.samples}
    both = {"cost": knobs.cost, "replan": knobs.replan}
    if knobs.method == "flat":
        return replace(planning, **both, flat=replace(planning.flat, **level1))
    hierarchy = planning.hierarchy
    level2 = {"horizon": knobs.horizon2, "samples": knobs.samples2}
    hierarchy = replace(
        hierarchy,
        tracker=replace(hierarchy.tracker, **level1),
        level2=replace(hierarchy.level2, **level2),
        control=knobs.control,
        replan=knobs.replan2,
    )
    return replace(planning, **both, hierarchy=hierarchy)


_WORDS = {
    "horizon": "horizon {}", "samples": "{} samples", "replan": "replan every {}",
    "control": "level 2: {}", "horizon2": "level-2 horizon {}", "samples2": "{} level-2 samples",
    "replan2": "level-2 replan every {}",
}  # fmt: skip


def describe(knobs: Knobs, base: Knobs) -> str:
    """ "l1+l2, latent cost, horizon 16": the method, the cost, and whatever differs from `base`."""
    words = [knobs.method, f"{knobs.cost} cost"]
    for name, text in _WORDS.items():
        value = getattr(knobs, name)
        level2 = name == "control" or name.endswith("2")
        if value != getattr(base, name) and not (level2 and knobs.method == "flat"):
            words.append(text.format(value))
    return ", ".join(words)
