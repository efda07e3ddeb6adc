import copy
import csv
import re
import shutil
import typing
from dataclasses import replace
from itertools import product

import pandas as pd
import pytest
import yaml
from tiny import OVERRIDES, dotted, refused
from tiny_runs import ROOT, Said, first, make_row, python, race

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError, fields
from hjepa_lib.evaluation.results import load_result
from hjepa_lib.files import FileError, write_json
from hjepa_lib.pixels import stages
from hjepa_lib.runs import keys
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import CONFIGS, STUDY, engine
from hjepa_lib.workbench.pool import Work
from hjepa_lib.workbench.rows import load_rows, unpack_solved
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.table import Table, digest

TRAINING = {k: v for k, v in OVERRIDES.items() if not k.startswith(("planning.", "evaluation."))}
PLANNING = {
    key.removeprefix("planning."): value
    for key, value in OVERRIDES.items()
    if key.startswith("planning.") and not key.startswith("planning.level3")
}
FLAT = {"name": "flat", "group": "p1", "model": "base", "method": "flat", "cost": "latent"}
TREE = {
    "name": "little",
    "base": {"profile": "smoke", "evaluation.steps": 6},
    "models": {
        "base": {"settings": TRAINING},
        "skip2": {"from": "base", "settings": {"level2.step_skip": 2}},
    },
    "defaults": {
        "split": "validation", "trials": 3, "seeds": [0], "planning": PLANNING,
    },
    "cells": [
        {"name": "walk", "group": "floors", "method": "random"},
        {"name": "best", "group": "floors", "method": "oracle"},
        FLAT | {"budgets": [0.5, 1.0]},
        FLAT | {"name": "two", "method": "l1+l2", "grid": {"hierarchy.replan": [2, 4]}},
        FLAT | {"name": "coarse", "model": "skip2", "method": "l1+l2",
                "planning": PLANNING | {"hierarchy.control": "untrained"}},
    ],
}  # fmt: skip


def write(folder, change=lambda tree: None):
    """The experiment of `TREE`, changed, with its table in `folder`."""
    tree = copy.deepcopy(TREE) | {"table": str(folder / "rows.csv")}
    change(tree)
    (folder / "file.yaml").write_text(yaml.safe_dump(tree))
    return read_experiment(folder / "file.yaml")


@pytest.fixture
def make(tmp_path, monkeypatch, short_probe):
    """Function of a change of `TREE` -> experiment in folders of its own."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "outputs"))
    return lambda change=lambda tree: None: write(tmp_path, change)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short_probe):
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(folder / "outputs"))
        ended = engine.run_experiment(write(folder))
        assert not [one for one in ended if one.error]
    return folder


@pytest.fixture
def again(finished, tmp_path, monkeypatch):
    """The same, in a copy of the finished experiment."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "copy" / "outputs"))
    return lambda change=lambda tree: None: write(tmp_path / "copy", change)


def run(experiment, only="", **options):
    said = Said()
    ended = engine.run_experiment(experiment, experiment.select(only), Work(**options), said)
    return [one.error for one in ended if one.error], "".join(said)


def read(experiment):
    return list(csv.DictReader(experiment.table.read_text().splitlines()))


def cells_of(units):
    return list(dict.fromkeys(unit.cell.name for unit in units))


def table_of(experiment):
    return Table(experiment.table, experiment.profile)


def stored(made, only=""):
    """The first unit of these, stored, and the table."""
    (unit, *_), table = made.select(only), table_of(made)
    table.add(unit, [unit.identity()])
    assert table.has(unit)
    return unit, table


def change_cell(**values):
    return lambda tree: tree["cells"][2].update(values)


def settings(**changes):
    return lambda tree: tree["models"]["base"]["settings"].update(dotted(changes))


def cell(**values):
    return {"cells": [FLAT | values]}


def base(**values):
    return {"models": TREE["models"] | {"base": {"settings": TRAINING | values}}}


