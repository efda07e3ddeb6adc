import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path
from scipy.stats import spearmanr
from tiny import digest, make_store, refused, seeded, tiny_config, tiny_data

from hjepa_lib.config import DistanceConfig, OptimConfig
from hjepa_lib.models.distance import Distance
from hjepa_lib.training import distance as distance_training
from hjepa_lib.training.distance import (
    SHORTEST,
    GoalSampler,
    distance_terms,
    find_paths,
    join_states,
    train_distance,
    usual_step,
)
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.loop import TrainingError
from hjepa_lib.worlds.layout import Layout


def head_of(**changes):
    torch.manual_seed(0)
    return Distance(DistanceConfig(dim=8, hidden=16, **changes), 16)


def store_of(lengths, latents, positions, layout):
    store = LatentStore.__new__(LatentStore)
    store.lengths, store.latents = torch.as_tensor(lengths), latents
    store.starts = torch.cat([store.lengths.new_zeros(1), store.lengths.cumsum(0)])
    store.trajectory = torch.arange(len(store.lengths)).repeat_interleave(store.lengths)
    store.positions, store.layout = positions, layout
    return store


@pytest.fixture
def few_layouts(level1):
    store = make_store(level1, tiny_data("random"), limit=12)
    wall = torch.tensor([25.0, 30.0, 35.0])[torch.arange(12) % 3]
    store.layout = Layout(wall, torch.full((12,), 20.0))
    return store


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
def test_the_distance_is_its_formula(seed, scale):
    a, b = scale * torch.randn(2, 20, 8, generator=seeded(seed))
    head = head_of()
    torch.testing.assert_close(head.between(a, b), (a - b).norm(dim=-1), atol=1e-3, rtol=1e-5)
    assert head.between(a, a).max() <= 1e-3 + 1e-9
    start = torch.randn(5, 16)
    head(start, start).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_loss_equals_its_formula(gamma):
    head, slow = (head_of(gamma=gamma, expectile=0.8) for _ in range(2))
    slow.requires_grad_(False)
    for parameter in slow.parameters():
        parameter.add_(0.3)
    now, later, goal = 3 * torch.randn(3, 12, 16, generator=seeded(4))
    steps = torch.tensor([1.0, 2, 3, 4] * 3)
    at_goal = torch.arange(12) % 3 == 0
    found = distance_terms(head, slow, now, later, goal, steps, at_goal)
    expectile, excess = [], []
    for i in range(12):
        k = int(steps[i])
        passed = sum(gamma**j for j in range(k))
        rest = 0.0 if at_goal[i] else gamma**k * slow(later[i], goal[i]).item()
        gap = -(passed + rest) + head(now[i], goal[i]).item()
        expectile.append((0.8 if gap > 0 else 0.2) * gap**2)
        excess.append(max(0.0, head(now[i], later[i]).item() - k) ** 2)
    assert found["expectile"].item() == pytest.approx(np.mean(expectile), rel=1e-4)
    assert found["excess"].item() == pytest.approx(np.mean(excess), rel=1e-4)
    assert found["excess"] > 0


def test_the_slow_copy_follows_the_formula_and_gets_no_gradient(store):
    head = head_of()
    fit = train_distance(head, store, None, seed=0)
    slow = fit.module["slow"]
    assert digest(slow) == digest(head)
    before = [p.clone() for p in slow.parameters()]
    next(iter(fit))
    assert all(p.grad is None and not p.requires_grad for p in slow.parameters())
    for now, old, new in zip(slow.parameters(), before, head.parameters(), strict=True):
        torch.testing.assert_close(now, 0.98 * old + 0.02 * new)


