"""The smallest settings, data and models that exercise every code path."""

import functools
import hashlib
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hjepa_lib.config import leaves, profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.checkpoint import TrainedMacro
from hjepa_lib.models.distance import Distance, Probe
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import HJepa, Level2
from hjepa_lib.models.policies import GoalPolicy
from hjepa_lib.planning.agent import Agent
from hjepa_lib.training.distance import train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.level1 import pretrain_level1, refine_predictors, train_level1
from hjepa_lib.training.level2 import macro_box, train_joint, train_level2
from hjepa_lib.training.loop import Fit
from hjepa_lib.training.policies import train_policy

CPU = torch.device("cpu")

SEARCH = {"samples": 8, "iterations": 2, "horizon": 5}
OPTIM = {"updates": 4, "batch": 8, "validate_every": 2}
OVERRIDES = leaves({
    "device": "cpu", "precision": "fp32", "data": {"transitions": 2000},
    "level1": {"latent_dim": 16, "width": 8, "hidden": 16, "idm_hidden": 16, "window": 6,
               "optim": OPTIM},
    "distance": {"dim": 8, "hidden": 16, "trajectories": 10, "optim": OPTIM},
    "level2": {"step_skip": 4, "macro_steps": 2, "z_dim": 4, "hidden": 16, "optim": OPTIM},
    "policies": {"latent_dim": 16, "hidden": 16, "optim": OPTIM},
    "planning": {
        "action_cap": 1.8365, "replan": 2, "flat": SEARCH,
        "hierarchy": {"level2": SEARCH | {"horizon": 3}, "tracker": SEARCH},
    },
    "evaluation": {"trials": 3, "steps": 6},
    "chapters": {"study_updates": 4, "collapse_horizon": 24},
})  # fmt: skip
ELITES = {"elites": 3}
ELSEWHERE = leaves({
    "level2": {"macro_dim": 3}, "level3": {"step_skip": 8},
    "planning": {
        "flat": ELITES, "hierarchy": {"level2": ELITES, "tracker": ELITES},
        "level3": ELITES | {"samples": 8, "iterations": 2, "replan": 4},
    },
})  # fmt: skip
"""Small values of settings that act after another one has changed."""


def tiny_config(**changes):
    """The tiny settings; keywords are dotted keys with "__" for the dots."""
    small = profile("smoke").override(OVERRIDES | ELSEWHERE, strict=False)
    return small.override(dotted(changes))


def loose_config(**changes):
    """The same, with settings that other settings switch off."""
    return tiny_config().override(dotted(changes), strict=False)