def grid(**axes):
    return {"grid": axes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sells": []}, "unknown key 'sells'"),
        ({"recipes": {}}, "recipes is called models now"),
        ({"cells": []}, "cells must be a list"),
        ({"base": {"profile": "huge"}}, "profile must be one of"),
        ({"defaults": {"colour": 1}}, "unknown key 'colour' in defaults"),
        ({"name": "../../x"}, "a name must be"),
        ({"table": "../x.csv"}, "is no file below"),
        ({"models": {"../x": {}}}, "model '../x': a name must be"),
        ({"models": {"a": {"from": "b"}}}, "it is from 'b', which no"),
        ({"models": {"a": {"colour": 1}}}, "model 'a': unknown key 'colour'"),
        (base(seed=3), "it sets seed, which belongs"),
        (base(**{"level2.disable_l2": True}), "needs level2.disable_l2=false"),
        (cell(model="bass"), "unknown model 'bass'"),
        (cell(cost="none"), "cost=none does not go with"),
        (cell(colour="red"), "cell 'flat': unknown key 'colour'"),
        (cell(notebooks="01"), "needs one of method, notebooks and call"),
        ({"cells": [{"name": "flat"}]}, "needs one of method, notebooks and call"),
        (cell(trials=501), "cell 'flat': .*trials"),
        (cell(protocol="p4"), "cell 'flat': .*protocol"),
        (cell(budgets=[]), "cell 'flat': .*budgets"),
        (cell(method="flatt"), "cell 'flat': method must be"),
        (cell(planning={"flat.sample": 3}), "'planning.flat.sample'"),
        (cell(planning={"cost": "latent"}), "use its own key"),
        (cell(planning={"action_cap": 2.0}), "protocol p1 fixes planning"),
        (cell(grid={"flat.horizon": 3}), "in its grid must be a list"),
        (cell(grid={"flat.horizon": [3, 3]}), "describes the same row twice"),
        (cell(method="l1+l2+l3"), "its model needs level3.enabled"),
        ({"cells": [FLAT, FLAT]}, "it is named twice"),
        ({"cells": [3]}, "must be a mapping, got 3"),
        ({"cells": [{"call": "x.y"}]}, "must be module:function"),
        (cell(settings={"a": 3}), "cell 'flat': unknown key 'settings'"),
        ({"defaults": {"notebooks": "01"}}, "unknown key 'notebooks' in defaults"),
        ({"cells": [{"notebooks": "01", "cost": "latent"}]}, "'notebooks': unknown key 'cost'"),
        (grid(**{"level1.width": {"a": {}}}), "need a name that is no setting"),
        (grid(**{"level1.width": [8, 8]}), "the same row twice"),
        (grid(method={"a": {}}), "method: .* no column"),
        (grid(both={}), "at least one value, or labels"),
        (grid(both={"a": 3}), "both: this must be a mapping"),
    ],
)
def test_wrong_files_are_refused_before_any_work(make, changes, message, tmp_path):
    """C7."""
    refused((ConfigError, FileError), message, make, lambda tree: tree.update(changes))
    assert not (tmp_path / "outputs").exists()


def test_units_are_the_product_of_models_seeds_budgets_and_grid_values(make):
    made = make(change_cell(budgets=[0.5, 1.0], seeds=[4]))
    cells = {name: made.select(name) for name in cells_of(made.units)}
    assert [unit.title for unit in cells["two"]] == [
        f"two base 0 1.0 hierarchy.replan={steps}" for steps in (2, 4)
    ]
    half, full = cells["flat"]
    assert (half.case.planning.flat.samples, full.case.planning.flat.samples) == (4, 8)
    assert half.case.planning.cost == "latent" and half.case.seed == 4
    for name, wanted in (("walk", ()), ("flat", ("l1",)), ("two", ("l1", "l2"))):
        assert cells[name][0].case.stages == wanted
    assert not [name for name in half.training() if name.startswith(("level2", "distance.dim"))]
    assert cells["walk"][0].training() == {}


def test_the_grid_of_a_file_makes_models_of_values_and_labels():
    tree = grid(**{"level1.width": [8, 16], "both": {"a b": {"level1": {"hidden": 32}}, 7: {}}})
    made = read_experiment(tree | {"seeds": [0, 1], "cells": [{"notebooks": "1"}]}, "x")
    units = made.units
    assert [unit.key["model"] for unit in units[::2]] == [
        "width=8-both=a b", "width=8-both=7", "width=16-both=a b", "width=16-both=7",
    ]  # fmt: skip
    assert [unit.trained.level1.hidden for unit in units[::2]] == [32, 256, 32, 256]
    assert [unit.seed for unit in units] == [0, 1] * 4


def test_selection_by_name_group_and_seed(make):
    defaults = {"seeds": [0, 1, 2], "cost": "latent", "model": "base"}  # the last two not of floors
    made = make(lambda tree: tree["defaults"].update(defaults))
    assert cells_of(made.select("floors, t*")) == ["walk", "best", "two"]
    assert {unit.seed for unit in made.select("two", (2, 1, 7))} == {1, 2}
    refused(ConfigError, r"nothing in .* matches 'three'", made.select, "three")


