"""The benchmark compares equal work, in turns, and reports it in one form; no time is asserted."""

import json

import pytest
import torch

from hjepa_lib import bench, timing
from hjepa_lib.config import ConfigError, profile
from hjepa_lib.data.normaliser import Normaliser
from hjepa_lib.data.recipes import generate
from hjepa_lib.models.encoders import build_encoder
from hjepa_lib.models.jepa import Jepa

REFERENCE = profile("full").override(
    {"level1.latent_dim": 16, "level1.window": 4, "level1.optim.batch": 4}
)
LAPTOP = profile("smoke").override({"level1.window": 4, "level1.optim.batch": 4})


def tiny_cases(precision):
    return bench.cases(REFERENCE, LAPTOP, precision, trials=3, frames=34, transitions=500)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_case_runs_and_both_sides_agree(precision):
    """The level-1 bar is about the same maths: losses and gradient norms agree."""
    rows = {row.name: row for row in (timing.measure(case, 1) for case in tiny_cases(precision))}
    assert list(rows) == [
        "level-1 update",
        "level-1 update, fast encoder",
        "planner call",
        "planner call, batched",
        "rendering",
        "data generation",
    ]
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
    compared = ("level-1 update", "planner call", "planner call, batched", "rendering")
    for name in compared:
        assert rows[name].difference <= timing.TOLERANCE
    if precision == "fp32":
        assert rows["level-1 update"].difference < 1e-4
        assert rows["planner call"].difference < 1e-4
    assert rows["level-1 update, fast encoder"].difference is None  # two different models


def test_updates_that_do_other_maths_are_noticed():
    """The check can fail: with the two image channels swapped, the case is refused."""

    class Swapped(Jepa):
        def _pixels(self, frames):
            return super()._pixels(frames).flip(1)

    data = generate("good", 500)
    config = REFERENCE.level1
    plain = bench.update_of(bench.PlainJepa, config, data, "fp32")
    swapped = bench.update_of(Swapped, config, data, "fp32")
    case = timing.Case("update", "plain", "swapped", plain, swapped, bench.same_update, 1, "x")
    with pytest.raises(timing.BenchError, match="plain and swapped differ by"):
        timing.measure(case, 1)


def test_plain_model_is_float32_channels_first_with_the_same_weights():
    data = generate("good", 500)
    torch.manual_seed(0)
    model = bench.PlainJepa(REFERENCE.level1, Normaliser.fit(data, 0))
    frames = torch.randint(0, 256, (3, 2, 65, 65), dtype=torch.uint8)
    pixels = model._pixels(frames)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    shipped = Jepa(REFERENCE.level1, Normaliser.fit(data, 0))
    shipped.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encode(frames), shipped.encode(frames), rtol=1e-4, atol=1e-4)


def test_plain_impala_equals_the_shipped_encoder():
    encoder = build_encoder("impala", 2, 65, 8, 0)
    x = torch.randn(2, 2, 65, 65)
    torch.testing.assert_close(bench.plain_impala(encoder, x), encoder(x), rtol=1e-4, atol=1e-5)


def test_sides_take_turns_and_medians_are_compared(monkeypatch):
    order = []
    case = timing.Case(
        "case", "a", "b", lambda: order.append("a"), lambda: order.append("b"), None, 10, "items"
    )
    timing.measure(case, 3)
    assert order == ["a", "b"] * (timing.WARM_UP + 3)
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
    monkeypatch.setattr(bench, "cases", lambda *arguments: small)
    monkeypatch.setattr(bench.machine, "set_up", lambda threads: threads or 2)
    path = tmp_path / "bench.json"
    arguments = ["--rounds", "1", "--only", "data", "--precision", "fp32", "--threads", "1"]
    assert bench.main([*arguments, "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 threads, fp32, medians of 1 rounds" in out
    assert "transitions/s" in out
    written = json.loads(path.read_text())
    assert written["threads"] == 1
    (row,) = written["rows"]
    assert set(row) == set(timing.Row._fields)
    assert bench.main(["--only", "nothing", "--precision", "fp32"]) == 2
    assert "no case is called like 'nothing'" in capsys.readouterr().err
    assert bench.main(["--rounds", "0", "--only", "data", "--precision", "fp32"]) == 2
    assert "rounds must be at least 1" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        timing.measure(small[-1], 0)
