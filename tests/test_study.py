"""Studies: the grid file, rows and their identity, resume, trainings that are taken over."""

import copy
import csv
import shutil

import pytest
import yaml
from tiny import OVERRIDES

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.files import FileError
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import study
from hjepa_lib.workbench.rows import check_rows, load_rows, unpack_solved
from hjepa_lib.workbench.studyfile import read_grid
from hjepa_lib.workbench.studyrow import agreeing_stages
from hjepa_lib.workbench.studytable import KEY, Table, describe_list, list_cells

# A training knows nothing of planning or trials: those belong to the cells.
TRAINING = {k: v for k, v in OVERRIDES.items() if not k.startswith(("planning.", "evaluation."))}
PLANNING = {
    key.removeprefix("planning."): value
    for key, value in OVERRIDES.items()
    if key.startswith("planning.")
}
FLAT = {
    "name": "flat", "group": "p1", "recipe": "base", "method": "flat", "cost": "latent",
    "minutes": 1,
}  # fmt: skip
TREE = {
    "name": "little",
    "profile": "smoke",
    "recipes": {
        "base": {"minutes": 3, "settings": TRAINING},
        "skip2": {"from": "base", "minutes": 1, "settings": {"level2.step_skip": 2}},
    },
    "defaults": {
        "protocol": "p1", "split": "validation", "trials": 3, "steps": 6, "seeds": [0],
        "planning": PLANNING,
    },
    "cells": [
        {"name": "walk", "group": "floors", "method": "random", "minutes": 0.1},
        {"name": "best", "group": "floors", "method": "oracle", "minutes": 0.1},
        FLAT | {"budgets": [0.5, 1.0]},
        FLAT
        | {"name": "two", "method": "l1+l2", "grid": {"hierarchy.replan": [2, 4]}, "minutes": 2},
        FLAT | {"name": "coarse", "recipe": "skip2", "method": "l1+l2", "control": "untrained"},
    ],
}  # fmt: skip


