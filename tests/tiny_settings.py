"""Which other values each setting is tried with, and under which conditions."""

import math
import re

from hjepa_lib.config import Config, flatten
from hjepa_lib.config.fields import acts, describe

SETTINGS = {one.name: one for one in describe(Config)}

SPECIAL = {
    "planning.hierarchy.replan": [6],  # a multiple of level 1's
    "planning.level3.replan": [6],
    "data.source": ["<npz>"],  # a file made below
    "distance.graph_trajectories": [1],  # the tiny data have fewer than the default
    "level1.patch": [5],  # divides 65 px
    "level3.step_skip": [12],  # a multiple of level 2's
    "precision": ["bf16"],  # "auto" is one of the two, whichever is faster here
    "evaluation.split": ["validation"],
    "evaluation.rows": [["usual", "gcbc"]],
    "planning.hierarchy.near": [1e9],  # from never near to always near
    "level1.optim.delta": [1e9],
    "level2.optim.delta": [1e9],
    "policies.optim.delta": [1e9],
    "distance.optim.schedule": ["constant"],
    "pixels.environment.id": ["hjepa/NoisyTV-v0"],
    "pixels.data.transitions": [30],
    "pixels.encoder.patch": [2],  # divides 16 px, as the two below
    "pixels.decoder.patch": [8],
    "pixels.vjepa2.stage1.patch": [8],
    "pixels.vjepa2.stage1.hidden": [[8]],
    "pixels.vjepa2.stage2.teacher_forcing_ratio": [0.1],
    "pixels.jepa.hidden": [[8]],
}


TOGETHER = [
    ("level1.encoder", "place"),
    ("level1.predictor", "local"),
    ("planning.cost", "graph"),
    ("data.recipe", "navigate"),
]
"""Values that need each other (test_local.py) or another world (test_rooms.py)."""


def other_values(leaf, value):
    """Every other choice than `value`, or one other number."""
    allowed = SETTINGS[leaf].allowed
    if leaf in SPECIAL:
        return SPECIAL[leaf]
    if " | " in allowed:
        others = [one for one in allowed.split(" | ") if one != str(value)]
        return [one for one in others if (leaf, one) not in TOGETHER]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, (list, tuple)):
        return [[0.25]]
    if isinstance(value, str):
        return [value + "x"]
    high = float(allowed.strip("[])").split(", ")[1])
    return [value * 1.5 + 0.1 if math.isinf(high) else (value + high * (value != high)) / 2]


def turned(condition, on, config):
    """`config` with the first alternative of a condition met, or none."""
    for option in condition.split(" or ")[: 1 if on else None]:
        for clause in option.split(" and ")[: None if on else 1]:
            if acts(clause, flatten(config)) == on:
                continue
            name, sign, wanted = re.fullmatch(r"([\w.]+)(!=|=|>)(.*)", clause).groups()
            options = wanted.split("|")
            if sign == ">":
                value = int(wanted) + on
            elif (sign == "=") == on:
                value = options[0]
            else:
                known = {"bool": "true | false", "str": " | x.npz", "[0, inf)": "0 | 5"}
                allowed = SETTINGS[name].allowed
                allowed = known.get(allowed, allowed)
                value = next(one for one in allowed.split(" | ") if one not in options)
            local = {"level1.encoder": "place", "level1.latent_dim": 2, "level1.refine_updates": 2}
            beside = local if value == "local" else {}
            config = config.override({name: value} | beside, strict=False)
    assert acts(condition, flatten(config)) == on
    return config


def base_of(leaf, base, context):
    """`base` with what a leaf needs and `context` says: [(pattern of leaves, overrides)]."""
    for pattern, overrides in context:
        if re.fullmatch(pattern, leaf):
            base = base.override(overrides, strict=False)
    for need in SETTINGS[leaf].needs:
        base = turned(need, True, base)
    return base
