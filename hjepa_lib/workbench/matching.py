"""A flat model with as many weights as all levels: the control for "it is just bigger".

`matched_flat` widens level 1 by one common factor (encoder channels and predictor width; the latent
width where neither setting is in use) until its weights equal those of level 1 plus level 2 as
configured (plus level 3 where it is enabled). Every weight counts, heads that only training uses
included. Models are built without memory for their weights: nothing is drawn or computed.
"""

from __future__ import annotations

import torch

from hjepa_lib.config import Config, ConfigError
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.models.joint import HJepa
from hjepa_lib.models.layers import count_parameters
from hjepa_lib.models.level2 import Level2

TOLERANCE = 0.02
LARGEST = 64.0  # common factor


def parameters(config: Config) -> int:
    """Trainable weights of level 1, level 2 unless it is disabled, and an enabled level 3."""
    unit = Normaliser(*[(0.0, 0.0), (1.0, 1.0)] * 3)
    with torch.device("meta"):
        models = [HJepa(config, unit)]
        if config.level3.enabled:
            models.append(Level2(config.third, config.level1.latent_dim))
    return sum(map(count_parameters, models))


def matched_flat(config: Config) -> dict[str, int | bool]:
    """Overrides of a flat model whose weights match those of `config`'s levels within 2 %.

    ConfigError when `config` has no level 2 or no such width exists.
    """
    if config.level2.disable_l2:
        raise ConfigError("there is no level 2 to match: level2.disable_l2 is set")
    wanted = parameters(config)
    low, high = 1.0, LARGEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        short = parameters(config.override(_widened(config, middle))) < wanted
        low, high = (middle, high) if short else (low, middle)
    candidates = [_widened(config, factor) for factor in (low, high)]
    gaps = [abs(parameters(config.override(one)) / wanted - 1) for one in candidates]
    best = gaps.index(min(gaps))
    if gaps[best] > TOLERANCE:
        raise ConfigError(
            f"no flat model comes within {TOLERANCE:.0%} of {wanted:,} weights; "
            f"the nearest is off by {gaps[best]:.0%}"
        )
    return candidates[best]


def _widened(config: Config, factor: float) -> dict[str, int | bool]:
    """Level 1 alone, its free widths times `factor`."""
    level1 = config.level1
    free = ["width"] if level1.encoder == "fast" else []
    free += ["hidden"] if level1.predictor == "mlp" else []
    free = free or ["latent_dim"]
    widths = {f"level1.{name}": round(getattr(level1, name) * factor) for name in free}
    off = {"level3.enabled": False} if config.level3.enabled else {}
    return {**widths, "level2.disable_l2": True, **off}
