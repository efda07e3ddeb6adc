import contextlib
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny import OVERRIDES, digest, dotted, make_agent, make_store, refused, seeded, tiny_config
from tiny_runs import Said

from hjepa_lib import __main__
from hjepa_lib.config import ConfigError, PlanningConfig, load_yaml, profile
from hjepa_lib.data.published import acquire
from hjepa_lib.data.recipes import generate
from hjepa_lib.evaluation import horizons, openloop, results
from hjepa_lib.evaluation.horizons import Curve
from hjepa_lib.models.checkpoint import load_part
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.places import RunError
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.score import COSTS
from hjepa_lib.workbench import CONFIGS, compare, variants
from hjepa_lib.workbench.command import CompareCommand
from hjepa_lib.worlds.layout import Layout, layout_set
from hjepa_lib.worlds.trials import Trials

pytestmark = pytest.mark.usefixtures("short_probe")
JOINT = {"level2__train": "joint"}


@pytest.fixture
def write(tmp_path):
    """Function of settings for l1, l2 or both, which it writes -> arguments."""

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
    compare.compare(CompareCommand(**files, output_root=folder, **options), said)
    return "".join(said)


def side(folder, name, seed=0):
    (path,) = folder.glob(f"{name}-s{seed}-*/manifest.json")
    return path.parent


def model_of(run):
    return digest(load_part(run / "l1", "level1"))


def test_both_sides_share_level_1_and_write_the_table(write, folder, monkeypatch):
    """Q5."""
    files = write()
    chosen = load_yaml(files["config_l2"])
    monkeypatch.setattr(scoring, "profile", lambda _: chosen)
    said = go(files, folder, seed=3)
    one, two = side(folder, "l1", 3), side(folder, "l2", 3)
    assert model_of(one) == model_of(two)
    assert Run.at(two).manifest["stages"]["l1"]["from"] == Run.at(one).name
    assert not (one / "l2").exists()
    for run in (one, two):
        assert (run / "report.html").is_file() and Run.at(run).config.seed == 3
    frame = pd.read_csv(folder / compare.CSV)
    values = frame.set_index("metric")
    for run, name in ((one, "l1"), (two, "l2")):
        (path,) = (run / "results").glob(f"{compare.METHODS[name]}__*.npz")
        result = results.load_result(path)
        low, high = values[name][["ci95_low", "ci95_high"]]
        assert low <= values[name]["success_rate"] == result.success.mean() <= high
        assert values[name]["flops_per_step"] == result.header["flops_per_step"]
    verdicts = [line for line in said.splitlines() if line.startswith("verdict")]
    assert verdicts[0].startswith("verdict, flat as validation trials chose it, latent cost: ")
    assert verdicts[1].startswith("verdict, as configured, distance cost: undecided; L1+L2 ")
    for number, run in (("48", one), ("5", two)):  # Q5: played on the very runs, and both priced
        (path,) = (run / "tuned").glob("*.npz")
        header = results.load_result(path).header
        assert header["planner"].get("flat.horizon", 5) == int(number)
        assert f"of 3 at {header['flops_per_step'] / 1e6:.3g} MFLOP per step" in verdicts[0]
    monkeypatch.setattr(scoring, "profile", profile)  # nobody tuned these
    again = go(files, folder, seed=3)
    assert "6 rows, 6 done before" in again and "verdict, flat as" not in again
    assert pd.read_csv(folder / compare.CSV).equals(frame)


