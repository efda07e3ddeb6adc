"""The comparison is fair, resumes, and its table says what the results say."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import OVERRIDES, digest, dotted, tiny_config

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError
from hjepa_lib.evaluation.results import Case
from hjepa_lib.models.checkpoint import load_level1
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.workbench import compare

pytestmark = pytest.mark.usefixtures("short_probe")


@pytest.fixture
def write(tmp_path):
    """Function of settings for l1, l2 or both that writes the two YAML files -> arguments."""

    def files(both=(), l1=(), l2=()):
        found = {}
        sides = {"l1": {"level2__disable_l2": True} | dict(l1), "l2": dict(l2)}
        for side, changes in sides.items():
            path = tmp_path / f"{side}.yaml"
            leaves = OVERRIDES | dotted(dict(both) | changes)
            if leaves.get("level2.disable_l2"):
                rests = ("level2.", "planning.hierarchy.")
                keep = "level2.disable_l2"
                leaves = {k: v for k, v in leaves.items() if k == keep or not k.startswith(rests)}
            if leaves.get("level2.train") == "joint":
                leaves = {k: v for k, v in leaves.items() if not k.startswith("level2.optim.")}
            path.write_text(yaml.safe_dump({"profile": "smoke"} | leaves))
            found[f"config_{side}"] = path
        return found

    return files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "elsewhere"))
    return tmp_path / "out"


def go(files, folder, **options):
    """Run the comparison; returns what it printed."""
    said = []
    compare.compare(**files, output_root=folder, say=said.append, **options)
    return "\n".join(said)


def model_of(run):
    return digest(load_level1(run / "l1")[0])


def test_both_sides_share_level_1_and_write_the_table(write, folder):
    """Seed 000 D: l2 trains on the frozen level 1 of l1, same data; a second run is free."""
    files = write()
    said = go(files, folder, seed=3)
    one, two = folder / "l1-s3", folder / "l2-s3"
    assert model_of(one) == model_of(two)
    assert (one / "l1" / "distance.safetensors").read_bytes() == (
        two / "l1" / "distance.safetensors"
    ).read_bytes()
    assert Run.at(two).manifest["stages"]["l1"]["from"] == "l1-s3"
    assert not (one / "l2").exists()
    for run in (one, two):
        assert (run / "report.html").is_file()
        assert Run.at(run).config.seed == 3
    frame = pd.read_csv(folder / compare.CSV)
    assert list(frame.columns) == ["metric", "l1", "l2"]
    values = frame.set_index("metric")
    assert values.loc["n"].tolist() == [3, 3]
    assert values["l2"]["parameters"] > values["l1"]["parameters"]
    assert values["l2"]["train_seconds"] > values["l1"]["train_seconds"]
    assert values["l1"]["probe_px_encoder"] == values["l2"]["probe_px_encoder"]
    for word in ("oracle", "random", "Wilson 95 %", "exact McNemar p", "of 3 solved"):
        assert word in said
    before = (two / "l2" / "model.safetensors").stat().st_mtime_ns
    again = go(files, folder, seed=3)
    assert "trained in" not in again
    assert (two / "l2" / "model.safetensors").stat().st_mtime_ns == before
    assert pd.read_csv(folder / compare.CSV).equals(frame)


def test_sides_one_after_the_other_and_from_scratch(write, folder):
    files = write()
    with pytest.raises(RunError, match="holds no trained level 1 for seed 0; run with --mode l1"):
        go(files, folder, mode="l2")
    assert "l2 has no result yet: run with --mode l2" in go(files, folder, mode="l1")
    assert pd.read_csv(folder / compare.CSV)["l2"].isna().all()
    assert "taken over from l1-s0" in go(files, folder, mode="l2")
    assert pd.read_csv(folder / compare.CSV)[["l1", "l2"]].iloc[0].notna().all()
    scratch = write(l2={"level1__hidden": 20, "level2__train": "joint"})
    said = go(scratch, folder, mode="l2", l2_from_scratch=True)
    assert "l2-scratch-s0    level 1 trained in" in said
    assert "exact McNemar" in said  # against the l1 of before: same data, same trials
    assert model_of(folder / "l2-scratch-s0") != model_of(folder / "l1-s0")


def test_unfinished_level_1_is_not_handed_over(write, folder):
    files = write()
    go(files, folder, mode="l1")
    (folder / "l1-s0" / "l1" / "distance.safetensors").unlink()
    with pytest.raises(RunError, match=r"stage 'distance' of .* is not complete"):
        go(files, folder, mode="l2")


@pytest.mark.parametrize(
    ("l1", "l2", "scratch", "message"),
    [
        ({"data__transitions": 2001}, {}, False, "must agree on data.transitions, they have 2001"),
        ({"level1__hidden": 20}, {"level1__hidden": 24}, False, "must agree on level1.hidden"),
        ({"level1__optim__updates": 5}, {}, False, "must agree on level1.optim.updates"),
        ({"planning__cost": "latent"}, {}, True, "must agree on planning.cost"),
        ({"evaluation__trials": 2}, {}, True, "must agree on evaluation.trials"),
        ({"data__transitions": 2001}, {}, True, "must agree on data.transitions"),
        ({}, {"level2__disable_l2": True}, False, "config_l2 sets level2.disable_l2=true"),
        ({}, {"level2__train": "joint"}, False, "add --l2_from_scratch"),
        ({"level2__disable_l2": False, "level2__train": "joint"}, {}, True, "config_l1 trains"),
        ({"evaluation__protocol": "p2_seen"}, {}, True, "config_l1 sets evaluation.protocol"),
    ],
)
def test_unfair_pairs_are_refused_by_name(l1, l2, scratch, message):
    first = tiny_config(**{"level2__disable_l2": True} | l1)
    with pytest.raises(ConfigError, match=message):
        compare.check(first, tiny_config(**l2), scratch)


def test_fair_pairs_pass():
    first = tiny_config(level2__disable_l2=True)
    compare.check(first, tiny_config(level2__z_dim=3, planning__flat__horizon=9), False)
    compare.check(first, tiny_config(level1__hidden=20, level2__train="joint"), True)


def test_other_settings_in_the_same_folder_are_refused(write, folder):
    go(write(), folder, mode="l1")
    with pytest.raises(RunError, match=r"level1.hidden=16, not 20; choose another --output_root"):
        go(write(both={"level1__hidden": 20}), folder, mode="l1")


def test_epochs_are_exact_passes_over_the_windows(write, folder):
    """PL4: E epochs are E passes, not E + 1; never less than one update."""
    config = tiny_config(level1__optim__batch=64, level2__optim__batch=64)
    train, _ = stages.acquire(config.data, 0, folder).split(config.data.val_fraction, 0)
    windows = sum(max(0, int(n) - 6 + 1) for n in train.lengths)
    macro = sum(max(0, int(n) - 9 + 1) for n in train.lengths[:10])
    for epochs in (1, 3):
        found = compare.with_epochs(config, epochs, folder)
        assert found.level1.optim.updates == round(epochs * windows / 64)
        assert found.level2.optim.updates == round(epochs * macro / 64)
        assert found.distance == config.distance
    joint = compare.with_epochs(config.override("level2.train=joint"), 1, folder)
    assert joint.level1.optim.updates == round(
        sum(max(0, int(n) - 9 + 1) for n in train.lengths) / 64
    )
    huge = config.override({"level1.optim.batch": 10**6, "level2.optim.batch": 10**6})
    least = compare.with_epochs(huge, 1, folder)
    assert (least.level1.optim.updates, least.level2.optim.updates) == (1, 1)
    with pytest.raises(ConfigError, match="epochs must be at least 1, got 0"):
        compare.with_epochs(config, 0, folder)
    files = write(both={"level1__optim__batch": 256, "level1__optim__validate_every": 1})
    wanted = round(windows / 256)
    said = go(files, folder, mode="l1", epochs=1)
    assert said.count("level 1: update") == wanted
    assert f"update {wanted} of {wanted}" in said


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory, short_probe):
    """A copy of the tiny run with its flat and l1+l2 results."""
    path = tmp_path_factory.mktemp("table") / "run"
    shutil.copytree(trained, path)
    ws = Workspace("test", Run.at(path))
    agent = stages.load_trained(ws)
    for method in ("flat", "l1+l2"):
        scoring.play(ws, agent, Case.of(ws.config, method, "distance"))
    return path


def test_table_of_one_run(evaluated):
    frame = compare.table(evaluated)
    assert list(frame.columns) == ["metric", "l1", "l2"]
    values = frame.set_index("metric")
    for side, method in compare.METHODS.items():
        result = compare.find_result(Run.at(evaluated), method, "distance")
        assert values[side]["success_rate"] == result.success.mean()
        assert values[side]["flops_per_step"] == result.header["flops_per_step"]
        assert values[side]["ci95_low"] <= values[side]["success_rate"]
        assert values[side]["success_rate"] <= values[side]["ci95_high"]
    assert values["l1"]["model_transitions_per_step"] < values["l2"]["model_transitions_per_step"]


def test_table_names_the_missing_result(evaluated, trained):
    with pytest.raises(RunError, match="no result of method 'flat' with cost 'latent' on p1"):
        compare.table(evaluated, "latent")
    with pytest.raises(RunError, match="holds no run"):
        compare.table(trained / "nowhere")


def test_mcnemar_counts_the_trials_that_only_one_side_solved(evaluated):
    results = [
        compare.find_result(Run.at(evaluated), method, "distance")
        for method in compare.METHODS.values()
    ]

    def solved(result, *trials):
        arrays = result.arrays | {"trial_success": np.array(trials, float)}
        return result._replace(arrays=arrays)

    frame = compare.side_by_side(solved(results[0], 1, 1, 0), solved(results[1], 0, 0, 0))
    values = frame.set_index("metric")
    assert values.loc["solved_only_here"].tolist() == [2, 0]
    assert values.loc["mcnemar_p"].tolist() == [0.5, 0.5]  # 2 * 0.5 ** 2
    other = results[1]._replace(header=results[1].header | {"trials_hash": "x"})
    with pytest.raises(RunError, match="differ in their trials"):
        compare.side_by_side(results[0], other)


def test_adopted_stage_follows_its_source(trained, config, tmp_path):
    """A copy is verified, not copied twice, and made again when the source has changed."""
    path = tmp_path / "source"
    shutil.copytree(trained, path)
    source, run = Run.at(path), Run.create("copy", config, tmp_path)
    for stage in ("data", "l1", "distance", "l2"):
        run.adopt(source, stage)
        assert run.done(stage)
        run.verify(stage)
    seconds = [one.manifest["stages"]["l1"]["seconds"] for one in (source, run)]
    assert seconds[0] == seconds[1]
    with source.stage("l1", reads=("data",)) as target:
        (target / "quality.json").write_text("{}")
    run.adopt(source, "l1")
    assert (run.path / "l1" / "quality.json").read_text() == "{}"
    assert not run.done("l2")  # it was made from the level 1 of before
    (path / "l1" / "quality.json").write_text("[]")
    with pytest.raises(RunError, match="differs from what stage 'l1' wrote"):
        run.adopt(source, "l1")


def test_command_line(write, folder, capsys):
    files = write()
    options = [f"--{key}={value}" for key, value in files.items()]
    arguments = ["compare", *options, "--output_root", str(folder), "--mode"]
    assert __main__.main([*arguments, "l2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert __main__.main([*arguments, "l1"]) == 0
    assert f"table: {folder / compare.CSV}" in capsys.readouterr().out


def test_shipped_configs_describe_a_fair_comparison():
    paths = [compare.Path(__main__._CONFIGS / f"tworooms_{side}.yaml") for side in ("l1", "l2")]
    l1, l2 = (compare.load_yaml(path) for path in paths)
    compare.check(l1, l2, False)
    assert l1.level2.disable_l2
    assert l1.planning.cost == l2.planning.cost