def test_rows_hold_what_happened(finished, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(finished / "outputs"))
    rows = load_rows(finished / "rows.csv")
    assert list(rows["cell"]) == ["walk", "best", "flat", "flat", "two", "two", "coarse"]
    for row in rows.itertuples():
        folder = next((finished / "outputs/little").glob(f"{row.model or 'default'}-s0-*/study"))
        result = load_result(next((folder / row.cell).glob(f"*__{row.case}.npz")))
        assert list(unpack_solved(row.solved, row.n)) == list(result.success)
        assert (row.n, row.trials_hash) == (3, result.header["trials_hash"])
    assert list(rows["level2.step_skip"].dropna()) == [4, 4, 2]  # a setting of the training
    assert rows["planner.flat.samples"].dropna().tolist() == [4, 8]
    weights = rows["weights.l1.from"]
    assert set(weights.dropna()) == {"this run", weights.iloc[-1]}
    assert weights.iloc[-1].startswith("little/base-s0-")  # the other model took it over
    assert rows["weights.l1.key"].dropna().nunique() == 1
    assert rows["weights.l2.key"].notna().tolist() == [False] * 4 + [True] * 3


def test_three_levels_take_over_the_two_below(again):
    def three_levels(tree):
        own = {"level3.enabled": True, "level3.step_skip": 8}
        tree["models"]["three"] = {"from": "base", "settings": own}
        tree["cells"] = [FLAT | {"name": "three", "model": "three", "method": "l1+l2+l3"}]

    made = again(three_levels)
    assert run(made)[0] == []
    (path,) = made.folder.glob("three-s0-*")
    stages = Run.at(path).manifest["stages"]
    taken = {name for name, stage in stages.items() if "from" in stage}
    assert taken == {"data", "l1", "distance", "l2"}
    row = load_rows(made.table).set_index("cell").loc["three"]
    assert (row["method"], row["level2.step_skip"], row["level3.step_skip"]) == ("l1+l2+l3", 4, 8)


def test_an_interrupted_experiment_keeps_what_is_finished(make, monkeypatch):
    made = make(lambda tree: tree.update(cells=tree["cells"][:2]))
    play, calls = scoring.run_episodes, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return play(*arguments)

    monkeypatch.setattr(scoring, "run_episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert [row["cell"] for row in read(made)] == ["walk"]
    assert run(made)[0] == [] and len(calls) == 3  # the first row was not played again


def test_a_lost_row_comes_back_with_the_revision_that_played_it(again, monkeypatch):
    """I10."""
    made = again()
    whole = read(made)
    lines = made.table.read_text().splitlines(keepends=True)
    made.table.write_text("".join(lines[:3] + lines[4:]))
    monkeypatch.setattr("hjepa_lib.runs.machine.revision", lambda root=None: "f00d")
    assert run(made, "flat")[0] == []
    for row in (rows := read(made)) + whole:
        del row["command"]  # the copy's path
    assert sorted(rows, key=str) == sorted(whole, key=str)
    assert "f00d" not in made.table.read_text()


def test_a_committed_row_is_played_by_a_clean_checkout_alone(again, monkeypatch, tmp_path):
    """I10."""
    made = again(change_cell(trials=2))
    monkeypatch.setattr(engine, "repository", lambda: tmp_path)
    monkeypatch.setattr("hjepa_lib.runs.machine.revision", lambda root=None: "f00d-dirty")
    before = made.table.read_bytes()
    refused(RunError, r"rows\.csv is committed, and so must be", run, made, "flat", redo=True)
    assert made.table.read_bytes() == before
    monkeypatch.setattr(engine, "repository", lambda: tmp_path / "elsewhere")
    assert run(made, "flat", redo=True)[0] == []
    rows = load_rows(made.table)
    assert list(rows["cell"]) == ["walk", "best", "flat", "flat", "two", "two", "coarse"]
    assert rows["n"].tolist() == [3, 3, 2, 2, 3, 3, 3]  # replaced, in their places


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_cell(trials=2), "n=3, not 2"),
        (change_cell(split="test"), "split=validation, not test"),
        (lambda tree: tree["base"].update({"evaluation.steps": 5}), "planner.steps=6, not 5"),
        (change_cell(planning=PLANNING | {"flat.sigma": 2.5}), "planner.flat.sigma=1.5, not 2.5"),
        (settings(level1__hidden=20), "level1.hidden=16, not 20"),
    ],
)
def test_rows_made_with_other_settings_are_refused_by_name(again, change, message):
    """I8."""
    made = again(change)
    before = made.table.read_bytes()
    refused(RunError, f"row flat .* was made with {message}", run, made, "flat")
    assert made.table.read_bytes() == before


