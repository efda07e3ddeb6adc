"""Shortest paths among recorded states: a teacher of the distance head that needs no bootstrap.

The states of a few trajectories of one layout are the nodes of a graph. A recorded step is an edge
of length 1; two states whose latents are closer than `link` usual steps are joined by an edge as
long as their gap. Paths then change from one trajectory to another, and go round a wall that no
trajectory went through. The idea is search on the replay buffer (Eysenbach et al. 2019, arXiv
1906.05253); here paths only teach the head, which has to work in layouts without any data.

A step that was blocked does not move the latent: it costs 1 and leads nowhere, so no path takes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from hjepa_lib.config import DistanceConfig
from hjepa_lib.training.latents import LatentStore

SOURCES, TARGETS = 128, 48
"""Pairs of one graph: so many starts, each with so many goals."""
SHORTEST = 1e-3  # steps; a sparse graph takes an edge of length 0 for no edge


class PathPairs(NamedTuple):
    """Pairs of states that a path connects; indices into the store's flat latents."""

    start: Tensor  # (P,)
    goal: Tensor  # (P,)
    steps: Tensor  # (P,) float32 length of the shortest path, environment steps


def usual_step(store: LatentStore) -> float:
    """Median latent length of the recorded steps that moved; ValueError when none did."""
    gap = (store.latents[1:].float() - store.latents[:-1].float()).norm(dim=-1).cpu()
    moved = gap[(store.trajectory[1:] == store.trajectory[:-1]) & (gap > 0)]
    if not len(moved):
        raise ValueError("no recorded step moves the latent: there are no paths to learn from")
    return moved.median().item()


def join_states(latents: Tensor, trajectory: Tensor, radius: float, unit: float) -> csr_array:
    """Edge lengths in steps, (N, N) sparse; recorded steps lead one way, links both.

    latents (N, D) float32, trajectory (N,) with its states in a row; `radius` in steps, `unit` the
    latent length of a step.
    """
    here = torch.nonzero(trajectory[1:] == trajectory[:-1])[:, 0]
    gaps = torch.cdist(latents, latents) / unit  # (N, N)
    gaps.fill_diagonal_(torch.inf)
    gaps[here, here + 1] = torch.inf  # a recorded step takes the place of that link
    a, b = torch.nonzero(gaps < radius, as_tuple=True)
    rows, columns = torch.cat([here, a]), torch.cat([here + 1, b])
    lengths = torch.cat([torch.ones(len(here)), gaps[a, b].clamp(min=SHORTEST)])
    size = len(latents)
    return csr_array((lengths.numpy(), (rows.numpy(), columns.numpy())), shape=(size, size))


def find_paths(store: LatentStore, config: DistanceConfig, seed: int) -> PathPairs:
    """Random pairs of every graph of `graph_trajectories` trajectories of one layout, or fewer.

    Pairs without a path are left out. Recorded steps may be walked backwards when the head's form
    is the symmetric one. Equal arguments give equal pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    unit, symmetric = usual_step(store), config.form == "metric"
    layouts = store.layout.numbers()
    found: list[PathPairs] = []
    for layout in layouts.unique():
        members = torch.nonzero(layouts == layout)[:, 0]
        for part in members.split(config.graph_trajectories):
            states = torch.cat(
                [torch.arange(store.starts[one], store.starts[one + 1]) for one in part]
            )
            graph = join_states(
                store.latents[states].float().cpu(), store.trajectory[states], config.link, unit
            )
            start = torch.randperm(len(states), generator=generator)[:SOURCES]
            goal = torch.randint(len(states), (len(start), TARGETS), generator=generator)
            steps = dijkstra(graph, directed=not symmetric, indices=start.numpy())  # (S, N)
            steps = torch.from_numpy(np.take_along_axis(steps, goal.numpy(), 1)).float()
            known = steps.isfinite()
            first = start[:, None].expand_as(goal)
            found.append(PathPairs(states[first[known]], states[goal[known]], steps[known]))
    return PathPairs(*(torch.cat(column) for column in zip(*found, strict=True)))