def test_sides_one_after_the_other_and_from_scratch(write, folder, capsys):
    """C1, PL4."""
    files = write(both={f"level{n}__optim__batch": 256 for n in (1, 2)})
    alone = f"compare --config_l1={files['config_l1']} --output_root={folder} --mode=l1".split()
    assert __main__.main([*alone, "--epochs=0"]) == 2
    assert capsys.readouterr().err == "error: epochs must be at least 1, got 0\n"
    assert __main__.main([*alone, "--epochs=1"]) == 0
    said = capsys.readouterr().out
    assert "l2 has no result yet: run with --mode l2" in said
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
    one = {"level1__optim__batch": 256, "level1__hidden": 20}
    with pytest.raises(RunError, match=r"row l1 .* level1.hidden=16, not 20; choose another"):
        go(write(both=one), folder, mode="l1", epochs=1)
    scratch = write(l2=JOINT | {"level1__hidden": 20})
    assert "exact McNemar p" in go(scratch, folder / "scratch", l2_from_scratch=True)
    sides = [side(folder / "scratch", name) for name in ("l2-scratch", "l1")]
    assert model_of(sides[0]) != model_of(sides[1])


@pytest.mark.parametrize(
    ("l1", "l2", "scratch", "message"),
    [
        ({"data__transitions": 2001}, {}, False, "must agree on data.transitions"),
        ({"level1__hidden": 20}, {}, False, "must agree on level1.hidden"),
        ({"planning__cost": "latent"}, {}, True, "must agree on planning.cost"),
        ({"evaluation__trials": 2}, {}, True, "must agree on evaluation.trials"),
        ({}, {"level2__disable_l2": True}, False, "config_l2 sets level2.disable_l2=true"),
        ({}, JOINT, False, "add --l2_from_scratch"),
        (JOINT | {"level2__disable_l2": False}, {}, True, "config_l1 sets level2.train=joint: set"),
        ({"evaluation__protocol": "p2_seen"}, {}, True, "config_l1 sets evaluation.protocol"),
        ({}, {"level2__z_dim": 3, "planning__flat__horizon": 9}, False, ""),
        ({}, JOINT | {"level1__hidden": 20}, True, ""),
    ],
)
def test_unfair_pairs_are_refused_by_name(l1, l2, scratch, message):
    first = tiny_config(**{"level2__disable_l2": True} | l1)
    configs = {"l1": first, "l2": tiny_config(**l2)}
    if message:
        refused(ConfigError, message, compare.check, configs, scratch)
    else:
        compare.check(configs, scratch)


def test_shipped_configs_describe_a_fair_comparison():
    """C1: 003's `L1 6M` run is among them."""
    l1, l2, large = (load_yaml(CONFIGS / f"tworooms_{one}.yaml") for one in ("l1", "l2", "l1_6m"))
    compare.check({"l1": l1, "l2": l2}, False)
    compare.check({"l1": large}, False)
    assert l1.level2.disable_l2 and large.level2.disable_l2
    assert l1.planning.cost == large.planning.cost


RNG = np.random.default_rng(5)


def test_long_walks_are_held_out_and_follow_the_data():
    for recipe in ("good", "random", "short17", "eb_jepa"):
        data = dataclasses.replace(profile("smoke").data, recipe=recipe, layouts="random")
        walks = openloop.long_walks(data, 120, 4, seed=0)
        assert walks.lengths.tolist() == [120] * 4
        assert {tuple(row) for row in walks.layout.tolist()} <= set(map(tuple, layout_set("train")))
        turns = torch.atan2(*walks.actions.view(4, 120, 2)[:, :119].unbind(-1)).diff(dim=1)
        assert (turns.cos().mean() < 0.5) == (recipe == "random")
    same, other = (openloop.long_walks(data, 120, 4, seed=seed).positions for seed in (0, 1))
    assert torch.equal(same, walks.positions) and not torch.equal(other, walks.positions)
    recorded = generate("good", 4 * 90, "random", seed=0)
    assert not np.isin(walks.positions.numpy()[:, 0], recorded.positions.numpy()[:, 0]).any()


class Exact:
    """A level 1 that adds the action to the position: right without walls."""

    def rollout_members(self, start, actions, scene=None):
        return torch.cat([start[:, None], start[:, None] + actions.cumsum(1)], 1)[None]

    def imagine(self, start, plans, context=None, scene=None):
        return start[:, None] + plans.cumsum(1)


def exact_agent(**more):
    device = torch.device("cpu")
    own = {"level1": Exact(), "level2": None, "probe": lambda z: z, "scene": lambda frames: None}
    return SimpleNamespace(**own, device=device, **more)


