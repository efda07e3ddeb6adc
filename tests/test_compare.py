"""The comparison is fair, resumes, and its table says what the results say."""

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import OVERRIDES, digest, dotted, tiny_config
from tiny_runs import Said

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError, load_yaml
from hjepa_lib.data.published import acquire
from hjepa_lib.evaluation import metrics, results
from hjepa_lib.models.checkpoint import load_level1
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.workbench import CONFIGS, compare, variants

pytestmark = pytest.mark.usefixtures("short_probe")


@pytest.fixture
def write(tmp_path):
    """Function of settings for l1, l2 or both that writes the two YAML files -> arguments."""

    def files(both=(), l1=(), l2=()):
        found = {}
        for side, own in (("l1", {"level2__disable_l2": True} | dict(l1)), ("l2", dict(l2))):
            leaves, idle = OVERRIDES | dotted(dict(both) | own), ()
            if leaves.get("level2.disable_l2"):
                idle = ("level2.", "planning.hierarchy.")
            elif leaves.get("level2.train") == "joint":
                idle = ("level2.optim.",)
            kept = ("level2.disable_l2", "level2.train")
            leaves = {k: v for k, v in leaves.items() if k in kept or not k.startswith(idle)}
            path = found[f"config_{side}"] = tmp_path / f"{side}.yaml"
            path.write_text(yaml.safe_dump({"profile": "smoke"} | leaves))
        return found

    return files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path / "elsewhere"))
    return tmp_path / "out"


def go(files, folder, **options):
    """Run the comparison; returns what it printed."""
    said = Said()
    compare.compare(**files, output_root=folder, say=said, **options)
    return "".join(said)


def side(folder, name, seed=0):
    (path,) = folder.glob(f"{name}-s{seed}-*/manifest.json")
    return path.parent


def model_of(run):
    return digest(load_level1(run / "l1"))


def test_both_sides_share_level_1_and_write_the_table(write, folder):
    """Seed 000 D: l2 trains on the frozen level 1 of l1, same data; a second run is free.

    Q5: the verdict is on planners tuned alike, that on the configured ones comes second.
    """
    files = write()
    said = go(files, folder, seed=3)
    one, two = side(folder, "l1", 3), side(folder, "l2", 3)
    assert model_of(one) == model_of(two)
    assert Run.at(two).manifest["stages"]["l1"]["from"] == Run.at(one).name
    assert not (one / "l2").exists()
    for run in (one, two):
        assert (run / "report.html").is_file() and Run.at(run).config.seed == 3
    frame = pd.read_csv(folder / compare.CSV)
    assert list(frame.columns) == ["metric", "l1", "l2"]
    values = frame.set_index("metric")
    for more in ("parameters", "train_seconds", "model_transitions_per_step"):
        assert values["l1"][more] < values["l2"][more]
    for same in ("n", "probe_px_encoder"):
        assert values["l1"][same] == values["l2"][same]
    for run, name in ((one, "l1"), (two, "l2")):
        (path,) = (run / "results").glob(f"{compare.METHODS[name]}__*.npz")
        result = results.load_result(path)
        low, high = values[name][["ci95_low", "ci95_high"]]
        assert low <= values[name]["success_rate"] == result.success.mean() <= high
        assert values[name]["flops_per_step"] == result.header["flops_per_step"]
    assert "oracle" in said and "random" in said
    verdicts = [line for line in said.splitlines() if line.startswith("verdict")]
    assert verdicts[0].startswith("verdict, flat as validation trials chose it, latent cost: ")
    assert verdicts[1].startswith("verdict, as configured, distance cost: undecided; L1+L2 ")
    for number, run in (("48", one), ("5", two)):  # Q5: played on the very runs, and both priced
        (path,) = (run / "tuned").glob("*.npz")
        header = results.load_result(path).header
        assert header["planner"].get("flat.horizon", 5) == int(number)
        assert f"of 3 at {header['flops_per_step'] / 1e6:.3g} MFLOP per step" in verdicts[0]
    assert "6 rows, 6 done before" in go(files, folder, seed=3)
    assert pd.read_csv(folder / compare.CSV).equals(frame)


