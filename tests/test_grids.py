"""The shipped experiment grids are what their names say; their plots show the table's numbers."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from test_summary import floors, result
from tiny import tiny_normaliser

from hjepa_lib.config import ConfigError
from hjepa_lib.data.recipes import generate
from hjepa_lib.data.windows import Windows
from hjepa_lib.files import write_json
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.models.level2 import Level2
from hjepa_lib.workbench import sweep
from hjepa_lib.workbench.compare import with_epochs

CONFIGS = Path(sweep.__file__).parent / "configs"
GRIDS = {
    "horizon": [5, 8, 24, 48, 96, 192],
    "data": [634, 1269, 5078, 20312, 81250, 325000, 1500000, 3000000],
    "size": ["2M L1", "2M L1+L2", "6M L1", "6M L1+L2"],
    "epochs": [5, 25, 75, 200, 1000],
    "replan": [1, 2, 4, 8, 16, 32],
    "jepa_tuning": [
        "default", "EMA 0.99", "EMA 0.999", "lr 1e-5", "lr 1e-3", "D 64", "D 256", "depth 2",
        "depth 6",
    ],
}  # fmt: skip
SEEDS = [0, 1, 2]


def cells(name):
    return sweep.read_study(CONFIGS / f"grid_{name}.yaml").cells


def test_every_shipped_grid_is_tested():
    assert {path.stem for path in CONFIGS.glob("grid_*.yaml")} == {f"grid_{name}" for name in GRIDS}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_build_and_sweep_their_values(name):
    """Three seeds each, on validation trials: the test file is not for choosing settings."""
    study = sweep.read_study(CONFIGS / f"grid_{name}.yaml")
    assert study.name == f"grid-{name}"
    (key,) = study.cells[0].swept.keys() - {"seed"}
    assert list(dict.fromkeys(cell.swept[key] for cell in study.cells)) == GRIDS[name]
    assert len(study.cells) == len(GRIDS[name]) * len(SEEDS)
    assert {cell.config.seed for cell in study.cells} == set(SEEDS)
    assert all(cell.config.evaluation.split == "validation" for cell in study.cells)
    assert "/" in study.cells[0].name  # a folder below the study's


def test_horizon_is_the_reach_of_both_levels():
    for cell in cells("horizon"):
        planning, skip = cell.config.planning, cell.config.level2.step_skip
        assert planning.flat.horizon == cell.swept["horizon"]
        assert planning.hierarchy.level2.horizon == -(-cell.swept["horizon"] // skip)


def test_replan_intervals_are_executed_whole():
    for cell in cells("replan"):
        planning = cell.config.planning
        assert planning.replan == planning.hierarchy.replan == cell.swept["replan"]
        for level in (planning.flat, planning.hierarchy.tracker):
            assert level.horizon >= planning.replan


def test_data_sizes_are_trained_equally_long_and_can_be_validated():
    updates = {
        (cell.config.level1.optim.updates, cell.config.level1.optim.batch) for cell in cells("data")
    }
    assert len(updates) == 1
    for cell in cells("data"):
        config = cell.config
        if config.data.transitions > 5078:
            continue
        data = generate("good", config.data.transitions, seed=config.seed)
        macro = config.level2.macro_steps * config.level2.step_skip + 1
        for part in data.split(config.data.val_fraction, config.seed):
            assert len(Windows(part, config.level1.window)) > 0
            assert len(Windows(part, macro)) > 0


def test_epochs_are_passes_over_the_windows(tmp_path):
    for cell in cells("epochs"):
        assert cell.config.data.transitions == 5078
        wanted = with_epochs(cell.config, cell.swept["epochs"], tmp_path)
        assert cell.config == wanted


def test_size_pairs_match_within_2_percent():
    found, normaliser = {}, tiny_normaliser()
    with torch.device("meta"):  # shapes only
        for cell in cells("size")[:: len(SEEDS)]:
            config = cell.config
            model = Jepa(config.level1, normaliser)
            parts = [model]
            if not config.level2.disable_l2:
                parts.append(Level2(config.level2, model.latent_dim))
            found[cell.swept["size"]] = sum(p.numel() for part in parts for p in part.parameters())
    assert found == {
        "2M L1": 2_199_106, "2M L1+L2": 2_229_858, "6M L1": 5_947_266, "6M L1+L2": 5_919_842,
    }  # fmt: skip
    for size, reference in (("2M", 2_218_672), ("6M", 5_912_752)):  # PLDM's and 003's models
        one, two = found[f"{size} L1"], found[f"{size} L1+L2"]
        assert abs(one - two) / one < 0.02
        assert abs(one - reference) / reference < 0.02


# --- labelled choices -------------------------------------------------------------------------
def read(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text("base: {profile: smoke}\n" + text)
    return sweep.read_study(path)


def test_labels_change_several_settings_at_once(tmp_path):
    text = "grid: {level1.width: [8, 16], both: {a: {level1: {hidden: 32}, seed: 3}, 7: {}}}\n"
    with pytest.raises(ConfigError, match=r"unknown setting 'level1\.widht'"):
        read(tmp_path, text.replace("hidden", "widht"))
    study = read(tmp_path, text + "seeds: [0]")
    assert [(cell.swept["level1.width"], cell.swept["both"]) for cell in study.cells] == [
        (8, "a"), (8, 7), (16, "a"), (16, 7),
    ]  # fmt: skip
    assert [cell.config.level1.hidden for cell in study.cells] == [32, 64, 32, 64]
    assert {cell.config.seed for cell in study.cells} == {0}
    assert study.cells[0].name.startswith("grid/width=8-both=a-s0-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {level1.width: {a: {}}}", "needs a name that is no setting"),
        ("grid: {method: {a: {}}}", "no column of the table"),
        ("grid: {both: {}}", "must be a list with at least one value, or labels"),
        ("grid: {both: {a: 3}}", "must be a mapping of settings, got 3"),
    ],
)
def test_wrong_labels_are_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


# --- plots ------------------------------------------------------------------------------------
def test_sweep_writes_a_plot_beside_its_table(tmp_path, monkeypatch):
    grid = "grid: {planning.flat.horizon: [4, 8], level1.width: [8]}\nseeds: [0, 1]"
    study = read(tmp_path, grid)
    root = tmp_path / "outputs"
    for cell in study.cells:
        write_json(root / cell.name / "summary.json", {"results": [*floors(), result()]})
    finished = {root / cell.name for cell in study.cells}
    monkeypatch.setattr(sweep, "is_finished", lambda path, notebooks: path in finished)
    ended = [sweep.Outcome(cell.name, "") for cell in study.cells]
    path = sweep.write_tables(study, root, [], ended)
    assert len(pd.read_csv(path)) == 12
    assert [file.name for file in path.parent.glob("*.png")] == ["success_by_horizon.png"]
    back = pd.read_csv(path)  # where the cost of the floors is NaN
    (again,) = sweep.write_figures(back, ["planning.flat.horizon", "level1.width"], tmp_path)
    assert again.name == "success_by_horizon.png"
    finished.clear()
    path = sweep.write_tables(study, root, [], ended)
    assert len(pd.read_csv(path)) == 0
