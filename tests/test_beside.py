"""Trainings side by side."""

import os
import signal

import pytest
import torch
from tiny_pixels import tiny_workspace

from hjepa_lib.pixels import stages
from hjepa_lib.runs.beside import beside
from hjepa_lib.runs.keys import Stage
from hjepa_lib.runs.places import RunError

OWN = "of a stage"


@pytest.fixture(autouse=True)
def threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_they_equal_those_one_after_another_also_when_stopped_between(tmp_path):
    ws, plain = (tiny_workspace(tmp_path, name=name) for name in ("beside", "plain"))
    wanted = ("enc_dec_s0", "decoder_jepa_s0")  # which reads jepa_s0
    work = stages.train(ws, *wanted)
    begun = next(work).stage
    work.close()
    ws.run.reload()
    assert ws.run.manifest["interrupted"][begun] > 0  # seconds that its stage keeps
    assert "decoder_jepa_s0" in {report.stage for report in stages.train(ws, *wanted)}
    torch.set_num_threads(1)
    list(stages.train(plain, "jepa_s0", *wanted))  # what is asked for is not taken over
    one, two = (own.run.manifest["stages"] for own in (ws, plain))
    for name in ("enc_dec_s0", "jepa_s0"):
        assert one[name]["files"] == two[name]["files"] and "from" not in two[name]


def test_an_interrupt_ends_what_a_bar_shows(tmp_path):
    work = (number for number in range(9))
    bar = tiny_workspace(tmp_path).progress(work)
    with pytest.raises(KeyboardInterrupt):
        for _ in bar:
            raise KeyboardInterrupt
    assert next(work, "closed") == "closed"


def fail(ws, folder):
    raise ConnectionError(OWN)


def die(ws, folder):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("make", "error", "said"), [(fail, ConnectionError, OWN), (die, RunError, "was killed")]
)
def test_a_process_that_fails_or_dies_is_told(make, error, said, tmp_path):
    ws = tiny_workspace(tmp_path)
    with pytest.raises(error, match=said) as told:
        list(beside(ws, [Stage("one", make), Stage("two", make)]))
    assert make is die or "in fail" in told.value.__notes__[0]