@pytest.fixture
def grid(tmp_path, monkeypatch, short_probe):
    """Function of a changed tree: the checked grid, with a folder of its own for all it writes."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))

    def make(change=lambda tree: None):
        tree = copy.deepcopy(TREE) | {"rows": str(tmp_path / "rows.csv")}
        change(tree)
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(tree))
        return read_grid(path)

    return make


def quiet(*_, **__):
    pass


def run(grid, only="", **options):
    return study.run_study(grid, grid.select(only), say=quiet, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short_probe):
    """A whole study; copy the folder to change it."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(folder / "outputs"))
        path = folder / "grid.yaml"
        path.write_text(yaml.safe_dump(TREE | {"rows": str(folder / "rows.csv")}))
        said = []
        failed = study.run_study(
            read_grid(path), read_grid(path).cells, say=lambda text, **_: said.append(text)
        )
        assert failed == 0, said
    return folder


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """A copy of the finished study: function of a changed tree -> grid."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "copy" / "outputs"))

    def make(change=lambda tree: None):
        tree = copy.deepcopy(TREE) | {"rows": str(tmp_path / "copy" / "rows.csv")}
        change(tree)
        path = tmp_path / "copy" / "grid.yaml"
        path.write_text(yaml.safe_dump(tree))
        return read_grid(path)

    return make


# --- the grid file ----------------------------------------------------------------------------
def change_cell(**values):
    return lambda tree: tree["cells"][2].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(sells=[]), "unknown section 'sells'"),
        (lambda t: t.update(cells=[]), "cells in .* must be a list"),
        (change_cell(recipe="bass"), "cell 'flat' .* unknown recipe 'bass'"),
        (change_cell(method="flatt"), "method of cell 'flat' .* got 'flatt'"),
        (change_cell(cost="none"), "cost of cell 'flat' .* latent or distance"),
        (change_cell(colour="red"), "unknown key 'colour' in cell 'flat'"),
        (change_cell(planning={"flat.sample": 3}), "cell 'flat' .* 'planning.flat.sample'"),
        (change_cell(planning={"cost": "latent"}), "sets planning.cost; use its own key"),
        (change_cell(grid={"flat.horizon": 3}), "flat.horizon in the grid .* must be a list"),
        (change_cell(grid={"flat.horizon": [3, 3]}), "describes the same row twice"),
        (change_cell(trials=501), r"cell 'flat' .* trials must lie in \[1, 500\]"),
        (change_cell(budgets=[]), "budgets of cell 'flat' .* must be a list"),
        (change_cell(protocol="p3"), "cell 'flat' .* protocol must be one of"),
        (change_cell(dynamics="ice"), "dynamics of cell 'flat' .* must be one of bounce"),
        (change_cell(control="half"), "cell 'flat' .* control must be one of"),
        (change_cell(minutes="soon"), "minutes of cell 'flat' .* must be a number"),
        (change_cell(planning={"action_cap": 2.0}), "cell 'flat' .* p1 fixes planning.action_cap"),
        (lambda t: t["cells"].append(FLAT), "names the cell 'flat' twice"),
        (lambda t: t["cells"].append({"name": "x", "minutes": 1}), "cell 'x' .* lacks 'method'"),
        (lambda t: t["recipes"].update(a={"minutes": 1, "from": "b"}), "from 'b', which no"),
        (
            lambda t: t["recipes"]["base"]["settings"].update({"level1.wide": 3}),
            "recipe 'base' .* unknown setting 'level1.wide'",
        ),
        (
            lambda t: t["recipes"]["base"]["settings"].update({"planning.replan": 3}),
            "sets planning.replan, which belongs to the cells",
        ),
        (
            lambda t: t["recipes"].update(
                base={"minutes": 3, "settings": {"level2.disable_l2": True}},
                skip2={"from": "base", "minutes": 1, "settings": {}},
            ),
            "cell 'two' .* plans with a level 2 that its recipe disables",
        ),
    ],
)
def test_wrong_grids_are_refused_before_any_work(grid, change, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        grid(change)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_rows_are_the_product_of_seeds_budgets_and_grid_values(grid):
    cells = {cell.name: cell for cell in grid().cells}
    keys = [row.key for row in grid().rows(cells["two"])]
    assert keys == [
        ("two", "0", "1.0", "hierarchy.replan=2"),
        ("two", "0", "1.0", "hierarchy.replan=4"),
    ]
    half, full = grid(change_cell(budgets=[0.5, 1.0], seeds=[4])).rows(cells["flat"])
    assert (half.planning.flat.samples, full.planning.flat.samples) == (4, 8)
    assert half.planning.cost == "latent"
    for name, wanted in (("walk", 0), ("flat", 2), ("two", 4)):
        assert len(grid().rows(cells[name])[0].stages) == wanted
    distance = grid(change_cell(cost="distance"))
    assert distance.rows(distance.cells[2])[0].stages == ("data", "l1", "distance")


def test_selection_by_name_group_and_seed(grid):
    def seeds(tree):
        tree["defaults"]["seeds"] = [0, 1, 2]

    made = grid(seeds)
    assert [cell.name for cell in made.select("floors,t*")] == ["walk", "best", "two"]
    assert [cell.seeds for cell in made.select("two", (2, 1, 7))] == [(1, 2)]
    with pytest.raises(ConfigError, match=r"no cell .* matches 'three'"):
        made.select("three")


def test_a_stage_is_shared_only_when_what_shapes_it_agrees(grid):
    base = grid().config("base", 0)
    stages = ("data", "l1", "distance", "l2", "l3")
    for key, value, shared in (
        ("level2.step_skip", 2, 3),
        ("level3.step_skip", 16, 4),
        ("distance.dim", 4, 2),
        ("level1.hidden", 12, 1),
        ("data.transitions", 1000, 0),
        ("seed", 1, 0),
        ("planning.replan", 3, 5),
        ("level2.train", "joint", 1),
    ):
        assert agreeing_stages(base, base.override({key: value}, False), stages) == stages[:shared]
    refined = base.override("level1.refine_updates=5")  # on the trajectories of the head
    other = refined.override("distance.trajectories=7")
    assert agreeing_stages(refined, other, stages) == ("data",)


# --- doing it ---------------------------------------------------------------------------------
def test_rows_hold_what_happened(finished):
    rows = load_rows(finished / "rows.csv")
    assert list(rows["cell"]) == ["walk", "best", "flat", "flat", "two", "two", "coarse"]
    assert check_rows(rows) is rows
    for row in rows.itertuples():
        recipe = row.recipe or "floors"
        folder = finished / "outputs" / "little" / f"{recipe}-s0" / "study" / row.cell
        result = load_result(next(folder.glob(f"*__{row.case}.npz")))
        assert list(unpack_solved(row.solved, row.n)) == list(result.success)
        assert (row.n, row.trials_hash) == (3, result.header["trials_hash"])
    labels = rows[[name for name in rows if name.startswith("failure.")]]
    assert (labels.sum(axis=1) == 3).all()
    two = rows[rows["cell"] == "two"]
    assert list(two["planner.hierarchy.replan"]) == [2, 4]
    assert list(rows["level2.step_skip"].dropna()) == [4, 4, 2]
    assert rows["planner.flat.samples"].dropna().tolist() == [4, 8]
    assert (rows["precision"] == "fp32").all()
    assert rows["command"].str.startswith("python -m hjepa_lib study").all()
    assert (rows["minutes"] >= 0).all()


def test_only_what_a_cell_needs_is_trained(grid):
    made = grid()
    assert run(made, "flat") == 0
    root = made.table.parent / "outputs" / "little"
    assert set(Run.at(root / "base-s0").manifest["stages"]) >= {"data", "l1"}
    assert not {"distance", "l2"} & set(Run.at(root / "base-s0").manifest["stages"])
    assert not (root / "floors-s0").exists()


def test_a_recipe_takes_over_what_agrees(finished):
    base, other = (
        Run.at(finished / "outputs" / "little" / name) for name in ("base-s0", "skip2-s0")
    )
    for stage in ("data", "l1", "distance"):
        assert other.manifest["stages"][stage]["from"] == "base-s0"
        other.verify(stage)
    assert "from" not in other.manifest["stages"]["l2"]
    assert other.config.level2.step_skip == 2
    assert other.manifest["precision"] == base.manifest["precision"]


def three_levels(tree, enabled=True):
    settings = {"level3.enabled": True, "level3.step_skip": 8} if enabled else {}
    tree["recipes"]["three"] = {"from": "base", "minutes": 1, "settings": settings}
    tree["cells"] = [FLAT | {"name": "three", "recipe": "three", "method": "l1+l2+l3"}]


def test_three_levels_take_over_the_two_below(again):
    made = again(three_levels)
    assert run(made) == 0
    stages = Run.at(made.table.parent / "outputs" / "little" / "three-s0").manifest["stages"]
    adopted = {name for name, stage in stages.items() if "from" in stage}
    assert adopted == {"data", "l1", "distance", "l2"}
    row = load_rows(made.table).set_index("cell").loc["three"]
    assert row["method"] == "l1+l2+l3"
    assert (row["level2.step_skip"], row["level3.step_skip"]) == (4, 8)
    with pytest.raises(ConfigError, match=r"'three' .* its recipe needs level3.enabled"):
        again(lambda tree: three_levels(tree, enabled=False))


def test_finished_rows_are_not_made_again(again, monkeypatch):
    """Resume needs the committed table only: no run folder, no model."""
    made = again()
    shutil.rmtree(made.table.parent / "outputs")
    before = made.table.read_bytes()
    monkeypatch.setattr(study, "make_row", None)
    assert run(made) == 0
    assert made.table.read_bytes() == before


def test_an_interrupted_study_keeps_what_is_finished(grid, monkeypatch):
    made = grid(lambda tree: tree.update(cells=tree["cells"][:2]))
    play, calls = scoring.run_episodes, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return play(*arguments)

    monkeypatch.setattr(scoring, "run_episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert [row["cell"] for row in read(made.table)] == ["walk"]
    assert run(made) == 0
    assert [row["cell"] for row in read(made.table)] == ["walk", "best"]
    assert len(calls) == 3  # the first row was not played again


def test_a_lost_row_comes_back_from_the_run(again):
    made = again()
    whole = made.table.read_text()
    lines = whole.splitlines(keepends=True)
    made.table.write_text("".join(lines[:3] + lines[4:]))
    assert run(made, "flat") == 0
    old, new = ({tuple(r[k] for k in KEY): r for r in read(text)} for text in (whole, made.table))
    assert old.keys() == new.keys()
    for key, row in old.items():
        same = {name: row[name] for name in row if name not in ("revision", "command")}
        assert same == {name: new[key][name] for name in same}


def read(source):
    text = source if isinstance(source, str) else source.read_text()
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_cell(trials=2), "n=3, not 2"),
        (change_cell(split="test"), "split=validation, not test"),
        (change_cell(dynamics="blocked"), "dynamics=bounce, not blocked"),
        (change_cell(steps=5), "planner.steps=6, not 5"),
        (
            change_cell(planning=PLANNING | {"flat.sigma": 2.5}),
            "planner.flat.sigma=1.5, not 2.5",
        ),
        (
            lambda t: t["recipes"]["base"]["settings"].update({"level1.hidden": 20}),
            "level1.hidden=16, not 20",
        ),
    ],
)
def test_rows_made_with_other_settings_are_refused_by_name(again, change, message):
    made = again(change)
    before = made.table.read_bytes()
    with pytest.raises(RunError, match=f"row .*flat.* was made with {message}"):
        run(made, "flat")
    assert made.table.read_bytes() == before


def test_what_the_planner_does_not_use_may_change(again):
    """A flat row with the latent cost does not depend on level 2 or the distance head."""
    made = again(
        lambda t: t["recipes"]["base"]["settings"].update({"level2.z_dim": 3, "distance.dim": 4})
    )
    assert run(made, "flat") == 0
    with pytest.raises(RunError, match=r"'two', .* was made with (level2.z_dim|distance.dim)"):
        run(made, "two")


def test_redo_replaces_the_row_and_its_result(again):
    made = again(change_cell(planning=PLANNING | {"flat.sigma": 2.5}))
    assert run(made, "flat", redo=True) == 0
    rows = load_rows(made.table)
    assert rows.loc[rows["cell"] == "flat", "planner.flat.sigma"].tolist() == [2.5, 2.5]
    assert len(rows) == 7
    assert run(made) == 0


def test_redo_drops_rows_that_the_grid_does_not_ask_for_any_more(again):
    """A point that left the grid would go on counting in every table of its cell."""
    made = again(change_cell(budgets=[0.5], seeds=[0, 7]))
    table = Table(made.table)
    (row,) = [one for key, one in table.rows.items() if key[:3] == ("flat", "0", "0.5")]
    table.add(row | {"seed": "7"}, {})
    flat = made.select("flat", (0,))  # seed 7 is not asked for now, but the grid has it
    quiet = {"say": lambda *_, **__: None}
    assert study.run_study(made, flat, **quiet) == 0  # nothing is dropped without being asked
    assert len(load_rows(made.table)) == 8
    assert study.run_study(made, flat, redo=True, **quiet) == 0
    rows = load_rows(made.table)
    left = rows[rows["cell"] == "flat"]
    assert list(zip(left["seed"], left["budget"], strict=True)) == [(0, 0.5), (7, 0.5)]
    assert len(rows) == 7


def test_a_changed_training_needs_another_name(again):
    made = again(
        lambda t: (
            t["recipes"]["base"]["settings"].update({"level1.hidden": 20}),
            t["cells"][2].update(name="wider"),
        )
    )
    said = []
    failed = study.run_study(
        made, made.select("wider"), say=lambda text, **_: said.append(str(text))
    )
    assert failed == 2  # two budgets
    assert "level1.hidden=16, not 20; give the recipe another name" in "\n".join(said)
    assert "given up" in said[-1]
    assert Table(made.table).rows.keys() == Table(again().table).rows.keys()


def test_a_changed_level_2_leaves_the_stages_below_usable(again):
    """Only what a cell needs must agree with the run; l2 itself is refused, not trained anew."""
    made = again(
        lambda t: (
            t["recipes"]["base"]["settings"].update({"level2.z_dim": 3}),
            t["cells"][2].update(name="more", cost="distance"),
            t["cells"][3].update(name="other"),
        )
    )
    assert run(made, "more") == 0
    said = []
    study.run_study(made, made.select("other"), say=lambda text, **_: said.append(str(text)))
    assert "level2.z_dim=4, not 3; give the recipe another name" in "\n".join(said)


def test_a_setting_younger_than_the_row_cannot_have_changed_it(again):
    """Columns and training settings that did not exist then are not held against a row."""
    made = again()
    rows = read(made.table)
    for row in rows:
        del row["planner.flat.sigma"]
    with made.table.open("w") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = Table(made.table)
    for settings in table.trainings.values():
        settings.pop("level1.hidden")
    flat = made.rows(made.select("flat")[0])
    assert not any(table.mismatch(row) for row in flat)
    for row in table.rows.values():
        row["training"] = "0123456789ab"  # not in the file beside the table
    assert "a training that rows_trainings.json does not list" in table.mismatch(flat[0])


def test_a_foreign_table_is_refused(grid, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="is no table of a study: column 'cell' is missing"):
        run(grid())


def test_adding_a_row_leaves_the_others_as_they_are(again):
    made = again()
    table = Table(made.table)
    before = read(made.table)
    table.add(dict(before[0]) | {"cell": "new", "extra": 0.1, "nothing": float("nan")}, {})
    after = read(made.table)
    assert [{k: r[k] for k in before[0]} for r in after[:-1]] == before
    assert after[-1]["extra"] == "0.1"
    assert after[-1]["nothing"] == ""


def test_list_counts_each_training_once(again, grid):
    made = grid()
    lines = list_cells(made, made.cells, Table(made.table))
    assert [round(line.minutes, 6) for line in lines] == [0.1, 0.1, 4, 2, 2]
    assert lines[-1].total == pytest.approx(8.2)
    assert "0 of 7 rows done" in describe_list(lines)


def test_list_of_a_finished_study(again):
    made = again()
    lines = list_cells(made, made.cells, Table(made.table))
    assert [line.done for line in lines] == [1, 1, 2, 2, 1]
    assert lines[-1].total == 0
    assert "left on one process: nothing" in describe_list(lines)


def test_jobs_run_seeds_apart(grid):
    """Two seeds at once give the rows that one after the other gives, in any order."""

    def seeds(tree):
        tree["defaults"]["seeds"] = [0, 1]
        tree["cells"] = tree["cells"][:2]

    made = grid(seeds)
    assert run(made, jobs=2) == 0
    rows = {row["cell"] + row["seed"]: row["solved"] for row in read(made.table)}
    assert set(rows) == {"walk0", "walk1", "best0", "best1"}
    made.table.unlink()
    assert run(made) == 0
    assert {row["cell"] + row["seed"]: row["solved"] for row in read(made.table)} == rows


def test_command_line(again, capsys):
    made = again()
    assert __main__.main(["study", made.path, "--list"]) == 0
    assert "7 of 7 rows done" in capsys.readouterr().out
    assert __main__.main(["study", made.path, "--only", "flat", "--seeds", "0"]) == 0
    assert f"table: {made.table}" in capsys.readouterr().out
    assert __main__.main(["study", made.path, "--seeds", "zero"]) == 2
    assert "must be numbers such as 0+1+2" in capsys.readouterr().err


def test_shipped_grid_is_valid():
    made = read_grid(__main__._CONFIGS / "study.yaml")
    assert made.table.name.endswith(".csv")
    assert {cell.method for cell in made.cells} >= {"random", "oracle", "flat"}
