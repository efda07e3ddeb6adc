"""The benchmark compares equal work, in turns, and reports it in one form; no time is asserted."""

import dataclasses
import json
import subprocess

import pytest
import torch

from hjepa_lib.config import ConfigError, Level1Config
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.models.encoders import ImpalaEncoder
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.workbench import sweep, timing
from hjepa_lib.workbench.bench import command, level1, memory, planning, sweeps
from hjepa_lib.workbench.bench.profiles import configs

REFERENCE, LAPTOP = configs(quick=True)
NAMES = [
    "level-1 update",
    "level-1 update, fast encoder",
    "level-1 update, fast against fp32",
    "precision of an update",
    "memory layout, impala",
    "memory layout, fast",
    "torch.compile of an update",
    "planner call",
    "planner call, batched",
    "reference planner, bf16",
    "rendering",
    "data generation",
]
DIFFERENT = ("level-1 update, fast encoder", "level-1 update, fast against fp32")  # two models


def tiny_cases(precision):
    return command.cases(REFERENCE, LAPTOP, precision, trials=3, frames=34, transitions=500)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_case_runs_and_both_sides_agree(precision):
    """The level-1 bar is about the same maths: losses and gradient norms agree."""
    cases = tiny_cases(precision)
    extra = ["reference planner, fp32"] if precision == "fp32" else []
    assert sorted(case.name for case in cases) == sorted(NAMES + extra)
    cases = [case for case in cases if not case.name.startswith("torch.compile")]  # takes a minute
    rows = {row.name: row for row in (timing.measure(case, 1) for case in cases)}
    for row in rows.values():
        assert row.rounds == 1
        assert row.candidate_seconds > 0
        assert row.per_second == pytest.approx(
            {"frames": 16, "plans": 3, "transitions": 500}[row.unit] / row.candidate_seconds
            if row.name != "rendering"
            else 34 / row.candidate_seconds
        )
        if row.name == "data generation":
            assert row.baseline_seconds is None
            assert row.ratio is None
        else:
            assert row.ratio_low == row.ratio == row.ratio_high
            assert row.ratio == pytest.approx(row.baseline_seconds / row.candidate_seconds)
        if row.name in (*DIFFERENT, "data generation"):
            assert row.difference is None
        else:
            assert row.difference <= timing.TOLERANCE
    if precision == "fp32":
        for name in ("level-1 update", "memory layout, fast", "planner call", *extra):
            assert rows[name].difference < 1e-4


