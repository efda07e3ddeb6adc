"""The temporal-distance head: axioms, its loss, its goals, and shortest paths in small mazes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path
from tiny import digest, make_store, seeded, tiny_config, tiny_data

from hjepa_lib.config import DistanceConfig, OptimConfig
from hjepa_lib.models import checkpoint
from hjepa_lib.models.distance import Distance, distance_terms, update_slow
from hjepa_lib.training.distance import GoalSampler, train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.worlds.layout import Layout

FORMS = ("metric", "quasimetric")


def head_of(form="metric", latent_dim=16, **changes):
    torch.manual_seed(0)
    return Distance(DistanceConfig(form=form, dim=8, hidden=16, **changes), latent_dim)


# --- axioms -----------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
def test_distance_axioms(form, seed, scale):
    """Non-negative, 0 from a point to itself, triangle inequality; symmetric if a metric."""
    a, b, c = scale * torch.randn(3, 20, 8, generator=seeded(seed))
    between = head_of(form).between
    assert (between(a, b) >= 0).all()
    assert between(a, a).max() <= 1e-3 + 1e-9
    # the 1e-3 px floor of the metric form (sqrt(1e-6)) can only add to the right-hand side
    assert (between(a, c) <= between(a, b) + between(b, c) + 1e-4 * scale).all()
    if form == "metric":
        torch.testing.assert_close(between(a, b), between(b, a))
        torch.testing.assert_close(between(a, b), (a - b).norm(dim=-1), atol=1e-3, rtol=1e-5)
    else:
        assert not torch.allclose(between(a, b), between(b, a), rtol=0.01)


def test_the_head_is_the_distance_of_two_embeddings():
    start, goal = torch.randn(2, 5, 16)
    for form in FORMS:
        head = head_of(form)
        found = head(start, goal)
        assert found.shape == (5,)
        assert torch.equal(found, head.between(head.embed(start), head.embed(goal)))
        one_goal = head.between(head.embed(start)[:, None], head.embed(goal)[None])
        torch.testing.assert_close(one_goal.diagonal(), found)
    gap = (head.embed(goal) - head.embed(start)).clamp(min=0)
    torch.testing.assert_close(found, gap.max(-1).values + gap.mean(-1))


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_finite_where_start_and_goal_coincide(form):
    latents = torch.randn(4, 16)
    head = head_of(form)
    head(latents, latents).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


# --- loss -------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_loss_equals_its_formula(form, gamma):
    """Expectile of target - V with V = -d, n-step target, plus the hinge of d(s_t, s_{t+k}) - k."""
    head = head_of(form, gamma=gamma, expectile=0.8)
    slow = head.slow_copy()
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
    assert found.expectile.item() == pytest.approx(np.mean(expectile), rel=1e-4)
    assert found.excess.item() == pytest.approx(np.mean(excess), rel=1e-4)
    assert found.excess > 0


def test_the_slow_copy_follows_the_formula_and_gets_no_gradient():
    head = head_of(ema_rate=0.1)
    slow = head.slow_copy()
    start = [p.clone() for p in slow.parameters()]
    assert digest(slow) == digest(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1.0)
    now, later, goal = torch.randn(3, 6, 16)
    flags = torch.zeros(6, dtype=torch.bool)
    distance_terms(head, slow, now, later, goal, torch.ones(6), flags).expectile.backward()
    assert all(p.grad is None and not p.requires_grad for p in slow.parameters())
    update_slow(slow, head)
    for found, old in zip(slow.parameters(), start, strict=True):
        torch.testing.assert_close(found, old + 0.1)


# --- goals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("future", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_step", [1, 4])
def test_goals_never_cross_trajectories_or_layouts(level1, future, n_step):
    """F6: `later` is 1..n steps ahead in the same trajectory; goals share the layout."""
    store = make_store(level1, tiny_data("random"), limit=12)
    # few layouts, so that other trajectories of the same layout exist
    wall = torch.tensor([25.0, 30.0, 35.0])[torch.arange(12) % 3]
    store.layout = Layout(wall, torch.full((12,), 20.0))
    sampler = GoalSampler(store, n_step, future)
    pick = sampler.sample(4000, seeded(1))
    own = store.trajectory[pick.now]
    assert (store.trajectory[pick.later] == own).all()
    assert torch.equal(pick.later, pick.now + pick.steps)
    assert (pick.steps >= 1).all()
    assert (pick.steps <= n_step).all()
    assert (wall[store.trajectory[pick.goal]] == wall[own]).all()
    assert torch.equal(pick.at_goal, pick.later == pick.goal)
    # the goal is never jumped over: a goal ahead in the same trajectory is reached, not passed
    same = (store.trajectory[pick.goal] == own) & (pick.goal > pick.now)
    assert (pick.later[same] <= pick.goal[same]).all()
    # a shorter step only where the goal or the trajectory ends it
    last = store.starts[own + 1] - 1
    short = pick.steps < n_step
    assert ((pick.later == pick.goal) | (pick.later == last))[short].all()
    share = same.float().mean().item()
    if future == 1:
        assert share == 1
    else:  # some random goals lie ahead in their own trajectory too
        assert future - 0.05 < share < future + 0.3
        assert len(store.trajectory[pick.goal].unique()) == 12
    # every state with a successor is drawn, no last state ever is
    drawn = sampler.usable
    assert len(drawn) == len(store.positions) - 12
    assert not torch.isin(store.starts[1:] - 1, pick.now).any()


# --- learning ---------------------------------------------------------------------------------
def tabular(walks, states):
    """A store of trajectories (R, L) of state numbers; latents are one-hot."""
    count, length = walks.shape
    store = LatentStore.__new__(LatentStore)
    store.lengths = torch.full((count,), length)
    store.starts = torch.arange(count + 1) * length
    store.trajectory = torch.arange(count).repeat_interleave(length)
    store.latents = torch.eye(states)[walks.flatten()]
    store.positions = torch.zeros(count * length, 2)
    store.layout = Layout.fixed(count)
    return store


def random_walks(neighbours, count=200, length=40):
    chance = neighbours / neighbours.sum(1, keepdim=True)
    generator = seeded(0)
    state = torch.randint(len(chance), (count,), generator=generator)
    walk = [state]
    for _ in range(length - 1):
        walk.append(torch.multinomial(chance[walk[-1]], 1, generator=generator)[:, 0])
    return torch.stack(walk, 1)


def learn(neighbours, form, teacher="bootstrap"):
    """Matrices of learned and of shortest distances between all pairs of states."""
    states = len(neighbours)
    optim = OptimConfig(updates=700, batch=96, lr=3e-3, weight_decay=0, warmup=0.02)
    config = DistanceConfig(
        form=form, teacher=teacher, dim=16, hidden=32, n_step=1, gamma=0.99, expectile=0.98,
        ema_rate=0.05, optim=optim,
    )  # fmt: skip
    torch.manual_seed(0)
    head = Distance(config, states)
    for _ in train_distance(head, tabular(random_walks(neighbours), states), None, config, seed=0):
        pass
    every = torch.eye(states)
    with torch.no_grad():
        found = head(every[:, None], every[None]).numpy()
    return found, shortest_path(neighbours.numpy())


def maze():
    """Rooms of a 3 x 4 snake: neighbours in the plane may be 7 steps apart."""
    neighbours = torch.zeros(12, 12)
    for i in range(11):
        neighbours[i, i + 1] = neighbours[i + 1, i] = 1
    return neighbours


def grid(side=4):
    """A 4 x 4 grid with a wall between the middle columns, open in the first row only."""
    neighbours = torch.zeros(side * side, side * side)
    for row in range(side):
        for column in range(side):
            here = row * side + column
            if row + 1 < side:
                neighbours[here, here + side] = neighbours[here + side, here] = 1
            if column + 1 < side and (column != 1 or row == 0):
                neighbours[here, here + 1] = neighbours[here + 1, here] = 1
    return neighbours


@pytest.mark.parametrize("teacher", ["bootstrap", "graph"])
@pytest.mark.parametrize(("rooms", "form"), [(maze(), "metric"), (grid(), "quasimetric")])
def test_shortest_paths_are_learned_from_random_walks(rooms, form, teacher):
    """Never-seen long pairs included: correlation > .98 and less than half a step of mean error."""
    found, wanted = learn(rooms, form, teacher)
    pairs = ~np.eye(len(found), dtype=bool)
    assert np.corrcoef(found[pairs], wanted[pairs])[0, 1] > 0.98
    assert np.abs(found - wanted)[pairs].mean() < 0.5


@pytest.mark.parametrize("teacher", ["bootstrap", "graph"])
def test_one_way_streets_need_the_quasimetric(teacher):
    """On a directed ring one step back takes a whole round: the asymmetric form can say so."""
    ring = torch.roll(torch.eye(6), 1, dims=1)
    found, wanted = learn(ring, "quasimetric", teacher)
    forward, back = (
        found[np.arange(6), (np.arange(6) + 1) % 6],
        found[(np.arange(6) + 1) % 6, np.arange(6)],
    )
    assert wanted[1, 0] == 5
    assert back.mean() > 2 * forward.mean()
    assert forward.mean() < 1.5


# --- checkpoint -------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
def test_round_trip(form, tmp_path):
    head = head_of(form)
    checkpoint.save_distance(tmp_path, head, 16)
    torch.manual_seed(5)
    loaded = checkpoint.load_distance(tmp_path)
    assert loaded.config == head.config
    start, goal = torch.randn(2, 7, 16)
    assert torch.equal(loaded(start, goal), head(start, goal))


def test_validation_compares_with_recorded_steps(store):
    """Calibration, not a loss: recorded steps bound the true distance from above."""
    config = tiny_config().distance
    head = head_of()
    fit = train_distance(head, store, store, config, seed=0)
    report = list(fit)[-1].validation
    wanted = {"expectile", "excess", "recorded_steps", "predicted_steps", "overestimated"}
    assert report.keys() == wanted
    assert all(math.isfinite(value) for value in report.values())
    assert 0 <= report["overestimated"] <= 1
    assert 1 <= report["recorded_steps"] <= 90
