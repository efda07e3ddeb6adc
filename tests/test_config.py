import contextlib
import functools
import json
import math
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    OVERRIDES,
    digest,
    make_agent,
    make_job,
    make_level1,
    make_policy,
    refused,
    tiny_config,
)
from tiny_runs import ROOT
from tiny_settings import SETTINGS, base_of, other_values, turned

from hjepa_lib.config import (
    FORMER,
    MOVED,
    PRESETS,
    Config,
    ConfigError,
    Level2Config,
    LossConfig,
    OptimConfig,
    differences,
    flatten,
    from_dict,
    load_yaml,
    profile,
    read_config,
    settings_text,
    to_dict,
)
from hjepa_lib.config.fields import acts
from hjepa_lib.data.published import acquire
from hjepa_lib.evaluation import episodes
from hjepa_lib.evaluation.results import Case
from hjepa_lib.files import plain
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs import stages
from hjepa_lib.runs.machine import choose_precision
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace
from hjepa_lib.training import level1 as level1_training
from hjepa_lib.training import level2 as level2_training
from hjepa_lib.training import policies as policies_training
from hjepa_lib.training.loop import TrainingError
from hjepa_lib.worlds.trials import load_trials

BASE = tiny_config()
JOINT, RANDOM = "level2.train=joint,", "level1.static_dim=4,data.layouts=random,"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("level1.latent_dim=12.5", "latent_dim must be int"),
        ("level1.optim.lr=nan", "lr must lie in .* got nan"),
        ("level1.optim.lr=inf", "lr must lie in .* got inf"),  # C8
        ("level1.optim.batch=1", "batch must lie in"),
        ("level2.disable_l2=1", "disable_l2 must be bool"),
        ("level1.encoder=resnet", "must be one of impala, .* got 'resnet'"),
        ("evaluation.budgets=0.5+x", "budgets must be float"),
        ("evaluation.budgets=0.5+0", "budgets must lie in"),
        ("chapters.collapse_sizes=634+634", "must be values joined by"),
        ("chapters.collapse_sizes=5", "must be one of 634, 1269"),
        ("level1.widht=3", "unknown setting 'level1.widht'$"),
        ("level1=1", "'level1' is a section"),
        ("level1.width", "is not of the form dotted.key=value"),
        ("=3", "is not of the form"),
        ("seed=1,seed=2", "'seed' is given twice"),
        ("profile=full", "profile is chosen by --profile"),
        ("preset=pldm_v9", "preset must be one of .* 'pldm_v9'"),
        ("evaluation.split=mine", "one of validation, test or a file"),
        # What the chosen mode ignores, or cannot do
        ("distance.optim.patience=2", "patience must be 0"),
        ("distance.optim.schedule=plateau", "says nothing about quality"),
        ("level1.pretrain_mask=0.4", r"needs level1\.encoder=vit"),
        ("level2.feedback=true", r"needs level2\.train=joint"),
        ("level2.loss.std=1", r"needs level2\.train=joint"),
        (f"{JOINT}level1.optim.patience=2", "joint has no validation"),
        ("level1.static_dim=4", "static_dim needs"),
        (f"{RANDOM}level1.predictor=gru", "not gru"),
        ("level1.static_dim=15,data.layouts=random", "at least 2 of"),
        (f"{RANDOM}level1.layouts_per_batch=1", "layouts_per_batch other than 1"),
        (f"{JOINT}level1.refine_updates=2", r"needs level2\.train=frozen"),
        ("planning.flat.disagreement=1", r"needs level1\.predictors > 1"),
        ("level1.encoder=place", "need each other"),
        ("level1.predictor=local", "need each other"),
        ("level1.foresight=4", "foresight needs level1.predictor=local"),
        ("preset=local,level1.refine_updates=0", r"needs level1\.refine_updates"),
        ("preset=local,level1.idm_hidden=8", r"level1\.predictor!=local, else"),
        ("pixels.jepa.hidden=8+0", "hidden must lie in"),
        ("planning.cost=graph", r"needs level1\.predictor=local"),
        ("level3.enabled=true,level3.step_skip=6", r"multiple of level2\.step_skip=4"),
        ("level3.enabled=true,level3.step_skip=4", r"multiple of level2\.step_skip=4"),
        ("level3.enabled=true,level2.train=joint", r"with level2\.train=frozen"),
        ("pixels.environment.id= ", "id is empty"),
    ],
)
def test_wrong_overrides_are_one_sentence(override, message):
    """PL7, EB2, C2."""
    refused(ConfigError, message, BASE.override, override)