def test_i1_another_file_or_loaded_run_of_the_same_name_is_another_training(again, tmp_path):
    """I8."""
    file = tmp_path / "own.npz"
    file.write_bytes(b"one")
    unit, table = stored(again(settings(data__source=str(file))), "flat")
    file.write_bytes(b"another")
    assert table.mismatch(unit).startswith("files.data=")
    donor = Run.create("donor", unit.trained)
    made = again(settings(level1__load="donor"))
    (unit, *_), table = made.select("flat"), table_of(made)
    for key, message in (("first", ""), ("second", "key.l1=first, not second")):
        with donor.stage("l1", key=key):
            pass
        if key == "first":
            table.add(unit, [unit.identity()])
        assert table.mismatch(unit) == message
    assert not [one for one in unit.training() if one.startswith("level1.hidden")]  # the donor's
    (unit, *_) = again().select("flat")  # what only the stored one has
    assert table.mismatch(unit).startswith("level1.")
    (told, *_) = again(change_cell(planning=PLANNING | {"truth": "dynamics"})).select("flat")
    table.add(told, [told.identity()])
    assert table.mismatch(unit) == "planner.truth=dynamics, not none"


def test_i1_an_edited_own_world_is_another_one_to_its_floors(make, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, found = tmp_path / "edited_lake.py", []
    file.write_text((ROOT / "examples/own_world.py").read_text())
    cells = {"base": {"data.source": "edited_lake:Lake"}, "models": {}, "cells": TREE["cells"][:1]}
    unit, table = stored(make(lambda tree: tree.update(cells)))
    for _ in range(2):
        found.append(keys.key(scoring.stage_of(unit.config, unit.case), unit.config))
        file.write_text(f"{file.read_text()}# edited\n")
    assert table.mismatch(unit).startswith("files.data=") and found[0] != found[1]


def test_a_table_of_a_remote_root_is_that_of_every_machine(tmp_path, monkeypatch, failed):
    def floors(tree):
        tree.pop("table")
        tree.update(cells=tree["cells"][:2])

    monkeypatch.setenv("HJEPA_OUTPUTS", f"file://{tmp_path}/there")
    for machine, only in (("one", "walk"), ("two", "best")):
        monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / machine))
        made = write(tmp_path, floors)
        assert run(made, only)[0] == []
    assert [row["cell"] for row in read(made)] == ["walk", "best"]
    monkeypatch.setenv("HJEPA_CACHE", str(tmp_path / "three"))
    assert "'little' exists already; resume it" in failed("sweep", made.path)


def test_what_the_planner_does_not_use_may_change(again):
    made = again(settings(level2__z_dim=3, distance__dim=4))
    assert run(made, "flat")[0] == []
    refused(RunError, r"row two .* was made with (level2.z_dim|distance.dim)", run, made, "two")


def test_a_failed_training_gives_its_other_rows_up(make, monkeypatch):
    def fails(*_, **__):
        raise FileError("no data today")

    monkeypatch.setattr("hjepa_lib.runs.stages.acquire", fails)
    made = make()
    errors, _ = run(made)
    assert errors == ["no data today", "given up", "given up", "given up", "no data today"]
    assert [row["cell"] for row in read(made)] == ["walk", "best"]


def test_another_training_has_a_folder_and_a_key_of_its_own(again):
    made = again(lambda t: (settings(level2__z_dim=3)(t), t["cells"][3].update(name="other")))
    assert run(made, "other")[0] == []
    runs = [Run.at(path) for path in made.folder.glob("base-s0-*")]
    new, old = sorted(runs, key=lambda run: run.config.level2.z_dim)
    assert (new.config.level2.z_dim, old.config.level2.z_dim) == (3, 4)
    assert new.manifest["stages"]["l1"]["from"] == old.name
    assert "from" not in new.manifest["stages"]["l2"]


def forget(made, column, setting):
    """Stored rows without a planner's and a training's setting, as if those were younger."""
    rows = pd.read_csv(made.table, dtype=str, keep_default_na=False).drop(columns=column)
    rows.to_csv(made.table, index=False)
    table = table_of(made)
    for known in table.trainings.values():
        known.pop(setting, None)
    write_json(table.settings_path, table.trainings)