@pytest.mark.parametrize("future", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_step", [1, 4])
def test_goals_never_cross_trajectories_or_layouts(few_layouts, future, n_step):
    """F6."""
    store, wall = few_layouts, few_layouts.layout.wall_x
    sampler = GoalSampler(store, n_step, future)
    pick = sampler.sample(4000, seeded(1))
    own = store.trajectory[pick.now]
    assert (store.trajectory[pick.later] == own).all()
    steps = pick.later - pick.now
    assert ((steps >= 1) & (steps <= n_step)).all()
    assert (wall[store.trajectory[pick.goal]] == wall[own]).all()
    # a goal ahead in the same trajectory is reached, never passed
    same = (store.trajectory[pick.goal] == own) & (pick.goal > pick.now)
    assert (pick.later[same] <= pick.goal[same]).all()
    # a shorter step only where the goal or the trajectory ends it
    last, short = store.starts[own + 1] - 1, steps < n_step
    assert ((pick.later == pick.goal) | (pick.later == last))[short].all()
    share = same.float().mean().item()
    if future == 1:
        assert share == 1
    else:  # some random goals lie ahead too
        assert future - 0.05 < share < future + 0.3
        assert len(store.trajectory[pick.goal].unique()) == 12
    # every state with a successor is drawn, no last state ever is
    assert not torch.isin(store.starts[1:] - 1, pick.now).any()


@pytest.mark.parametrize("teacher", ["bootstrap", "graph"])
def test_validation_compares_with_recorded_steps(teacher, store):
    head = head_of(optim=tiny_config().distance.optim, teacher=teacher)
    last = list(train_distance(head, store, store, seed=0))[-1]
    steps = {"recorded_steps", "predicted_steps", "overestimated"}
    own = {"bootstrap": {"expectile", "excess"}, "graph": {"path_error"}}[teacher]
    assert last.terms.keys() == own
    assert last.validation.keys() == steps | (own if teacher == "bootstrap" else set())
    assert 1 <= last.validation["recorded_steps"] <= 90


def settings(**changes):
    return DistanceConfig(teacher="graph", **changes)


def test_edges_are_recorded_steps_and_short_gaps():
    latents = torch.tensor([[0.0], [2.0], [4.0], [4.5], [9.0], [0.5]])
    graph = join_states(latents, torch.tensor([0, 0, 0, 1, 1, 1]), 0.5, 2.0).toarray()
    wanted = np.zeros((6, 6))
    wanted[[0, 1, 3, 4], [1, 2, 4, 5]] = 1  # recorded, one way
    wanted[2, 3] = wanted[3, 2] = wanted[0, 5] = wanted[5, 0] = 0.25  # a gap of 0.5, a step is 2
    np.testing.assert_allclose(graph, wanted)


def test_a_graph_holds_few_trajectories_of_one_layout(few_layouts):
    """F6."""
    store, wall = few_layouts, few_layouts.layout.wall_x
    config = settings(graph_trajectories=2, link=1e9)  # everything in a graph is joined
    found = find_paths(store, config, 0)
    first, second = store.trajectory[found[0]], store.trajectory[found[1]]
    assert torch.equal(wall[first], wall[second])
    assert torch.equal(first // 6, second // 6)  # 0, 3 | 6, 9 share a layout and graph
    assert (first != second).any()
    again, other = find_paths(store, config, 0), find_paths(store, config, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], other[0])


def test_without_links_paths_stay_in_their_trajectory(few_layouts):
    store = few_layouts
    store.latents = torch.arange(len(store.positions))[:, None].float()  # no state is met twice
    assert usual_step(store) == 1
    start, goal, steps = find_paths(store, settings(link=0.5), 0)
    assert torch.equal(store.trajectory[start], store.trajectory[goal])
    torch.testing.assert_close(steps, (goal - start).abs().float())  # and backwards
    store.latents = torch.zeros_like(store.latents)
    refused(TrainingError, "no recorded step moves", find_paths, store, settings(), 0)


SIDE, WALL = 4, 1  # 4 x 4 cells, a wall behind column 1
CELLS = SIDE * SIDE


def maze(one_way=False):
    """1 where a step leads from i to j; a one-way door is left in the last row."""
    steps = np.zeros((CELLS, CELLS))
    for cell in range(CELLS):
        row, column = divmod(cell, SIDE)
        if row + 1 < SIDE:
            steps[cell, cell + SIDE] = steps[cell + SIDE, cell] = 1
        if column + 1 < SIDE:
            there = back = column != WALL or row == 0
            if one_way and column == WALL:
                back = row == SIDE - 1
            steps[cell, cell + 1], steps[cell + 1, cell] = there, back
    return steps


def walks(steps, count, length):
    chance, generator = torch.tensor(steps / steps.sum(1, keepdims=True)), seeded(1)
    path = [torch.randint(CELLS, (count,), generator=generator)]
    for _ in range(length - 1):
        path.append(torch.multinomial(chance[path[-1]], 1, generator=generator)[:, 0])
    cells = torch.stack(path, 1).flatten()
    nowhere = torch.zeros(len(cells), 2)
    return store_of([length] * count, codes()[cells], nowhere, Layout.fixed(count)), cells


def codes():
    place = torch.tensor(np.indices((SIDE, SIDE)).reshape(2, -1).T, dtype=torch.float32) / SIDE
    return torch.cat([place, torch.eye(CELLS)], 1)


@pytest.mark.parametrize("one_way", [False, True])
def test_paths_of_a_maze_are_exact(one_way):
    store, cells = walks(maze(one_way), 40, 60)
    start, goal, steps = find_paths(store, settings(), 0)
    wanted = shortest_path(maze(one_way) + maze(one_way).T > 0)[cells[start], cells[goal]]
    assert len(steps) == 128 * 48
    assert (steps.numpy() >= wanted - 1e-5).all()
    # a change of walk costs little, and one is needed per step at the most
    assert (steps.numpy() <= wanted + SHORTEST * (wanted.max() + 2)).all()


@pytest.mark.parametrize("teacher", ["bootstrap", "graph"])
def test_learned_steps_are_shortest_paths(teacher, monkeypatch):
    monkeypatch.setattr(distance_training, "SLOW", 0.95)  # for so few updates
    optim = OptimConfig(updates=800, batch=96, lr=3e-3, weight_decay=0.0, warmup=0.02)
    config = DistanceConfig(
        teacher=teacher, dim=24, hidden=48, n_step=2, gamma=0.995, expectile=0.97, optim=optim
    )
    torch.manual_seed(0)
    head = Distance(config, CELLS + 2)
    for _ in train_distance(head, walks(maze(), 250, 30)[0], None, seed=0):
        pass
    with torch.no_grad():
        found = head(codes()[:, None], codes()[None]).numpy()  # (CELLS, CELLS)
    true, pairs = shortest_path(maze()), ~np.eye(CELLS, dtype=bool)
    assert spearmanr(found[pairs], true[pairs]).statistic > 0.95
    assert np.abs(found - true)[pairs].mean() < 0.6
    beside = np.arange(1, SIDE) * SIDE + WALL  # neighbours in the plane, with and without the wall
    assert (found[beside, beside + 1] > found[beside, beside - 1] + 1).all()