def test_wrong_values_in_python_are_refused_too():
    """EB2."""
    for name, value in (("batch", 4.0), ("batch", True), ("lr", True), ("lr", None), ("clip", [1])):
        refused(ConfigError, f"{name} must be", OptimConfig, **{name: value})
    with pytest.raises(TypeError):
        LossConfig(weight=1.0)
    for make, value, message in (
        (LossConfig, {"weight": 1.0}, "unknown key 'weight' in LossConfig"),
        (LossConfig, 3, "LossConfig must be a mapping"),
        (Config, {"level1": 3}, "level1 must be Level1Config"),
        (Config, {"evaluation": {"budgets": []}}, "budgets must be values"),
    ):
        refused(ConfigError, message, from_dict, make, value)


def test_strings_python_values_and_numpy_numbers_mean_the_same():
    """C8."""
    text = BASE.override(
        " seed = +3 , level1.optim.lr=1e-2,level2.disable_l2=TRUE,evaluation.budgets=0.5+2,"
        "data.transitions=10_000 , planning.flat.temperature=inf"
    )
    values = BASE.override(
        {"seed": np.int64(3), "level1.optim.lr": np.float32(0.01).item(),
         "level2.disable_l2": np.bool_(True), "evaluation.budgets": [np.float64(0.5), 2],
         "data.transitions": np.uint16(10_000), "planning.flat.temperature": math.inf}
    )  # fmt: skip
    assert differences(text, values).keys() <= {"level1.optim.lr"}
    assert type(values.seed) is int and isinstance(values.level1.optim.lr, float)
    assert values.evaluation.budgets == (0.5, 2.0)
    assert BASE.override("") == BASE.override([]) == BASE
    found = BASE.override("data.source=a=x, y.npz ,seed=3")  # C7: cut where a name follows
    assert (found.data.source, found.seed) == ("a=x, y.npz", 3)


@given(st.text(alphabet="abl12.=,+ -_", max_size=40))
def test_any_text_is_either_a_config_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(BASE.override(text), Config)


def test_round_trips_and_differences():
    changed = BASE.override("level1.optim.lr=0.5,evaluation.budgets=3,planning.hierarchy.near=inf")
    tree = json.loads(json.dumps(plain(to_dict(changed))))
    assert from_dict(Config, tree) == read_config(tree) == changed
    assert differences(BASE, changed) == {
        "level1.optim.lr": (BASE.level1.optim.lr, 0.5),
        "evaluation.budgets": ([0.5, 1.0], [3.0]),
        "planning.hierarchy.near": (BASE.planning.hierarchy.near, "inf"),
    }
    assert BASE.override(flatten(changed)) == changed


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("tries", "it is gone"),
        ("level2.levels", "it is gone"),
        ("drive", "it is gone"),
        ("planning.level3.disagreement", "it is gone"),
        ("masks", "it is gone"),
        ("chapters.masks", "it is gone"),
        ("pixels.environment.action_repeat", "it is pixels.ppo.action_repeat now"),
        ("ppo_steps", "it is chapters.ppo_steps now"),
        ("horizon", "it is chapters.level1_horizon or .* now"),
    ],
)
def test_an_old_name_is_answered_by_what_became_of_it(old, now):
    """W6."""
    refused(ConfigError, f"^unknown setting '{old}': {now}", BASE.override, f"{old}=3")
    assert not FORMER & set(SETTINGS) and {*MOVED} <= FORMER and {*MOVED.values()} <= set(SETTINGS)


def test_a_manifest_of_an_earlier_version_is_read():
    """W6."""
    tree = to_dict(BASE.override("level1.width=12"))
    tree["level1"]["idm_frozen"] = False
    assert from_dict(Config, tree) == read_config(tree)
    refused(ConfigError, "unknown key 'levels'", from_dict, Level2Config, {"levels": [7]})
    tree["planning"]["level3"]["disagreement"] = 0.0
    del tree["level2"]["kl"]
    assert read_config(tree) == BASE.override("level1.width=12")