def free_batch(count=6, steps=30):
    start = torch.full((count, 1, 2), 10.0)
    actions = torch.rand(count, steps, 2, generator=seeded()) - 0.3
    positions = torch.cat([start, start + actions.cumsum(1)], 1)
    latents = positions.clone()
    return SimpleNamespace(latents=latents, actions=actions, positions=positions, scene=None)


def test_a_perfect_model_makes_no_error_and_never_collapses():
    batch = free_batch()
    curves = openloop.open_loop(exact_agent(), batch)
    assert np.abs(curves["level 1"].errors).max() < 1e-4
    away = (batch.positions[:, 1:] - batch.positions[:, :1]).norm(dim=-1)
    still = curves["stand still"].errors
    np.testing.assert_allclose(still, away)
    assert horizons.collapse_horizon(curves["level 1"], still) == (math.inf, math.inf, math.inf)
    assert openloop.read_error(exact_agent(), batch) == 0


@pytest.mark.parametrize("hook", ["conditioning", "feedback"])
def test_a_level_2_that_acts_on_level_1_acts_in_the_measurement_too(hook, config):
    """F11."""
    changed = tiny_config(**{"level2__train": "joint", f"level2__{hook}": True})
    agent = make_agent(changed)
    walks = openloop.long_walks(config.data, 11, 4, 0)
    batch = openloop.draw_windows(make_store(agent.level1, walks), 10, 4)
    found = openloop.open_loop(agent, batch)["level 1"].errors
    plain = openloop.open_loop(dataclasses.replace(agent, level2=None), batch)["level 1"].errors
    assert found.shape == plain.shape
    assert np.abs(found - plain).max() > 1e-6


def test_off_manifold_is_measured_in_distances_of_real_frames():
    batch = free_batch(count=1, steps=8)
    bank = batch.positions.flatten(0, 1) + torch.tensor([0.0, 0.05])
    steps = np.array([1, 4, 8])
    found = openloop.off_manifold(exact_agent(), batch, bank, steps)["level 1"]
    np.testing.assert_allclose(found.errors, 1, rtol=0.1)  # the exact model is as near as a frame
    both = exact_agent()
    both.level2 = SimpleNamespace(
        config=SimpleNamespace(actions="none", step_skip=4),
        imagine=lambda start, count, scene: SimpleNamespace(
            predictions=batch.positions[:, 4::4] + 50
        ),
    )
    above = openloop.off_manifold(both, batch, bank, steps)["level 2, prior mean"]
    assert above.steps.tolist() == [4, 8] and above.errors.min() > 50
    far = exact_agent()
    far.level1.rollout_members = lambda *walk, **_: Exact().rollout_members(*walk) + 50
    assert openloop.off_manifold(far, batch, bank, steps)["level 1"].errors.min() > 50


def test_bands_hold_the_median_and_tighten_to_nothing_without_spread():
    steps = np.arange(1, 5)
    flat = horizons.band(Curve(steps, np.tile(steps * 1.0, (20, 1))))
    for line in flat[1:]:
        np.testing.assert_array_equal(line, steps)
    errors = np.random.default_rng(0).exponential(size=(60, 60))
    _, middle, low, high = horizons.band(Curve(np.arange(60), errors))
    np.testing.assert_array_equal(middle, np.median(errors, 0))
    hits = (low <= math.log(2)) & (math.log(2) <= high)
    assert 50 <= hits.sum() <= 60  # the true median, about as often as it says