def test_compiled_model_is_the_same_model(monkeypatch):
    """The case compares equal maths, and a machine without a compiler is told why it has none."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)  # compiling takes a minute
    data = generate("good", 500)
    eager = level1.update_of(Jepa, LAPTOP.level1, data, "fp32")()
    compiled = level1.update_of(level1.Compiled, LAPTOP.level1, data, "fp32")()
    assert level1.same_update(eager, compiled) < 1e-5
    monkeypatch.setattr(level1.shutil, "which", lambda name: None)
    assert level1.no_compiler() == "torch.compile needs a C++ compiler, and there is none"
    monkeypatch.setattr(level1.shutil, "which", lambda name: "/usr/bin/" + name)
    assert level1.no_compiler() == ""


def test_updates_that_do_other_maths_are_noticed():
    """The check can fail: with the two image channels swapped, the case is refused."""

    class Swapped(Jepa):
        def _pixels(self, frames):
            return super()._pixels(frames).flip(1)

    data = generate("good", 500)
    config = REFERENCE.level1
    plain = level1.update_of(level1.PlainJepa, config, data, "fp32")
    swapped = level1.update_of(Swapped, config, data, "fp32")
    case = timing.Case("update", "plain", "swapped", plain, swapped, level1.same_update, 1, "x")
    with pytest.raises(timing.BenchError, match="plain and swapped differ by"):
        timing.measure(case, 1)


def test_layouts_and_precisions_are_what_the_labels_say():
    data = generate("good", 500)
    torch.manual_seed(0)
    model = level1.PlainJepa(REFERENCE.level1, Normaliser.fit(data, 0))
    frames = torch.randint(0, 256, (3, 2, 65, 65), dtype=torch.uint8)
    pixels = model._pixels(frames)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    shipped = Jepa(REFERENCE.level1, Normaliser.fit(data, 0))
    shipped.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encode(frames), shipped.encode(frames), rtol=1e-4, atol=1e-4)
    first = level1.ChannelsFirst(REFERENCE.level1, Normaliser.fit(data, 0))
    assert first._pixels(frames).is_contiguous()
    assert shipped._pixels(frames).is_contiguous(memory_format=torch.channels_last)


def test_plain_impala_equals_the_shipped_encoder():
    encoder = ImpalaEncoder(Level1Config(latent_dim=8), 2, 65)
    x = torch.randn(2, 2, 65, 65)
    torch.testing.assert_close(level1.plain_impala(encoder, x), encoder(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [REFERENCE, LAPTOP], ids=["reference", "laptop"])
def test_batched_planning_equals_planning_one_by_one(config):
    """Noise belongs to a trial: in fp32 the batch finds the actions of the loop, in any chunks."""
    trials = 5
    # Warm enough that random weights weigh many candidates, not the plan of standing still alone.
    planner = dataclasses.replace(config.planning.flat, temperature=1.0)
    bench = planning.Bench(config, trials, planner)
    one_by_one, batched = bench.loop("fp32"), bench.call("fp32")
    torch.testing.assert_close(batched.actions, one_by_one.actions, rtol=1e-4, atol=1e-4)
    costs = (batched.search.costs, one_by_one.search.costs)
    torch.testing.assert_close(*costs, rtol=1e-4, atol=1e-5)
    assert batched.actions.shape == (trials, planner.horizon, 2)
    assert (batched.actions[0] - batched.actions[1]).abs().max() > 1e-3  # not one plan for all


def test_growth_covers_trials_samples_and_horizon():
    points = planning.growth(LAPTOP, "fp32", planning.QUICK_GROWTH, trials=2, calls=1)
    assert [(p.axis, p.value) for p in points] == [
        (axis, value) for axis, values in planning.QUICK_GROWTH.items() for value in values
    ]
    flat = LAPTOP.planning.flat
    for point in points:
        sizes = {"trials": 2, "samples": flat.samples, "horizon": flat.horizon}
        sizes[point.axis] = point.value
        work = sizes["trials"] * sizes["samples"] * sizes["horizon"] * flat.iterations
        assert point.transitions_per_second == pytest.approx(work / point.seconds)
        assert point.milliseconds_per_plan == pytest.approx(1e3 * point.seconds / sizes["trials"])
    assert planning.GROWTH["trials"][0] == 1
    assert planning.GROWTH["trials"][-1] == 1000
    assert len(planning.describe_growth(points).splitlines()) == len(points) + 1


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    kept = []

    def make():
        return lambda: kept.append(bytearray(80_000_000))  # twice: 160 MB, never freed

    added, whole = memory.added_memory(make)
    kept.clear()
    assert 0 <= added < whole
    asked = []

    def run(command, **options):
        asked.append(command[3])
        return subprocess.CompletedProcess(command, 0, "[12.0, 300.0]\n", "")

    monkeypatch.setattr(memory.subprocess, "run", run)
    rows = memory.peaks(True, "fp32", 1)
    assert asked == list(memory.works(REFERENCE, LAPTOP, "fp32")) == [row.name for row in rows]
    assert "12" in memory.describe_peaks(rows)
    monkeypatch.setattr(
        memory.subprocess, "run", lambda c, **o: subprocess.CompletedProcess(c, 1, "", "a\nno room")
    )
    with pytest.raises(timing.BenchError, match="could not be measured: no room"):
        memory.peaks(True, "fp32", 1)


def test_every_work_of_the_memory_table_runs():
    for make in memory.works(REFERENCE, LAPTOP, "fp32", trials=2).values():
        make()()


def test_sweep_is_timed_on_fresh_outputs(monkeypatch, capsys):
    seen = []

    def run_study(study, jobs, say):
        seen.append((len(study.cells), jobs, study.notebooks, study.cells[0].config.profile))
        error = "broke" if len(seen) > 2 else ""
        return None, [sweep.Outcome("bench/a", error)]

    monkeypatch.setattr(sweep, "run_study", run_study)
    times = sweeps.sweep_times(3)
    assert seen == [(3, 1, "01-05", "smoke"), (3, 2, "01-05", "smoke")]
    assert times["ratio"] == times["1 workers"] / times["2 workers"]
    assert "ratio:" in capsys.readouterr().out
    with pytest.raises(timing.BenchError, match="bench/a failed: broke"):
        sweeps.sweep_times(3)


def test_sides_take_turns_and_medians_are_compared(monkeypatch):
    order = []
    case = timing.Case(
        "case", "a", "b", lambda: order.append("a"), lambda: order.append("b"), None, 10, "items"
    )
    timing.measure(case, 3)
    assert order == ["a", "b"] * (timing.WARM_UP + 3)
    order.clear()
    assert timing.measure(case._replace(most_rounds=2), 20).rounds == 2
    assert order == ["a", "b"] * (1 + 2)
    seconds = iter([4.0, 1.0, 6.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr(timing, "_time", lambda work: next(seconds))
    row = timing.measure(case, 3)
    assert (row.baseline_seconds, row.candidate_seconds) == (6.0, 2.0)
    assert (row.ratio, row.ratio_low, row.ratio_high) == (3.0, 3.0, 4.0)
    assert row.per_second == 5.0
    text = timing.describe([row])
    assert "3.00x" in text
    assert "3.00-4.00" in text
    assert "5 items/s" in text


@pytest.mark.parametrize("difference", [0.06, float("nan")])
def test_disagreement_ends_the_measurement(difference):
    case = timing.Case("case", "a", "b", int, int, lambda a, b: difference, 1, "x")
    with pytest.raises(timing.BenchError, match="case: a and b differ by"):
        timing.measure(case, 1)


def test_command_writes_rows_and_names_bad_input(tmp_path, monkeypatch, capsys):
    small = tiny_cases("fp32")
    small[0] = small[0]._replace(name="data of none", skip="there is no such machine")
    monkeypatch.setattr(command, "cases", lambda *arguments, **sizes: small)
    monkeypatch.setattr(command.machine, "set_up", lambda threads: threads or 2)
    monkeypatch.setattr(command, "peaks", lambda *_: [memory.Peak("plan", 1.0, 2.0)])
    path = tmp_path / "bench.json"
    arguments = ["--rounds", "1", "--precision", "fp32", "--threads", "1", "--quick"]
    assert command.main([*arguments, "--only", "data", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 threads, fp32" in out
    assert "medians of 1 rounds" in out
    assert "transitions/s" in out
    assert "data of none: not measured, there is no such machine" in out
    written = json.loads(path.read_text())
    assert written["threads"] == 1
    (row,) = written["rows"]
    assert set(row) == set(timing.Row._fields)
    sections = ["--sections", "growth+memory"]
    assert command.main([*arguments, *sections, "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "A planning call as it grows" in out
    assert "Peak memory" in out
    written = json.loads(path.read_text())
    assert len(written["growth"]) == 6
    assert written["memory"] == [{"name": "plan", "added": 1.0, "whole": 2.0}]
    for wrong, message in (
        (["--only", "nothing"], "no case is called like 'nothing'"),
        (["--rounds", "0", "--only", "data"], "rounds must be at least 1"),
        (["--sections", "cases+all"], "sections must be of cases+growth+memory+sweep, got 'all'"),
    ):
        assert command.main([*wrong, "--precision", "fp32"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError):
        timing.measure(small[-1], 0)
