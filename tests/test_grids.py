import functools

import pytest
import torch
from tiny import tiny_normaliser

from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.workbench import CONFIGS
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.variants import with_epochs

SEEDS = (0, 1, 2)
read = functools.cache(lambda name: read_experiment(CONFIGS / f"{name}.yaml"))


def units(name):
    return read(f"grid_{name}").units


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("grid_*.yaml")))
def test_grids_are_swept_with_three_seeds_on_validation_trials(name):
    experiment = read(name)
    found = experiment.units
    assert experiment.name == name.replace("_", "-", 1)
    (cell,) = {unit.cell.name: unit.cell for unit in found}.values()
    assert cell.seeds == SEEDS and len(found[0].model.swept) == 1
    assert len(found) == len(SEEDS) * len({str(unit.model.swept) for unit in found})
    split = "validation" if cell.notebooks else "test"  # grids of colours plan nothing
    assert all(unit.config.evaluation.split == split for unit in found)


def test_horizon_is_the_reach_of_both_levels():
    for unit in units("horizon"):
        planning, skip = unit.config.planning, unit.config.level2.step_skip
        assert planning.flat.horizon == unit.model.swept["horizon"]
        assert planning.hierarchy.level2.horizon == -(-unit.model.swept["horizon"] // skip)


def test_replan_intervals_are_executed_whole():
    for unit in units("replan"):
        planning = unit.config.planning
        assert planning.replan == planning.hierarchy.replan == unit.model.swept["replan"]
        for level in (planning.flat, planning.hierarchy.tracker):
            assert level.horizon >= planning.replan


def test_data_sizes_are_trained_equally_long_and_can_be_validated():
    configs = [unit.config for unit in units("data")]
    assert len({(c.level1.optim.updates, c.level1.optim.batch) for c in configs}) == 1
    config = min(configs, key=lambda one: one.data.transitions)  # of the first seed
    data = generate("good", config.data.transitions, seed=config.seed)
    macro = config.level2.macro_steps * config.level2.step_skip + 1
    for part in data.split(config.data.val_fraction, config.seed):
        assert len(Windows(part, config.level1.window)) > 0 and len(Windows(part, macro)) > 0


def test_epochs_are_passes_over_the_windows():
    for unit in units("epochs")[:: len(SEEDS)]:
        assert unit.config.data.transitions == 5078
        wanted = with_epochs(unit.config, unit.model.swept["epochs"])
        assert unit.config == unit.config.override(wanted)


def test_size_pairs_match_within_2_percent():
    found, normaliser = {}, tiny_normaliser()
    with torch.device("meta"):  # shapes only
        for unit in units("size")[:: len(SEEDS)]:
            config = unit.config
            model = Jepa(config.level1, normaliser)
            parts = [model]
            if not config.level2.disable_l2:
                parts.append(Level2(config.level2, model.latent_dim))
            count = sum(p.numel() for part in parts for p in part.parameters())
            found[unit.model.swept["size"]] = count
    for size, reference in (("2M", 2_218_672), ("6M", 5_912_752)):  # PLDM's and 003's models
        one, two = found[f"{size} L1"], found[f"{size} L1+L2"]
        assert abs(one - two) / one < 0.02
        assert abs(one - reference) / reference < 0.02
