"""Generated data: exact sizes, seeds, published statistics, physics, and the reference file."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hjepa_lib.data.measures import crosses, describe
from hjepa_lib.data.recipes import (
    EXPERT_STEP,
    RECIPES,
    SIZES,
    free_starts,
    generate,
    step_lengths,
    von_mises,
)
from hjepa_lib.worlds.layout import Layout, layout_set
from hjepa_lib.worlds.two_rooms import inside, simulate, step


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("transitions", [*SIZES[:6], 1, 89, 90, 91])
def test_sizes_are_exact(transitions):
    """PL12: whole trajectories plus one truncated last one, whatever the number."""
    data = generate("good", transitions)
    assert data.transitions == transitions == data.meta["transitions"]
    assert (data.lengths[:-1] == 91).all() and 2 <= int(data.lengths[-1]) <= 91
    assert len(data.positions) == transitions + data.count


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_at_an_awkward_size(recipe):
    data = generate(recipe, 5_079, "random", seed=1)
    assert data.transitions == 5_079
    states = {"short17": 17, "short33": 33, "short65": 65, "eb_jepa": 17}.get(recipe, 91)
    assert (data.lengths[:-1] == states).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dynamics", ["blocked", "slide"])
def test_states_follow_from_actions_inside_free_space(recipe, dynamics):
    data = generate(recipe, 8_000, "random", seed=2, dynamics=dynamics)
    last = data.lengths.cumsum(0) - 1
    layout = data.layouts().index(torch.arange(data.count).repeat_interleave(data.lengths))
    assert inside(data.positions, layout).all()
    moves = torch.ones(len(data.positions), dtype=torch.bool)
    moves[last] = False
    after = data.positions.roll(-1, 0)[moves]
    before, action = data.positions[moves], data.actions[moves]
    expected = step(before, action, layout.index(moves), dynamics)
    assert torch.equal(expected, after)
    assert (data.actions[last] == 0).all()


_LARGE = """
import resource
from hjepa_lib.data.recipes import generate
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
generate("good", 100)
before = peak()
data = generate("good", 3_000_000, "random")
assert data.transitions == 3_000_000
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in KiB")
def test_three_million_transitions_fit_in_300_mb():
    """PL12: bounded memory (the peer held one 31 GB array)."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300


def test_equal_arguments_give_equal_data():
    """EB5 and PL2: everything follows from the seed; global generators are not touched."""
    arguments = ("good", 3_000, "random")
    first = generate(*arguments, seed=7)
    torch.rand(5), np.random.rand(5)
    state = torch.random.get_rng_state()
    assert generate(*arguments, seed=7).hash() == first.hash()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generate(*arguments, seed=8).hash() != first.hash()
    noisy = [generate(*arguments, seed=7, dynamics="bounce").hash() for _ in range(2)]
    assert noisy[0] == noisy[1] != first.hash()
    silent = generate(*arguments, seed=7, dynamics="bounce", noise=0.0)
    assert silent.hash() == generate(*arguments, seed=7, dynamics="slide").hash()


def test_reference_statistics_good():
    """Section 2, measured on one public batch of 512; the bands are about 3 of its errors."""
    found = describe(generate("good", 90 * 4096, seed=0), limit=4096)
    assert found["crossing_rate"] == pytest.approx(0.369, abs=0.05)
    assert found["sides_differ_rate"] == pytest.approx(0.34, abs=0.06)
    assert found["spread_px"] == pytest.approx(31.0, abs=1.5)
    assert found["action_std_x"] == pytest.approx(0.756, abs=0.012)
    assert found["action_std_y"] == pytest.approx(0.743, abs=0.012)
    assert found["step_mean_px"] == pytest.approx(1.00, abs=0.005)
    assert found["step_std_px"] == pytest.approx(0.351, abs=0.004)
    assert found["blocked_rate"] == pytest.approx(0.27, abs=0.03)


def test_reference_statistics_random():
    found = describe(generate("random", 90 * 4096, seed=0), limit=4096)
    assert found["crossing_rate"] == pytest.approx(0.441, abs=0.06)
    assert found["sides_differ_rate"] == pytest.approx(0.268, abs=0.05)
    assert found["spread_px"] == pytest.approx(12.5, abs=0.7)
    assert found["blocked_rate"] == pytest.approx(0.04, abs=0.015)


def test_mixture_holds_exactly_the_asked_share_of_good_trajectories():
    def turning(data):  # mean cosine of heading changes: about 0.9 for good, 0 for random
        action = data.actions.reshape(-1, 91, 2)[:, :-1]
        heading = torch.atan2(action[..., 1], action[..., 0])
        return (heading[:, 1:] - heading[:, :-1]).cos().mean(1)

    for fraction in (0.0, 0.08, 1.0):
        data = generate("mixture", 90 * 300, good_fraction=fraction)
        assert int((turning(data) > 0.5).sum()) == int(fraction * 300)
        assert data.meta["good_fraction"] == fraction


def test_no_crossing_never_crosses():
    data = generate("no_crossing", 90 * 300, "random")
    positions = data.positions.reshape(300, 91, 2)
    assert not crosses(positions, data.layouts()).any()
    good = generate("good", 90 * 300, "random")
    assert crosses(good.positions.reshape(300, 91, 2), good.layouts()).float().mean() > 0.25


def test_door_crossings_use_the_layout_of_the_trajectory():
    data = generate("good", 90 * 1000, "random")
    layout = data.layouts()
    assert len(data.layout.unique(dim=0)) > 500
    assert crosses(data.positions.reshape(1000, 91, 2), layout).float().mean() > 0.28


def test_expert_walks_straight_lines_at_its_step_and_is_never_blocked():
    data = generate("expert", 90 * 100, "random")
    action = data.actions.reshape(100, 91, 2)[:, :-1]
    assert float(action.norm(dim=-1).max()) <= EXPERT_STEP + 1e-5
    assert float(action.norm(dim=-1).median()) == pytest.approx(EXPERT_STEP, abs=1e-5)
    assert describe(data)["blocked_rate"] < 0.02
    assert 0.45 < describe(data)["crossing_rate"] < 0.75


def test_training_layouts_only():
    """EB6: no generated trajectory uses a held-out layout."""
    for name, ranges in (("random", ("", "")), ("rectangle", ("28-36", "26-38"))):
        data = generate("good", 90 * 2000, name, 0, "blocked", 0.02, *ranges)
        held = "rectangle_heldout" if name == "rectangle" else "test"
        used = {tuple(row) for row in data.layout.tolist()}
        assert not used & {tuple(row) for row in layout_set(held, *ranges).tolist()}
        assert used <= {tuple(row) for row in layout_set(name, *ranges).tolist()}


def test_a_custom_layout_array_is_used():
    data = generate("good", 500, np.array([[40, 20]]))
    assert data.layout.unique(dim=0).tolist() == [[40, 20]] and data.meta["layouts"] == "custom"


@pytest.mark.parametrize("kappa", [1e-6, 5.0])
def test_von_mises_moments(kappa):
    angle = von_mises(kappa, (200_000,), seeded())
    # E cos = I1(kappa) / I0(kappa); Bessel functions from torch.
    k = torch.tensor(kappa, dtype=torch.float64)
    expected = float(torch.special.i1(k) / torch.special.i0(k))
    assert float(angle.cos().mean()) == pytest.approx(expected, abs=0.005)
    assert float(angle.sin().mean()) == pytest.approx(0, abs=0.006)
    assert float(angle.abs().max()) <= math.pi + 1e-6


def test_step_lengths_are_a_truncated_normal():
    length = step_lengths((200_000,), seeded())
    assert float(length.min()) >= 0.2 and float(length.max()) <= 1.8
    assert float(length.mean()) == pytest.approx(1.0, abs=0.003)
    assert float(length.std()) == pytest.approx(0.352, abs=0.002)


def test_starts_in_the_wall_are_moved_to_both_sides():
    buried = torch.tensor([[32.0, 40.0]]).repeat(400, 1)
    layout = Layout.fixed(400)
    moved = free_starts(buried, layout, seeded())
    assert inside(moved, layout).all() and (moved[:, 1] == 40).all()
    assert 0.4 < (moved[:, 0] < 32).float().mean() < 0.6
    door = torch.tensor([[32.0, 10.0]])
    assert torch.equal(free_starts(door, Layout.fixed(), seeded()), door)


def test_simulate_returns_every_state():
    start, actions = torch.tensor([[20.0, 20.0]]), torch.ones(1, 3, 2)
    positions = simulate(start, actions, Layout.fixed(), "blocked")
    assert positions[0].tolist() == [[20, 20], [21, 21], [22, 22], [23, 23]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "best"}, "recipe must be one of"),
        ({"dynamics": "elastic"}, "dynamics must be one of"),
        ({"layouts": "square"}, "layouts must be one of"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"recipe": "good", "transitions": 100, **change})


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_good_trajectories_of_a_mixture_are_trained_on(seed):
    """D1: the marks and the split into training and validation are drawn apart."""
    data = generate("mixture", 90 * 400, seed=seed, good_fraction=0.1)
    turns = []
    for part in data.split(0.1, seed):
        headings = [torch.atan2(*part.one(row)[1].T.flip(0)).diff() for row in range(part.count)]
        turns.append(sum(float(turn.cos().mean()) > 0.5 for turn in headings))
    assert sum(turns) == 40 and turns[0] > 25
