import json
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import refused

from hjepa_lib.__main__ import main
from hjepa_lib.files import WorkbookError, read_json
from hjepa_lib.runs.places import list_runs, outputs_root
from hjepa_lib.workbench import bench, gpu_check

REFERENCE, LAPTOP = bench.configs(quick=True)


def ways(calls):
    return {"work": {name: lambda call=call: call for name, call in calls.items()}}


@pytest.mark.parametrize("config", [REFERENCE, LAPTOP], ids=["reference", "laptop"])
def test_batched_planning_equals_planning_one_by_one(config):
    """I13."""
    planning = bench.Planning(config, 5)
    costs = planning.call("fp32")
    torch.testing.assert_close(planning.call("fp32", 1), costs, rtol=1e-4, atol=1e-5)
    assert (costs[0] - costs[1]).abs().max() > 1e-3  # not one plan for all


@pytest.mark.parametrize("outcome", [1.06, float("nan")])
def test_disagreement_ends_the_measurement(outcome):
    calls = {str(value): lambda value=value: torch.tensor([value]) for value in (1.0, outcome)}
    refused(WorkbookError, rf"work: 1\.0 and {outcome} differ by", bench.measure, ways(calls), 1)


def test_command_runs_every_way_and_names_bad_input(capsys, failed):
    assert main(["bench", "--rounds", "1", "--quick"]) == 0
    out = capsys.readouterr().out
    every = bench.works(quick=True)
    assert "1 threads" in out and sum(map(len, every.values())) == 11
    assert all(text in out for work, ways in every.items() for text in (work, *ways))
    for wrong, message in (
        (["--only", "nothing"], "no work is called like 'nothing'"),
        (["--rounds", "0", "--only", "generate"], "rounds must be at least 1"),
    ):
        assert message in failed("bench", *wrong, "--quick")


PARTS = ["about", "losses", "plans", "local", "throughput", "laptop", "full"]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HJEPA_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(gpu_check.machine, "set_up", lambda: 1)
    monkeypatch.setattr(gpu_check.machine, "has_device", lambda name: name == "cpu")


def check_of(path, seconds):
    return gpu_check.Check(path, time.monotonic() + seconds, "cpu", quick=True)


def test_the_short_form_fills_every_part(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert main(["gpu-check", "--quick", "--output", str(path)]) == 0, capsys.readouterr().out
    found = read_json(path)
    parts = found["parts"]
    assert list(parts) == PARTS and found["device"] == "cpu"
    assert not [name for name, part in parts.items() if "failed" in part or "skipped" in part]
    trained = [one for one in parts["losses"].values() if isinstance(one, dict) and "fp32" in one]
    assert len(trained) == 2 and all(one["fp32"]["gaps"] == [0, 0] for one in trained)
    assert all(one["bf16"]["gaps"][1] > 0 for one in trained)  # the comparison is of other numbers
    assert parts["plans"]["l1+l2 latent"]["gaps"] == [0, 0]
    assert {"l1+l2 graph, told none", "flat distance, told dynamics"} < set(parts["local"])
    assert parts["laptop"]["flat distance"]["n"] == 2
    assert parts["full"]["curve"][-1]["update"] == 4
    assert len(list_runs()) == 3 and not (outputs_root() / "latest").exists()


def test_time_that_ends_in_a_training_keeps_its_curve(tmp_path, monkeypatch):
    check = check_of(tmp_path / "found.json", 600)
    monkeypatch.setattr(check, "save", lambda after=0: setattr(check, "end", 0))
    found = {}
    gpu_check.full(check, found)
    assert found["cut"] == "the time was over after 1 of 4 updates" and len(found["curve"]) == 1


def test_a_fault_ends_its_part_alone(tmp_path, capsys):
    check = check_of(tmp_path / "found.json", 60)

    def broken(check, found):
        found["half"] = float("nan")
        raise RuntimeError("no kernel\nfor this")

    check.run(broken, 0)
    part = json.loads(check.output.read_text())["parts"]["broken"]
    assert part["failed"] == "RuntimeError: no kernel" and part["half"] is None
    assert "no kernel" in capsys.readouterr().out and gpu_check.wrong(check.parts)


@pytest.mark.parametrize("broken", [("", "aot_eager"), ("aot_eager",)])
def test_a_compiler_may_fail_and_nothing_else(broken, tmp_path, monkeypatch):
    def updates(config, precision, device, backend):
        if backend in broken:
            raise RuntimeError("no kernel")
        return lambda: None

    monkeypatch.setattr(gpu_check.bench, "updates", updates)
    monkeypatch.setattr(gpu_check.bench, "Planning", lambda *_: SimpleNamespace(call=lambda _: 0))
    found = {}
    gpu_check.throughput(check_of(tmp_path / "found.json", 600), found)
    assert found["update, fp32, compiled"]["error"] == "RuntimeError: no kernel"
    assert gpu_check.wrong(found) is ("" in broken)


@pytest.mark.parametrize(("gap", "within"), [(1e-5, True), (1e-3, False), (float("nan"), False)])
def test_a_gap_beyond_its_tolerance_is_named(gap, within):
    found = {"part": {"level 1": gpu_check.judged((gap, 0.0), (1e-4, 1e-2))}}
    assert gpu_check.wrong(found) is not within


def test_without_cuda_there_is_one_sentence(tmp_path, failed):
    assert failed("gpu-check", "--output", str(tmp_path / "found.json"))
    assert not list(tmp_path.iterdir())