def test_a_setting_younger_than_the_row_counts_with_its_default(again):
    """I9."""
    made = again()
    forget(made, "planner.flat.form", "level1.rollout")
    assert all(table_of(made).has(unit) for unit in made.select("flat"))
    for change, message in (
        (change_cell(planning=PLANNING | {"flat.form": "sum"}), "form=auto, not sum"),
        (settings(level1__rollout=2), "level1.rollout=0, not 2"),
    ):
        changed = again(change)
        found = table_of(changed).mismatch(changed.select("flat")[0])
        assert re.search(message, found), found


def test_other_code_of_a_stage_is_another_training(again, monkeypatch):
    made = again()
    made_of = keys.Stage.__init__

    def raised(self, name, *arguments, **options):
        made_of(self, name, *arguments, **options | ({"recipe": 2} if name == "l1" else {}))

    monkeypatch.setattr(keys.Stage, "__init__", raised)
    changed = again(settings(level1__idm_hidden=16))
    from hjepa_lib.workbench.experiment import _shaped_by

    _shaped_by.cache_clear()
    assert table_of(made).mismatch(changed.select("flat")[0]) == "recipe.l1=1, not 2"
    _shaped_by.cache_clear()


def test_other_code_of_a_play_is_another_result(again, monkeypatch):
    made = again()
    (unit, *_) = made.select("flat")
    monkeypatch.setattr(type(unit.case), "recipe", 2)
    assert table_of(made).mismatch(unit) == "recipe.result=1, not 2"


def test_a_training_that_is_not_listed_is_not_taken(again):
    made = again()
    table = table_of(made)
    write_json(table.settings_path, {})
    table.reload()
    table.rows[2]["training"] = "0123456789ab"
    found = table.mismatch(made.select("flat")[0])
    assert "a training that rows_trainings.json does not list" in found


def test_adding_a_row_leaves_the_others_as_they_are(again):
    made = again(lambda t: t["cells"].append(FLAT | {"name": "new"}))
    before = read(made)
    (unit,) = made.select("new")
    table_of(made).add(unit, [{"extra": 0.1, "nothing": float("nan")}])
    *others, new = read(made)
    assert [{k: row[k] for k in before[0]} for row in others] == before
    assert (new["cell"], new["extra"], new["nothing"]) == ("new", "0.1", "")
    made.table.write_text("a,b\n1,2\n")
    refused(FileError, "no table of an experiment: column 'cell' is missing", run, made)


ADD = """
import sys
from hjepa_lib.workbench.schema import read_experiment
from hjepa_lib.workbench.table import Table
made = read_experiment(sys.argv[1])
table = Table(made.table)
print("ready", flush=True)
sys.stdin.readline()
for unit in made.select(sys.argv[2]):
    table.add(unit, [{"n": 3}])
"""


def test_two_processes_lose_no_row_of_each_other(make, tmp_path):
    """S3."""
    seeds = list(range(20))
    made = make(lambda t: (t["defaults"].update(seeds=seeds), t.update(cells=t["cells"][:2])))
    race(ADD, *((str(tmp_path / "file.yaml"), name) for name in ("walk", "best")))
    found = sorted((row["cell"], int(row["seed"])) for row in read(made))
    assert found == [(name, seed) for name in ("best", "walk") for seed in seeds]


def test_listing_the_committed_study_imports_no_torch():
    """C12."""
    code = (
        "import sys; from hjepa_lib.__main__ import main; status = main(['study', '--list']); "
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'gymnasium'} & set(sys.modules); "
        "sys.exit(status or str(heavy) if heavy else 0)"
    )
    said = python(code)
    rows = sum(1 for _ in csv.DictReader((STUDY.parents[2] / "outputs/gallery/study.csv").open()))
    assert f"{rows} of {rows} rows done" in said


def test_c12_the_hints_of_a_section_are_read_once(monkeypatch):
    seen, hints = [], typing.get_type_hints

    def note(section, **options):
        seen.append(section)
        return hints(section, **options)

    monkeypatch.setattr(typing, "get_type_hints", note)
    fields._kinds.cache_clear()
    read_experiment(STUDY)
    assert len(seen) == len(set(seen)) > 10


def describe(ws, given):
    return [{"measure": name, "value": value, "run": ws.run.name} for name, value in given.items()]