def test_yaml_files(tmp_path):
    """D6."""
    path = tmp_path / "x.yaml"
    path.write_text("profile: smoke\nlevel1:\n  optim: {lr: 0.5}\nseed: 4\n")
    assert differences(profile("smoke"), load_yaml(path)).keys() == {"level1.optim.lr", "seed"}
    path.write_text("level1: {optim: {lr: 0.5}}\n")
    assert load_yaml(path, BASE) == BASE.override("level1.optim.lr=0.5")
    path.write_text("")
    assert load_yaml(path) == profile("laptop")
    for text, message in (
        ("level1: {widht: 3}", "unknown setting 'level1.widht'"),
        ("seed: 1\nlevel1:\n  optim: }", r"not valid YAML \(line 3, column 10\)"),
        ("seed: 1\ndata: {}\nseed: 2", "'seed' is given twice"),
        ("level1:\n  width: 8\n  width: 8", "'width' is given twice"),
        ("a: \0", "is not valid YAML: "),
        ("- a\n- b", "must hold a mapping"),
        ("profile: giant", "profile must be one of"),
    ):
        path.write_text(text)
        refused(ConfigError, message, load_yaml, path)
    refused(ConfigError, "does not exist", load_yaml, tmp_path / "absent.yaml")


def test_every_setting_is_explained():
    """C10."""
    assert [name for name, one in SETTINGS.items() if len(one.meaning) < 5] == []
    assert SETTINGS.keys() == flatten(BASE).keys()
    for one in SETTINGS.values():
        for need in one.needs:
            assert isinstance(acts(need, flatten(BASE)), bool), one
    text = settings_text("level2.c")
    assert text.splitlines()[0] == "level2.classes = 8   [2, inf)"
    assert "Classes per group." in text and "acts with level2.latent=categorical" in text
    refused(ConfigError, "no setting begins with 'level7'", settings_text, "level7")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_other_keys_win(name):
    found = flatten(Config().override(f"preset={name}"))
    assert {key: found[key] for key in PRESETS[name]} == PRESETS[name]
    key = next(key for key in PRESETS[name] if key.endswith(("samples", "updates")))
    assert flatten(Config().override(f"{key}=77,preset={name}"))[key] == 77
    for kind in ("smoke", "full"):  # none was refused for what a profile sets
        assert profile(kind).override(f"preset={name}").profile == kind


def test_presets_hold_the_published_coefficients():
    """Architectures 1.2 and 4."""
    large = (3.9843, 6.9238, 0.24535, 0.74242, 1.072)
    for name, weights, lr, updates in (
        ("pldm_634", (2.2, 13, 0.19, 0.5, 2), 0.00075, 790),
        ("pldm_3m", large, 0.000175, 96_000),
        ("pldm_length17", (3, *large[1:]), 0.0007, 29_000),
        ("pldm_v2", (*large[:4], 0), 0.000175, 96_000),
        ("eb_jepa", (16, 8, 0, 12, 1), 0.001, 3_120),
    ):
        level1 = Config().override(f"preset={name}").level1
        loss = level1.loss
        assert (loss.std, loss.cov, loss.std_t, loss.sim_t, loss.idm) == weights, name
        assert (loss.sim, loss.form) == (1, "eb_jepa" if name == "eb_jepa" else "pldm")
        assert (level1.optim.lr, level1.optim.updates) == (pytest.approx(lr), updates)
    v2 = profile("full", seed=7).override("preset=pldm_v2")
    assert (v2.profile, v2.seed) == ("full", 7)
    assert (v2.level1.predictors, v2.planning.flat.disagreement) == (5, 1e-4)


# Others: test_pixels_stages.py, test_trackers.py.
LEAVES = [leaf for leaf in SETTINGS if not leaf.startswith(("pixels.", "chapters.", "track"))]


def in_every_training(**changes):
    parts = ("level1", "level2", "distance", "policies")
    return {f"{part}.optim.{key}": value for part in parts for key, value in changes.items()}


def plateau(**changes):
    rest = {"schedule": "plateau", "updates": 8, "validate_every": 1} | changes
    return {key: value for key, value in in_every_training(**rest).items() if "dist" not in key}


CONTEXT = [
    (r"level1\.pretrain_.*", {"level1.encoder": "vit", "level1.pretrain_mask": 0.2,
                              "level1.pretrain_updates": 2}),
    (r"level1\.static_dim", {"data.layouts": "random"}),
    (r"level1\.loss\.static", {"data.layouts": "random", "level1.static_dim": 4}),
    (r"level1\.refine_updates", {"level1.refine_updates": 2}),
    (r"level1\.rollout", {"level1.rollout": 2}),
    (r".*\.optim\.clip", in_every_training(clip=0.01)),
    # Without learning no validation improves: patience ends it early.
    (r"(level[12]|policies)\.optim\.patience", in_every_training(lr=0.0, updates=6)),
    (r"level[12]\.optim\.delta", plateau()),
    (r"policies\.optim\.delta", plateau(lr=3e-3)),
    (r"level2\.(loss\..*|conditioning|feedback)",
     {"level2.train": "joint", "level2.loss.std": 0.5, "level2.loss.cov": 0.5}),
    (r"planning\..*\.disagreement", {"level1.predictors": 3}),
    (r"planning\..*\.form", {"planning.cost": "latent"}),  # of steps they are added in any case
    (r"planning\.ahead|level1\.foresight", {"level1.encoder": "place", "level1.predictor": "local",
                                             "level1.latent_dim": 2, "level1.refine_updates": 2}),
    # Random weights imagine short steps, unless their embedding is wide.
    (r"planning\.hierarchy\.reachable", {"distance.dim": 2048}),
]  # fmt: skip
"""The mode in which a setting is changed, where it acts in one only."""

