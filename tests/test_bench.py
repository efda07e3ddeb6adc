"""The benchmark compares equal work, in turns, and prints it; no time is asserted."""

import pytest
import torch

from hjepa_lib.__main__ import main
from hjepa_lib.files import WorkbookError
from hjepa_lib.models.level1 import Jepa
from hjepa_lib.workbench import bench

REFERENCE, LAPTOP = bench.configs(quick=True)


def ways(calls):
    return [bench.Way("work", name, lambda call=call: call) for name, call in calls.items()]


def test_updates_that_do_other_maths_are_noticed(monkeypatch):
    """The check can fail: with the two image channels swapped, the case is refused."""
    good = bench.updates(REFERENCE.level1, "fp32")

    class Swapped(Jepa):
        def pixels(self, frames):
            return super().pixels(frames).flip(1)

    monkeypatch.setattr(bench, "Jepa", Swapped)
    swapped = bench.updates(REFERENCE.level1, "fp32")
    with pytest.raises(WorkbookError, match="work: plain and swapped differ by"):
        bench.measure(ways({"plain": good, "swapped": swapped}), 1)


@pytest.mark.parametrize("config", [REFERENCE, LAPTOP], ids=["reference", "laptop"])
def test_batched_planning_equals_planning_one_by_one(config):
    """I13: a trial alone meets the noise that it meets in its batch."""
    planning = bench.Planning(config, 5)
    costs = planning.call("fp32")
    torch.testing.assert_close(planning.loop("fp32"), costs, rtol=1e-4, atol=1e-5)
    assert (costs[0] - costs[1]).abs().max() > 1e-3  # not one plan for all


def test_ways_take_turns():
    order = []
    one = torch.ones(())
    calls = {name: lambda name=name: order.append(name) or one for name in ("a", "b")}
    bench.measure(ways(calls), 3)
    assert order == ["a", "b"] + (["a"] * 3 + ["b"] * 3) * 3  # a turn warms up twice


@pytest.mark.parametrize("outcome", [1.06, float("nan")])
def test_disagreement_ends_the_measurement(outcome):
    calls = {str(value): lambda value=value: torch.tensor([value]) for value in (1.0, outcome)}
    with pytest.raises(WorkbookError, match=rf"work: 1\.0 and {outcome} differ by"):
        bench.measure(ways(calls), 1)


def test_command_runs_every_way_and_names_bad_input(monkeypatch, capsys):
    monkeypatch.setattr("hjepa_lib.runs.machine.set_up", lambda: 1)
    arguments = ["bench", "--rounds", "1", "--precision", "fp32", "--quick"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    every = bench.ways("fp32", quick=True)
    assert "1 threads, fp32" in out and len(every) == 7
    assert all(text in out for way in every for text in (way.work, way.name))
    assert len({way.title for way in bench.ways("bf16", quick=True)}) == 11
    assert main([*arguments, "--only", "generate"]) == 0
    assert "one by one" not in capsys.readouterr().out
    for wrong, message in (
        (["--only", "nothing"], "no work is called like 'nothing'"),
        (["--rounds", "0", "--only", "generate"], "rounds must be at least 1"),
    ):
        assert main(["bench", *wrong, "--precision", "fp32", "--quick"]) == 2
        assert message in capsys.readouterr().err
