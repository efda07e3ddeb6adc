"""Shortest paths among recorded states, the teacher `graph` of the distance head (paths.py)."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path
from scipy.stats import spearmanr
from test_distance import grid, maze, random_walks, tabular
from tiny import digest, make_store, tiny_config, tiny_data

from hjepa_lib.config import DistanceConfig
from hjepa_lib.data.recipes import generate
from hjepa_lib.models.distance import Distance
from hjepa_lib.training.distance import train_distance
from hjepa_lib.training.latents import LatentStore
from hjepa_lib.training.paths import SHORTEST, find_paths, join_states, usual_step
from hjepa_lib.worlds.layout import Layout
from hjepa_lib.worlds.two_rooms import oracle_length


def settings(**changes):
    return DistanceConfig(teacher="graph", **changes)


def placed(layouts, per_layout, seed=0):
    """A store whose latents are true positions: good trajectories in the given layouts."""
    pool = np.asarray(layouts, np.int16)
    data = generate("good", 90 * per_layout * len(pool), pool, seed=seed)
    store = LatentStore.__new__(LatentStore)
    store.lengths = torch.as_tensor(data.lengths)
    store.starts = torch.cat([store.lengths.new_zeros(1), store.lengths.cumsum(0)])
    store.trajectory = torch.arange(len(store.lengths)).repeat_interleave(store.lengths)
    store.positions = store.latents = torch.as_tensor(data.positions)
    store.layout = Layout(*torch.as_tensor(data.layout, dtype=torch.float32).unbind(-1))
    return store


@pytest.mark.parametrize("rooms", [maze(), grid(), torch.roll(torch.eye(6), 1, dims=1)])
@pytest.mark.parametrize("form", ["metric", "quasimetric"])
def test_paths_of_a_maze_are_exact(rooms, form):
    """All walks together know each corridor; a one-way street is one for the asymmetric form."""
    walks = random_walks(rooms, count=40, length=60)
    store = tabular(walks, len(rooms))
    pairs = find_paths(store, settings(form=form), 0)
    both = rooms + rooms.T if form == "metric" else rooms
    wanted = shortest_path(both.numpy() > 0)[
        walks.flatten()[pairs.start], walks.flatten()[pairs.goal]
    ]
    # a change of walk costs next to nothing, and one is needed per step at the most
    slack = SHORTEST * (wanted.max() + 2)
    assert len(pairs.steps) == 128 * 48
    assert (pairs.steps.numpy() >= wanted - 1e-5).all()
    assert (pairs.steps.numpy() <= wanted + slack).all()


def test_edges_are_recorded_steps_and_short_gaps():
    latents = torch.tensor([[0.0], [2.0], [4.0], [4.5], [9.0], [0.5]])
    graph = join_states(latents, torch.tensor([0, 0, 0, 1, 1, 1]), 0.5, 2.0).toarray()
    wanted = np.zeros((6, 6))
    wanted[[0, 1, 3, 4], [1, 2, 4, 5]] = 1  # recorded, one way
    wanted[2, 3] = wanted[3, 2] = wanted[0, 5] = wanted[5, 0] = 0.25  # a gap of 0.5, a step is 2
    np.testing.assert_allclose(graph, wanted)


def test_paths_go_round_the_wall():
    """The lengths follow the oracle's in every layout, in the other room too; none cuts through."""
    store = placed([(32, 10), (22, 50), (40, 30)], per_layout=40)
    assert 0.7 < usual_step(store) < 1.1  # px: the data's steps average about 1
    pairs = find_paths(store, settings(), 0)
    own = store.trajectory[pairs.start]
    layout = store.layout.index(own)
    number = store.layout.numbers()
    assert torch.equal(number[own], number[store.trajectory[pairs.goal]])
    start, goal = store.positions[pairs.start], store.positions[pairs.goal]
    truth = oracle_length(start, goal, layout).numpy()
    other = ((start[:, 0] < layout.wall_x) != (goal[:, 0] < layout.wall_x)).numpy()
    steps = pairs.steps.numpy()
    assert other.mean() > 0.2
    assert spearmanr(steps, truth).statistic > 0.93
    assert spearmanr(steps[other], truth[other]).statistic > 0.93
    far = truth > 5
    assert (steps[far] < 0.5 * truth[far]).mean() < 0.002
    straight = (start - goal).norm(dim=-1).numpy()
    behind = other & (truth > 3 * straight)  # close to each other, with the wall between them
    assert behind.sum() > 20
    assert (steps[behind] > 1.5 * straight[behind]).mean() > 0.99


def test_a_graph_holds_few_trajectories_of_one_layout(level1):
    """F6: no path between layouts, nor beyond `graph_trajectories`; seeds decide the pairs."""
    store = make_store(level1, tiny_data("random"), limit=12)
    wall = torch.tensor([25.0, 30.0, 35.0])[torch.arange(12) % 3]
    store.layout = Layout(wall, torch.full((12,), 20.0))
    config = settings(graph_trajectories=2, link=1e9)  # everything in a graph is joined
    pairs = find_paths(store, config, 0)
    first, second = store.trajectory[pairs.start], store.trajectory[pairs.goal]
    assert torch.equal(wall[first], wall[second])
    assert torch.equal(first // 6, second // 6)  # trajectories 0, 3 | 6, 9 share a layout and graph
    assert (first != second).any()
    again, other = find_paths(store, config, 0), find_paths(store, config, 1)
    assert all(torch.equal(a, b) for a, b in zip(pairs, again, strict=True))
    assert not torch.equal(pairs.start, other.start)


def test_without_links_paths_stay_in_their_trajectory(level1):
    store = make_store(level1, tiny_data("random"), limit=12)
    store.latents = torch.arange(len(store.positions))[:, None].float()  # no state is met twice
    pairs = find_paths(store, settings(link=0.5, form="quasimetric"), 0)
    assert torch.equal(store.trajectory[pairs.start], store.trajectory[pairs.goal])
    assert (pairs.goal >= pairs.start).all()
    torch.testing.assert_close(pairs.steps, (pairs.goal - pairs.start).float())


def test_states_that_never_move_teach_nothing(level1):
    store = make_store(level1, tiny_data("random"), limit=2)
    store.latents = torch.zeros_like(store.latents)
    with pytest.raises(ValueError, match="no recorded step moves"):
        find_paths(store, settings(), 0)


def test_training_follows_the_teacher(level1):
    """The same seed gives the same head; settings of the bootstrap do not act, those here do."""
    store = make_store(level1, tiny_data("fixed"), limit=12)

    def trained(**changes):
        config = settings(optim=tiny_config().distance.optim, hidden=16, dim=8, **changes)
        torch.manual_seed(0)
        head = Distance(config, store.latents.shape[1])
        last = list(train_distance(head, store, store, config, seed=0))[-1]
        assert last.validation.keys() == {"recorded_steps", "predicted_steps", "overestimated"}
        assert last.terms.keys() >= {"path_error"}
        return digest(head)

    base = trained()
    assert base == trained() == trained(n_step=2, gamma=0.5, ema_rate=0.5, future_goals=0.1)
    assert base not in (trained(link=3.0), trained(graph_trajectories=1))