REFUSED = [f"distance.optim.{name}" for name in ("patience", "delta")]
"""Leaves that refuse every other value here (tested above)."""

NOT_BY_EFFECT = {
    "profile": "a label: it says which defaults were taken",
    "device": "only the CPU is present everywhere; choose_device: test_cli.py",
    "evaluation.matched_dynamics": "read by a notebook",
    "evaluation.budgets": "read by a notebook",
    "evaluation.budget_trials": "read by a notebook",
    "data.position": "of recordings, see test_stages.py",
    "data.world": "of recordings, see test_stages.py",
    "evaluation.task_set": "Two Rooms has none, see test_mazes.py",
    "level1.load": "says where level 1 comes from, see test_stages.py",
}
"""Leaves without a fingerprint, and why."""


CASES = [
    pytest.param(leaf, value, id=f"{leaf}={value}")
    for leaf in LEAVES
    if leaf not in (*REFUSED, *NOT_BY_EFFECT)
    for value in other_values(leaf, flatten(base_of(leaf, BASE, CONTEXT))[leaf])
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "data.npz"
    steps = np.tile(np.linspace(10, 20, 10, dtype=np.float32)[:, None], (2, 2))
    ends = np.arange(20) % 10 == 9
    np.savez(path, actions=np.full((20, 2), 0.5, np.float32), locations=steps, terminals=ends)
    return str(path)


@pytest.fixture(autouse=True)
def small_validation(monkeypatch):
    for level in (level1_training, level2_training):
        monkeypatch.setattr(level, "VALIDATION_WINDOWS", 8)
    monkeypatch.setattr(policies_training, "VALIDATION_PAIRS", 8)
    monkeypatch.setattr(episodes, "planner_flops", lambda *_: (1.0, 1.0))  # test_episodes.py


@functools.cache
def data_print(config):
    data = acquire(config.data, config.seed)
    train, validation = data.split(config.data.val_fraction, config.seed)
    return digest(train.hash(), validation.hash())


@functools.cache
def training_print(kind, config):
    """Reports and weights of a tiny training, or the sentence that ends it."""
    config = config.override({"precision": choose_precision("cpu", config.precision)})
    layouts = "random" if config.data.layouts == "random" else "fixed"
    job = make_job(kind, config, layouts=layouts)
    try:
        reports = [(r.update, r.updates, r.loss, r.lr, sorted(r.validation)) for r in job.fit]
    except TrainingError as error:
        return str(error)
    return digest(reports, job.whole)


@functools.cache
def planning_print(method, config):
    trials = load_trials("p1", "validation", 5)
    cap = config.planning.action_cap
    if method == "idm":
        policy = episodes.ClonedPolicy(make_policy(config), cap, config.planning.idm_steps)
    else:
        policy = episodes.LatentPolicy(make_agent(config), method, config.planning)
    outcome = episodes.run_episodes(policy, trials, "slide", 8, cap, config.seed)
    return digest(outcome.actions.tobytes())


def fingerprint(leaf, config):
    section, part = (*leaf.split("."), "")[:2]
    if section == "data":
        return data_print(config)
    if leaf in ("level2.disable_l2", "level3.enabled"):
        return digest(scoring.learned(config))
    if part == "ahead":  # random models imagine no way: test_local.py
        return Case.of(config, "graph", "graph").digest
    if part == "foresight":  # likewise in test_mover.py
        return digest(str(make_level1(config, config.seed)))
    if section == "planning":
        methods = {"hierarchy": "l1+l2", "level3": "l1+l2+l3", "idm_steps": "idm"}
        return planning_print(methods.get(part, "flat"), config)
    if section == "level2":
        return training_print("joint" if config.level2.train == "joint" else "level2", config)
    kinds = {"seed": "level1", "precision": "level1", "refine_updates": "refinement"}
    kinds |= dict.fromkeys(("pretrain_mask", "pretrain_updates"), "pretraining")
    return training_print(kinds.get(part or section, section), config)


@pytest.mark.parametrize(
    ("leaf", "value"), [case for case in CASES if not case.values[0].startswith("evaluation.")]
)
def test_every_setting_changes_what_it_is_for(leaf, value, published):
    """PL7, EB2, F9."""
    base = base_of(leaf, BASE, CONTEXT)
    changed = base.override({leaf: published if value == "<npz>" else value})
    assert differences(base, changed).keys() == {leaf}
    assert fingerprint(leaf, changed) != fingerprint(leaf, base)


OWN_CHECK = r"level2\.(conditioning|feedback|loss\.(std|std_t|cov|sim_t|idm))|.*disagreement"
"""Leaves that their section refuses already when it is built."""


@pytest.mark.parametrize(
    "leaf",
    [name for name, one in SETTINGS.items() if one.needs and not re.fullmatch(OWN_CHECK, name)],
)
def test_a_switched_off_setting_is_refused_by_name(leaf):
    """C2."""
    base = turned(SETTINGS[leaf].needs[-1], False, profile("laptop"))
    before = flatten(base)[leaf]
    value = (other_values(leaf, before) or ["x"])[0]
    refused(ConfigError, f"{leaf.split('.')[-1]}.* needs ", base.override, {leaf: value})
    assert base.override({leaf: before}) == base
    assert flatten(base.override({leaf: value}, strict=False))[leaf] != before


OFF = [
    leaf
    for leaf in LEAVES
    if SETTINGS[leaf].needs
    # One layout is drawn by other numbers; without a mask there is no pre-training to look at.
    and leaf not in (*REFUSED, "level1.layouts_per_batch", "level1.pretrain_updates")
    # A level that is not there: nothing to measure.
    and SETTINGS[leaf].needs[-1] not in ("level2.disable_l2=false", "level3.enabled=true")
    # It has another training.
    and SETTINGS[leaf].needs[-1] != "level1.predictor!=local"
    and not leaf.startswith(("level2.optim.", "planning.level3."))
]


@pytest.mark.parametrize("leaf", OFF)
def test_what_is_refused_does_nothing_indeed(leaf):
    """C2."""
    base = turned(SETTINGS[leaf].needs[-1], False, BASE)
    value = other_values(leaf, flatten(base)[leaf])[0]
    changed = base.override({leaf: value}, strict=False)
    assert fingerprint(leaf, changed) == fingerprint(leaf, base)


@pytest.mark.parametrize(
    ("leaf", "value"), [case for case in CASES if case.values[0].startswith("evaluation.")]
)
def test_every_evaluation_setting_changes_the_result(leaf, value, trained, tmp_path, monkeypatch):
    """PL7."""
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))

    def result(config):
        name = f"run{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained, tmp_path / name)
        ws = Workspace("test", Run.at(tmp_path / name))
        ws.config = config
        agent = stages.load_trained(ws)
        found = scoring.play(ws, agent, Case.of(ws.config, "flat", "latent"))
        timed = found.header["latency_single_episode"] is not None
        arrays = found.arrays["positions"], found.arrays["goal"], found.arrays["layout"]
        about = [found.header[name] for name in ("protocol", "trials_hash")]
        about.append(len(scoring.cases_of(config)))
        return digest(*about, timed, *map(np.ndarray.tobytes, arrays))

    free = BASE.override({"planning.action_cap": 0.0})
    assert result(free.override({leaf: value})) != result(free)


def test_every_leaf_is_covered():
    """PL7."""
    tested = {case.values[0] for case in CASES}
    assert tested | {*REFUSED, *NOT_BY_EFFECT} == set(LEAVES)
    assert len(REFUSED) + len(NOT_BY_EFFECT) <= 11
    for name, why in NOT_BY_EFFECT.items():  # where else it is tested, there it is named
        for file in re.findall(r"test_\w+\.py", why):
            assert re.search(name.split(".")[-1], (ROOT / "tests" / file).read_text()), name
    texts = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    read = [name for name, why in NOT_BY_EFFECT.items() if "notebook" in why]
    assert all(re.search(rf"\b{re.escape(name)}\b", texts) for name in read)
    assert set(OVERRIDES) <= SETTINGS.keys()
    for pattern, overrides in CONTEXT:
        assert any(re.fullmatch(pattern, leaf) for leaf in LEAVES), pattern
        assert set(overrides) <= set(LEAVES)
