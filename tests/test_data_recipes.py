"""Generated data: exact sizes, seeds, published statistics, physics, and bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import seeded

from hjepa_lib.data.measures import PUBLISHED, crosses, describe
from hjepa_lib.data.recipes import RECIPES, SIZES, free_starts, generate
from hjepa_lib.worlds.layout import Layout, layout_set
from hjepa_lib.worlds.two_rooms import inside, step


@pytest.mark.parametrize("transitions", [SIZES[0], SIZES[3], 1, 89, 90, 91])
def test_sizes_are_exact(transitions):
    """PL12: whole trajectories plus one truncated last one, whatever the number."""
    data = generate("good", transitions)
    assert data.transitions == transitions == data.meta["transitions"]
    assert (data.lengths[:-1] == 91).all() and 2 <= int(data.lengths[-1]) <= 91
    assert len(data.positions) == transitions + data.count


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "navigate"])
def test_states_follow_from_actions_inside_free_space(recipe):
    dynamics = "slide" if recipe == "good" else "blocked"
    data = generate(recipe, 2_079, "random", seed=2, dynamics=dynamics)
    states = {"short17": 17, "short33": 33, "short65": 65, "eb_jepa": 17}.get(recipe, 91)
    assert data.transitions == 2_079 and (data.lengths[:-1] == states).all()
    last = data.lengths.cumsum(0) - 1
    layout = data.layouts().index(torch.arange(data.count).repeat_interleave(data.lengths))
    assert inside(data.positions, layout).all()
    moves = torch.ones(len(data.positions), dtype=torch.bool)
    moves[last] = False
    before, action = data.positions[moves], data.actions[moves]
    expected = step(before, action, layout.index(moves), dynamics)
    assert torch.equal(expected, data.positions.roll(-1, 0)[moves])
    assert (data.actions[last] == 0).all()


_LARGE = """
import resource
from hjepa_lib.data.recipes import generate
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
generate("good", 100)
before = peak()
data = generate("good", 1_000_000, "random")
assert data.transitions == 1_000_000
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in KiB")
def test_a_million_transitions_fit_in_100_mb():
    """PL12: bounded memory (the peer held one 31 GB array)."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", _LARGE], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


@pytest.mark.parametrize("recipe", ["good", "eb_jepa"])
def test_equal_arguments_give_equal_data(recipe):
    """EB5 and PL2: everything follows from the seed; global generators are not touched."""
    arguments = (recipe, 3_000, "random")
    first, state = generate(*arguments, seed=7), torch.random.get_rng_state()
    assert generate(*arguments, seed=7).hash() == first.hash()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert generate(*arguments, seed=8).hash() != first.hash()
    noisy = [generate(*arguments, seed=7, dynamics="bounce").hash() for _ in range(2)]
    assert noisy[0] == noisy[1] != first.hash()
    silent = generate(*arguments, seed=7, dynamics="bounce", noise=0.0)
    assert silent.hash() == generate(*arguments, seed=7, dynamics="slide").hash()
    for name in ("dynamics", "layouts"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            generate("good", 100, **{name: "elastic"})


BANDS = {
    "good": (0.05, 0.06, 1.5, 0.012, 0.012, 0.005, 0.004, 0.03),
    "random": (0.06, 0.05, 0.7, 0.015),
}


@pytest.mark.parametrize("recipe", BANDS)
def test_reference_statistics(recipe):
    """Section 2, measured on one public batch of 512; the bands are about 3 of its errors."""
    found = describe(generate(recipe, 90 * 2048, seed=0))
    for (name, value), band in zip(PUBLISHED[recipe].items(), BANDS[recipe], strict=True):
        assert found[name] == pytest.approx(value, abs=band), name


def heading_turns(actions):
    """Mean cosine of heading changes of (L, 2) actions: about 0.9 for good, 0 for random ones."""
    return float(torch.atan2(*actions.T.flip(0)).diff().cos().mean())


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_good_trajectories_of_a_mixture_are_trained_on(seed):
    """D1: exactly the asked share; the marks and the split into parts are drawn apart."""
    data = generate("mixture", 90 * 400, seed=seed, good_fraction=0.1)
    assert data.meta["good_fraction"] == 0.1
    good = [
        sum(heading_turns(part.one(row)[1]) > 0.5 for row in range(part.count))
        for part in data.split(0.1, seed)
    ]
    assert sum(good) == 40 and good[0] > 25


def test_crossings_are_those_of_the_layout_of_the_trajectory():
    shares = {}
    for recipe in ("good", "no_crossing"):
        data = generate(recipe, 90 * 300, "random")
        assert len(data.layout.unique(dim=0)) > 200
        shares[recipe] = crosses(data.positions.reshape(300, 91, 2), data.layouts()).float().mean()
    assert shares["good"] > 0.27 and shares["no_crossing"] == 0


def test_training_layouts_only():
    """EB6: no generated trajectory uses a held-out layout."""
    for name, ranges in (("random", ("", "")), ("rectangle", ("28-36", "26-38"))):
        data = generate("good", 90 * 1000, name, 0, "blocked", 0.02, *ranges)
        allowed = {tuple(row) for row in layout_set(name, *ranges).tolist()}
        assert {tuple(row) for row in data.layout.tolist()} <= allowed
    data = generate("good", 500, np.array([[40, 20]]))
    assert data.layout.unique(dim=0).tolist() == [[40, 20]] and data.meta["layouts"] == "custom"


def test_starts_in_the_wall_are_moved_to_both_sides():
    buried = torch.tensor([[32.0, 40.0]]).repeat(400, 1)
    layout = Layout.fixed(400)
    moved = free_starts(buried, layout, seeded())
    assert inside(moved, layout).all() and (moved[:, 1] == 40).all()
    assert 0.4 < (moved[:, 0] < 32).float().mean() < 0.6
    door = torch.tensor([[32.0, 10.0]])
    assert torch.equal(free_starts(door, Layout.fixed(), seeded()), door)