def test_a_figure_pools_seeds_and_nothing_else(tmp_path, monkeypatch):
    """Budgets, splits and models of one planner were one rate of all their trials."""
    rows = [
        make_row("a", seed, first(0), budget=budget, split=split, cost="none")
        | {"model": f"{model}-horizon={at}", "h.horizon": at}
        for model, at, seed in product(("one-a", "two"), (4, 8), (0, 1))
        for budget, split in ((0.5, "test"), (1.0, "test"), (1.0, "validation"))
    ]
    rows.append({"cell": "leak", "model": "two", "seed": 0, "h.horizon": 8})  # no trials, no n
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    seen = []
    monkeypatch.setattr(engine.style, "png", lambda *_: b"")
    monkeypatch.setattr(engine, "success_against", lambda groups, *_, **__: seen.append(groups))
    engine.write_figures(tmp_path / "t.csv", ["h.horizon"])
    (groups,) = seen
    assert len(groups) == 6 and {n for one in groups.values() for n in one["n"]} == {40}
    assert "model one-a, split test, budget 0.5, p1, bounce" in groups


@pytest.mark.parametrize("cell", [{"method": "random"}, {"call": "test_experiment:describe"}])
def test_c2_a_cell_of_the_profile_full_waits_for_yes_on_a_cpu(make, cell):
    def change(tree):
        tree |= {"base": {"profile": "full"}, "models": {"base": {}}}
        tree["cells"] = [{"name": "one", "model": "base", **cell}]

    refused(RunError, "add --yes to start", run, make(change))


def test_a_cell_may_call_a_function(make):
    def calls(name="describe", **given):
        one = {"call": f"test_experiment:{name}", "model": "base", "settings": given}
        return make(lambda tree: tree.update(cells=[one]))

    made = calls(a=1, b=2)
    assert run(made)[0] == []
    rows = read(made)
    keys = ("cell", "measure", "value")
    found = [tuple(row[key] for key in keys) for row in rows]
    assert found == [("describe", "a", "1"), ("describe", "b", "2")]
    assert "1 rows, 1 done before" in run(made)[1]
    refused(RunError, r"was made with given\.b=2, not 3", run, calls(a=1, b=3))
    refused(RunError, r"was made with given\.b=2, not ; ", run, calls(a=1))
    assert "no attribute 'nothing'" in run(calls("nothing"))[0][0]


def test_i1_stages_and_files_of_a_wing_shape_its_rows(make, tmp_path, monkeypatch):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    one = {"call": "hjepa_lib.pixels.studies:score_models", "model": "base"}

    def change(tree):
        settings(pixels__loading__path=str(weights))(tree)
        tree["cells"] = [{"name": "drawn", **one}]

    unit, table = stored(make(change))
    recipes = {**stages.pixel_stages(unit.trained)}
    recipes["comparison"] = replace(recipes["comparison"], recipe=99)
    with monkeypatch.context() as other:
        other.setattr(unit.cell.function, "stages", lambda config: recipes)
        assert table.mismatch(unit).startswith("recipe.comparison=")
    weights.write_bytes(b"another")
    assert table.mismatch(unit).startswith("files.enc_dec_s0=")


def test_commands(again, capsys, failed):
    made = again()
    for command in ("experiment", "study"):
        assert __main__.main([command, made.path, "--list"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"\ntwo +p1 +base +2/2\n", out) and "7 of 7 rows done" in out
    assert __main__.main(["study", made.path, "--only", "flat", "--seeds", "0"]) == 0
    assert f"table: {made.table}" in capsys.readouterr().out
    assert __main__.main(["study", made.path, "--models", "bas?", "--list"]) == 0
    assert "7 of 7 rows done" not in capsys.readouterr().out
    assert "nothing in" in failed("study", made.path, "--models", "none", "--list")
    assert "must be numbers such as 0+1+2" in failed("study", made.path, "--seeds", "zero")
    assert "no cell has these" in failed("study", made.path, "--seeds", "7")  # not 0 of 0 rows
    assert "'little' exists already; resume it" in failed("sweep", made.path)
    assert __main__.main(["sweep", made.path, "--resume"]) == 0


def test_shipped_files_are_valid():
    elsewhere = ("tworooms", "study", "grid", "worlds", "presets")
    paths = [path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(elsewhere)]
    assert paths and all(read_experiment(path).units for path in paths)


def test_the_trainings_of_the_committed_study_are_listed_under_their_digest():
    table = Table(STUDY.parents[2] / "outputs/gallery/study.csv")
    assert {row["training"] for row in table.rows} - {""} == set(table.trainings)
    assert all(digest(known) == name for name, known in table.trainings.items())
    assert len(table.rows) == 378
