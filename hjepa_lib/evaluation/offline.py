"""What a recording says where no environment can be stepped: nothing here is a success rate."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from hjepa_lib.config import PlanningConfig
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.evaluation.openloop import imagined
from hjepa_lib.evaluation.statistics import wilson
from hjepa_lib.planning import P1_CAP
from hjepa_lib.planning.agent import Agent
from hjepa_lib.training.latents import LatentBatch


def recorded_planning(planning: PlanningConfig, normaliser: Normaliser) -> PlanningConfig:
    """Cap and spread of level-1 plans in the unit of the recorded actions, where none is given.

    The cap is two standard deviations of the widest component; proposals keep their share of it.
    """
    pairs = zip(normaliser.action_mean, normaliser.action_std, strict=True)
    cap = planning.action_cap or max(abs(mean) + 2 * std for mean, std in pairs)
    flat, tracker = (
        dataclasses.replace(one, sigma=one.sigma * cap / P1_CAP)
        for one in (planning.flat, planning.hierarchy.tracker)
    )
    hierarchy = dataclasses.replace(planning.hierarchy, tracker=tracker)
    return dataclasses.replace(planning, action_cap=cap, flat=flat, hierarchy=hierarchy)


@torch.no_grad()
def recognised(agent: Agent, batch: LatentBatch) -> tuple[np.ndarray, ...]:
    """Steps h, share of predictions h steps ahead that are nearest to their own frame, its ends.

    (H,) each; ends of a 95 % interval. Among those of n windows at the same h: chance is 1 / n.
    """
    real = batch.latents.to(agent.device)
    both = imagined(agent.level1, batch, agent.device), real
    gaps = torch.cdist(*(part[:, 1:].transpose(0, 1) for part in both))  # (H, n, n)
    hits = gaps.argmin(-1).cpu() == torch.arange(len(real))
    ends = np.array([wilson(int(row.sum()), len(row)) for row in hits])
    return np.arange(1, len(hits) + 1), hits.double().mean(1).numpy(), *ends.T


@torch.no_grad()
def planned_rows(
    agent: Agent, batch: LatentBatch, methods: Iterable[tuple[str, str]], horizons: Sequence[int]
) -> list[dict[str, Any]]:
    """Per (method, cost) and h: the first action planned to the frame h steps ahead.

    `error`: its RMSE to the recorded one in standard deviations of a component, beside the mean
    action's; `nearer`: share of the n windows in which the plan is the nearer of the two. Only one
    step ahead is the recorded action the one to find.
    """
    normal, device = agent.level1.normalise_actions, agent.device
    rows, recorded = [], normal(batch.actions[:, 0].to(device))
    guess = recorded.square().mean(-1)  # of the mean action
    for method, cost in methods:
        for ahead in horizons:
            planner = agent.planner(method, dataclasses.replace(agent.planning, cost=cost))
            ends = (batch.latents[:, step].to(device) for step in (0, ahead))
            with agent.autocast():
                plan = planner.plan(*ends, executed=0, scene=batch.scene)
                actions = plan.actions[:, 0].float()
            gap = (normal(actions) - recorded).square().mean(-1)
            won, n = int((gap < guess).sum()), len(gap)
            row = {"method": method, "cost": cost, "steps ahead": ahead, "n": n}
            row |= {"error": float(gap.mean().sqrt()), "mean action": float(guess.mean().sqrt())}
            rows.append(row | {"nearer": won / n, "ci95": wilson(won, n)})
    return rows