def test_collapse_horizon_of_constructed_curves_and_its_words():
    inf, steps = math.inf, np.arange(1, 21)
    line = Curve(steps, np.tile(0.5 * steps, (20, 1)))
    for limit, over in ((4.0, 9), (100.0, inf), (0.1, 1)):  # 0.5 * 8 = 4 is not beyond 4
        assert horizons.collapse_horizon(line, limit) == (over, over, over)
    dip = Curve(np.array([1, 2, 3, 4]), np.tile([5.0, 1.0, 2.0, 6.0], (9, 1)))
    assert horizons.collapse_horizon(dip, 4.0).estimate == 4  # it starts above, then falls below
    macro = Curve(np.array([8, 16, 24]), np.tile([1.0, 5.0, 6.0], (9, 1)))
    assert horizons.collapse_horizon(macro, 4.0).estimate == 16
    # An error of half the way never loses against standing still.
    way = steps * RNG.uniform(0.1, 2, size=(30, 1))
    assert horizons.collapse_horizon(Curve(steps, way / 2), way).low == inf
    late = np.where(steps > 12, 2.0, 0.5) * way
    assert horizons.collapse_horizon(Curve(steps, late), way) == (13, 13, 13)
    for override, lengths in (  # HW4: what a horizon is compared with
        ("", {"level 1": 16, "level 2": 32}),
        ("level1.rollout=8", {"level 1": 8, "level 2": 32}),
        ("level2.train=joint", {"level 1": 32, "level 2": 32}),
        ("level2.disable_l2=true", {"level 1": 16}),
    ):
        assert horizons.trained_lengths(profile("laptop").override(override)) == lengths


def test_planning_horizon_is_the_largest_not_significantly_worse():
    def found(*solved):
        table = {h: np.arange(20) < k for h, k in zip((5, 8, 48, 96), solved, strict=True)}
        return horizons.planning_horizon(table)

    assert found(20, 20, 2, 0) == (8, 8, 8)
    assert found(20, 20, 20, 20).estimate == 96
    few = found(20, 18, 15, 0)
    assert few.estimate == 48  # 5 discordant trials cannot be significant
    assert all(math.isnan(value) for value in found(0, 0, 0, 0))


def test_with_horizon_keeps_samples_or_transitions():
    planning = PlanningConfig()
    base, level2 = planning.flat, planning.hierarchy.level2
    flat = dataclasses.replace(base, horizon=96)
    wanted = dataclasses.replace(planning, flat=flat)
    assert horizons.with_horizon(planning, "flat", 96) == wanted
    seldom = dataclasses.replace(planning, replan=8)
    assert horizons.with_horizon(seldom, "flat", 5).replan == 5  # else the plan would be over
    upper = dataclasses.replace(planning.hierarchy, level2=dataclasses.replace(level2, horizon=6))
    wanted = dataclasses.replace(planning, hierarchy=upper)
    assert horizons.with_horizon(planning, "l1+l2", 48, 8) == wanted
    same = horizons.with_horizon(planning, "flat", 32, equal="transitions").flat
    assert same.samples * same.horizon == base.samples * base.horizon


