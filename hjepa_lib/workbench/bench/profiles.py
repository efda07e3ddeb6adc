"""The two configs that everything here is measured with."""

from __future__ import annotations

from hjepa_lib.config import Config, profile

_QUICK = {"level1.latent_dim": 16, "level1.window": 4, "level1.optim.batch": 4}


def configs(quick: bool = False) -> tuple[Config, Config]:
    """(reference, laptop): PLDM's architecture with PLDM's planner, and the default profile."""
    reference = profile("full").override({"preset": "planner_pldm"})
    if not quick:
        return reference, profile("laptop")
    planner = {"planning.flat.samples": 16, "planning.flat.horizon": 4}
    return reference.override(_QUICK | planner), profile("smoke").override(_QUICK)