def test_sides_one_after_the_other_and_from_scratch(write, folder, capsys):
    """C1: one side needs neither the other's file nor its training; here by the command.

    PL4: E epochs are E passes, not E + 1; never less than one update.
    """
    files = write(both={f"level{n}__optim__batch": 256 for n in (1, 2)})
    alone = f"compare --config_l1={files['config_l1']} --output_root={folder} --mode=l1".split()
    assert __main__.main([*alone, "--epochs=0"]) == 2
    assert capsys.readouterr().err == "error: epochs must be at least 1, got 0\n"
    assert __main__.main([*alone, "--epochs=1"]) == 0
    said = capsys.readouterr().out
    assert "l2 has no result yet: run with --mode l2" in said
    assert f"table: {folder / compare.CSV}" in said
    assert pd.read_csv(folder / compare.CSV)["l2"].isna().all()
    go(files, folder, mode="l2", epochs=1)
    assert "l1: taken from" in capsys.readouterr().out
    go(files, folder, epochs=1)
    assert pd.read_csv(folder / compare.CSV)[["l1", "l2"]].iloc[0].notna().all()
    config = tiny_config(level1__optim__batch=256, level2__optim__batch=256)
    train, _ = acquire(config.data, 0).split(config.data.val_fraction, 0)

    def updates(lengths, states, epochs=1, batch=256):
        windows = sum(max(0, int(n) - states + 1) for n in lengths)
        return round(epochs * windows / batch)

    for epochs in (1, 3):
        assert variants.with_epochs(config, epochs) == {
            "level1.optim.updates": updates(train.lengths, 6, epochs),
            "level2.optim.updates": updates(train.lengths[:10], 9, epochs),
        }
    run = Run.at(side(folder, "l1"))
    wanted = updates(train.lengths, 6)
    assert run.config.level1.optim.updates == run.records("l1")[-1]["step"] == wanted
    joint = variants.with_epochs(config.override("level2.train=joint"), 1)
    assert joint == {"level1.optim.updates": updates(train.lengths, 9)}
    huge = config.override({"level1.optim.batch": 10**6, "level2.optim.batch": 10**6})
    assert set(variants.with_epochs(huge, 1).values()) == {1}
    one = {"level1__optim__batch": 256, "level1__hidden": 20}
    with pytest.raises(RunError, match=r"row l1 .* level1.hidden=16, not 20; choose another"):
        go(write(both=one), folder, mode="l1", epochs=1)
    scratch = write(l2={"level1__hidden": 20, "level2__train": "joint"})
    assert "mcnemar_p" in go(scratch, folder / "scratch", l2_from_scratch=True)
    sides = [side(folder / "scratch", name) for name in ("l2-scratch", "l1")]
    assert model_of(sides[0]) != model_of(sides[1])


@pytest.mark.parametrize(
    ("l1", "l2", "scratch", "message"),
    [
        ({"data__transitions": 2001}, {}, False, "must agree on data.transitions, they have 2001"),
        ({"level1__hidden": 20}, {}, False, "must agree on level1.hidden"),
        ({"planning__cost": "latent"}, {}, True, "must agree on planning.cost"),
        ({"evaluation__trials": 2}, {}, True, "must agree on evaluation.trials"),
        ({}, {"level2__disable_l2": True}, False, "config_l2 sets level2.disable_l2=true"),
        ({}, {"level2__train": "joint"}, False, "add --l2_from_scratch"),
        (
            {"level2__disable_l2": False, "level2__train": "joint"},
            {},
            True,
            "config_l1 sets level2.train=joint: set",
        ),
        ({"evaluation__protocol": "p2_seen"}, {}, True, "config_l1 sets evaluation.protocol"),
        ({}, {"level2__z_dim": 3, "planning__flat__horizon": 9}, False, ""),
        ({}, {"level1__hidden": 20, "level2__train": "joint"}, True, ""),
    ],
)
def test_unfair_pairs_are_refused_by_name(l1, l2, scratch, message):
    first = tiny_config(**{"level2__disable_l2": True} | l1)
    configs = {"l1": first, "l2": tiny_config(**l2)}
    if message:
        with pytest.raises(ConfigError, match=message):
            compare.check(configs, scratch)
    else:
        compare.check(configs, scratch)


def test_mcnemar_counts_the_trials_that_only_one_side_solved():
    def result(*solved, **header):
        arrays = {f"trial_{name}": np.zeros(3) for name in (*metrics.MEANS.values(), "lost")}
        arrays["trial_success"] = np.array(solved, float)
        about = {"trials_hash": "y", "data": {}, "n": 3, "budget": 1.0, "method": "flat"}
        return results.Result(about | header, arrays)

    sides = {"flat": result(1, 1, 0), "l1+l2": result(0, 0, 0)}
    values = compare.side_by_side(sides).set_index("metric")
    assert values.loc["solved_only_here"].tolist() == [2, 0]
    assert values.loc["mcnemar_p"].tolist() == [0.5, 0.5]  # 2 * 0.5 ** 2
    assert "budget" not in values.index and values.loc["n"].tolist() == [3, 3]
    with pytest.raises(RunError, match="differ in trials_hash"):
        compare.side_by_side(sides | {"l1+l2": result(0, 0, 0, trials_hash="x")})


def test_shipped_configs_describe_a_fair_comparison():
    """C1: the file of 003's `L1 6M` run ships: as many weights as the 6M pair of `grid_size`."""
    l1, l2, large = (load_yaml(CONFIGS / f"tworooms_{one}.yaml") for one in ("l1", "l2", "l1_6m"))
    compare.check({"l1": l1, "l2": l2}, False)
    compare.check({"l1": large}, False)
    assert l1.level2.disable_l2 and large.level2.disable_l2
    assert l1.planning.cost == large.planning.cost
    assert (large.level1.latent_dim, large.level1.width, large.level1.hidden) == (256, 64, 2064)