def test_the_plans_of_a_perfect_model_keep_their_promise():
    plan = SimpleNamespace(actions=torch.rand(4, 12, 2))
    planner = SimpleNamespace(plan=lambda *_: plan, level1=Exact(), reset=len, every=1)
    start = torch.full((4, 2), 9.0)
    agent = exact_agent(
        encode=lambda frames: start, planner=lambda *_: planner, autocast=contextlib.nullcontext
    )
    tasks = Trials.of(start, start, Layout.fixed(4), "left room")
    found = openloop.plan_errors(agent, PlanningConfig(), tasks, "blocked")
    assert found.errors.shape == (4, 12)
    assert np.abs(found.errors).max() < 1e-4
    planner.level1 = SimpleNamespace(imagine=lambda at, plans, *_: Exact().imagine(at, 2 * plans))
    wrong = openloop.plan_errors(agent, PlanningConfig(), tasks, "blocked").errors
    np.testing.assert_allclose(wrong, plan.actions.cumsum(1).norm(dim=-1), rtol=1e-4)
    rules = []
    spy = SimpleNamespace(begin=lambda rule, seed: rules.append(rule) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the rule is that of the data
        openloop.plan_errors(agent, PlanningConfig(), spy, "slide")
    assert rules == ["slide"]


def test_variants_of_a_group_differ_in_one_thing():
    config = profile("laptop")
    made = {name: config.override(one) for name, one in variants.designs(config, 300).items()}
    sizes = [made[f"size-{n}"] for n in (634, 5078, 20312)]
    assert [one.data.transitions for one in sizes] == [634, 5078, 20312]
    assert [one.data.val_fraction for one in sizes] == [0, 0.05, 0.05]
    small, large = made["model-small"], made["model-large"]
    assert {one.level1.optim.updates for one in (*sizes, small, large)} == {300}
    assert small.level1.width < config.level1.width < large.level1.width
    one, five = (config.override(variants.epochs(config, count, 300)) for count in (5, 25))
    assert five.level1.optim.updates == pytest.approx(5 * one.level1.optim.updates, rel=0.01)
    assert one.distance == sizes[1].distance
    for both in map(made.get, variants.JOINT):
        frames = both.level1.optim.batch * (both.level2.macro_steps * both.level2.step_skip + 1)
        assert frames == pytest.approx(config.level1.optim.batch * config.level1.window, rel=0.02)
    fixed = variants.inserted(config.planning).hierarchy
    assert dataclasses.replace(fixed, near=1.0) == config.planning.hierarchy
    # of the refinement too, and never more than the profile's
    refined = tiny_config(level1__refine_updates=9)
    for updates, kept in ((4, 4), (40, 9)):
        assert variants.budget(refined, updates)["level1.refine_updates"] == kept


def test_a_variant_is_a_run_beside_its_run(ws, short_probe, monkeypatch):
    """PL8."""
    before = (ws.run.path / "manifest.json").read_text()
    changes = variants.size(ws.config, 634, 3)
    side = variants.train(ws, "size-634", changes)
    assert side.run.path.parent == ws.run.path.parent / "trained-variants"
    assert side.config.level1.optim.updates == 3
    stamp = (side.run.path / "l1" / "model.safetensors").stat().st_mtime_ns
    again = variants.train(ws, "size-634", changes)
    assert (again.run.path / "l1" / "model.safetensors").stat().st_mtime_ns == stamp
    assert (ws.run.path / "manifest.json").read_text() == before
    assert (ws.run.path.parent / "latest").read_text() == "trained\n"
    measured = variants.measure(side, ("flat",), 3, 4)
    assert [(row["method"], row["cost"]) for row in measured.rows] == [("flat", c) for c in COSTS]
    assert measured.about["steps ahead"] == variants.STEPS
    short = lambda data, states, count, seed: generate("short17", 16 * count)  # noqa: E731
    monkeypatch.setattr(variants, "long_walks", short)  # as of a world that ends its episodes soon
    assert variants.measure(side, (), 3, 4).about["steps ahead"] == 16
    # Notebook 08 refused notebook 07's folder of the same data.
    other = variants.train(ws, "size-634", changes | {"level1.optim.updates": 2})
    assert other.run.path != side.run.path and other.config.level1.optim.updates == 2


def measured(name, px, solved):
    row = {"method": "flat", "cost": "latent", "solved": np.array(solved, dtype=float)}
    return variants.Measured(name, {}, {"level 1": np.asarray(px, dtype=float)}, [row])


def test_verdicts_follow_their_rules():
    one = measured("one", RNG.uniform(3, 4, 40), [1] * 10 + [0] * 10)
    better = measured("two", one.errors["level 1"] - 1, [1] * 20)
    by_measure = {row["measure"]: row for row in variants.versus(one, better)}
    px, success = by_measure["level 1, px"], by_measure["success, flat, latent"]
    assert px["verdict"] == success["verdict"] == "second better"
    assert px["difference"] == pytest.approx(-1)
    assert success["difference"] == 0.5
    near = measured("three", one.errors["level 1"] + np.resize([1.0, -1.0], 40), [1] * 13 + [0] * 7)
    for pair, verdict in (
        ((better, one), "first better"), ((one, one), "undecided"), ((one, near), "undecided"),
    ):  # fmt: skip
        assert {row["verdict"] for row in variants.versus(*pair)} == {verdict}