def dotted(changes):
    return {key.replace("__", "."): value for key, value in changes.items()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def refused(kind, message, call, *arguments, **options):
    """`call` ends in a `kind` of error: one sentence that has the pattern `message`."""
    with pytest.raises(kind, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


def put(place, value):

    def change(array):
        array[place] = value
        return array

    return change


def frames_of(*lead, size=(65, 65), seed=0):
    """Random frames (*lead, 2, *size) uint8."""
    shape = (*lead, 2, *size)
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


@functools.cache
def tiny_data(layouts="fixed"):
    return generate("good", 2000, layouts, seed=0)


@functools.cache
def tiny_normaliser():
    return Normaliser.fit(tiny_data(), 0)


def make_level1(config, seed=0):
    torch.manual_seed(seed)
    return Jepa(config.level1, tiny_normaliser())


def make_level2(config, seed=1, third=False):
    torch.manual_seed(seed)
    return Level2(config.third if third else config.level2, config.level1.latent_dim)


def make_policy(config):
    torch.manual_seed(config.seed)
    return GoalPolicy(config.policies, tiny_normaliser())


def make_store(model, data=None, limit=20):
    return LatentStore(model, data or tiny_data(), limit, "fp32")


def make_agent(config, seed=0):
    """Random weights, frozen, with level 3 if enabled; nothing is "near" (reach = 1e-6)."""
    level1, level2 = make_level1(config, seed), make_level2(config, seed + 1)
    normaliser = tiny_normaliser()
    probe = Probe((level1.latent_dim, 256, 2), normaliser.position_mean, normaliser.position_std)
    head = Distance(config.distance, level1.latent_dim)
    for module in (level1, level2, probe, head):
        module.eval().requires_grad_(False)
    box = None
    if config.level2.actions == "learned":
        box = macro_box(level2, level1, make_store(level1, limit=2))
    reach = {"latent": 1e-6, "distance": 1e-6}
    level3 = None
    if config.level3.enabled:
        model = make_level2(config, seed + 2, third=True).eval().requires_grad_(False)
        level3 = TrainedMacro(model, reach, box)
    return Agent(
        level1, probe, head, level2, reach, box, config.planning, config.seed,
        "fp32", CPU, level3,
    )  # fmt: skip


def digest(*values):
    """SHA-256 of tensors, modules, arrays, numbers and texts, bit for bit."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if isinstance(value, dict):
            value = digest(*(part for pair in sorted(value.items()) for part in pair))
        elif isinstance(value, (list, tuple)):
            value = digest(*value)
        if isinstance(value, Tensor):
            value = value.detach().contiguous()
            found.update(str((value.dtype, tuple(value.shape))).encode())
            found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


class Job(NamedTuple):
    """A training ready to run, and everything that it may change."""

    fit: Fit
    module: nn.Module  # its weights
    whole: nn.Module  # the same and companions (slow copies)


@functools.cache
def frozen_stores(level1, seed, limit):
    torch.manual_seed(seed)
    model = Jepa(level1, tiny_normaliser()).eval().requires_grad_(False)
    return [make_store(model, part, limit) for part in tiny_data().split(0.2, 0)]


def make_job(kind, config, folder=None, layouts="fixed"):
    """A training by name; those above level 1 see a frozen random one."""
    train, validation = tiny_data(layouts).split(0.2, 0)
    options = {"folder": folder, "precision": config.precision, "seed": config.seed}
    if kind == "joint":
        torch.manual_seed(config.seed)
        both = HJepa(config, tiny_normaliser())
        windows = Windows(train, config.level2.macro_steps * config.level2.step_skip + 1)
        return Job(train_joint(both, windows, config, **options), both, both)
    if kind == "policies":
        policy = make_policy(config)
        return Job(train_policy(policy, train, validation, **options), policy, policy)
    level1 = make_level1(config, config.seed)
    if kind in ("level1", "pretraining"):
        windows = [Windows(part, config.level1.window) for part in (train, validation)]
        start = train_level1 if kind == "level1" else pretrain_level1
        return Job(start(level1, *windows, **options), level1, level1)
    stores = frozen_stores(config.level1, config.seed, config.distance.trajectories)
    if kind == "refinement":
        fit = refine_predictors(level1, *stores, **options)
        return Job(fit, level1.predictors, level1)
    if kind in ("level2", "level3"):
        model = make_level2(config, config.seed + 1, third=kind == "level3")
        frozen = level1.eval().requires_grad_(False)
        return Job(train_level2(model, frozen, *stores, **options), model, model)
    torch.manual_seed(config.seed)
    head = Distance(config.distance, config.level1.latent_dim)
    fit = train_distance(head, *stores, **options)
    return Job(fit, head, fit.module)


def ema_follows(slow, fast, decay, after_update):
    """Whether `slow` = decay * slow + (1 - decay) * fast after each of three moves of `fast`."""
    wanted = [p.clone() for p in slow.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for p in fast.parameters():
                p.add_(torch.randn_like(p))
        after_update()
        pairs = zip(wanted, fast.parameters(), strict=True)
        wanted = [decay * old + (1 - decay) * new.detach() for old, new in pairs]
    pairs = zip(wanted, slow.parameters(), strict=True)
    return all(torch.allclose(one, two, atol=1e-6) for one, two in pairs)
