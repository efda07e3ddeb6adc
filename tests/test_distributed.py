import os
import subprocess
import sys

import pytest
import torch
from tiny import OVERRIDES, make_job, refused, seeded, tiny_config, tiny_data
from tiny_runs import ROOT

from hjepa_lib.__main__ import main
from hjepa_lib.config import ConfigError, profile
from hjepa_lib.data.windows import Windows
from hjepa_lib.models.checkpoint import load_part
from hjepa_lib.runs import stages
from hjepa_lib.runs.run import Run
from hjepa_lib.training import distributed, probes
from hjepa_lib.training.loop import plain
from hjepa_lib.training.probes import PROBE_OPTIM

KINDS = {
    "pldm": {"level1__loss__form": "pldm", "level1__loss__std_t": 0.2},
    "pooled": {"level1__loss__form": "eb_jepa", "level1__rollout": 3},
    "ensemble": {"level1__predictors": 2},
    "layouts": {"data__layouts": "random", "level1__layouts_per_batch": 2},
    "static": {"data__layouts": "random", "level1__static_dim": 4, "level1__layouts_per_batch": 3},
}
SETTINGS = OVERRIDES | {"distance.optim.updates": 2, "level2.optim.updates": 2}


def loss_and_gradients(kind):
    """Of one batch of 8 windows, the same wherever it is called."""
    fit = make_job("level1", tiny_config(**KINDS[kind])).fit
    loss, terms = fit.task.loss(seeded(3))
    loss.backward()
    distributed.average_gradients(fit.parameters)
    grads = {name: p.grad for name, p in fit.module.named_parameters() if p.grad is not None}
    return loss.detach(), plain(terms), grads


def process(folder):
    torch.set_num_threads(1)
    distributed.start()
    rank = distributed.rank()
    seen = {"place": (rank, distributed.count())}
    for kind in KINDS:
        seen[kind] = loss_and_gradients(kind)
    list(make_job("level1", tiny_config(), folder / f"resume{rank}").fit)
    seen["files"] = sorted(path.name for path in folder.glob(f"resume{rank}/*"))
    seen["first"] = distributed.from_first(lambda: f"rank {rank}")
    batch = Windows(tiny_data(), 5).sample(7, seeded())
    refused(
        ConfigError, r"optim\.batch=7 cannot be shared by 2 processes", distributed.own_rows, batch
    )
    torch.save(seen, folder / f"{rank}.pt")
    distributed.start = lambda: None  # the command joins the processes that are there
    command = ["train", "--profile", "smoke", "--name", "two"]
    main([*command, *(f"--set={key}={value}" for key, value in SETTINGS.items())])
    assert (distributed.rank(), distributed.count()) == (0, 1)  # the other one has ended there


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    script = "import sys, pathlib, test_distributed as t; t.process(pathlib.Path(sys.argv[1]))"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (folder / "script.py").write_text(script)
    environment = os.environ | {
        "HJEPA_OUTPUTS": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, *torchrun, str(folder / "script.py"), str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("go on with: python -m hjepa_lib run --name two --resume") == 1
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)], folder


@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_gradients_are_those_of_one_process(pair, kind):
    loss, terms, grads = loss_and_gradients(kind)
    for seen in pair[0]:
        shared_loss, shared_terms, shared_grads = seen[kind]
        assert shared_terms == pytest.approx(terms, rel=1e-5)
        torch.testing.assert_close(shared_loss, loss)
        assert shared_grads.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(shared_grads[name], grad, rtol=1e-4, atol=1e-6)
            assert torch.equal(shared_grads[name], pair[0][0][kind][2][name])  # no drift apart


def test_process_0_writes_and_the_rest_listens(pair):
    pair, _ = pair
    assert [seen["place"] for seen in pair] == [(0, 2), (1, 2)]
    assert [seen["files"] for seen in pair] == [["resume.pt"], []]
    assert [seen["first"] for seen in pair] == ["rank 0", "rank 0"]


def test_c2_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    for config in (tiny_config(level2__train="joint"), profile("smoke").override("preset=local")):
        with pytest.raises(ConfigError, match=r"joint or level1\.predictor=local runs in one proc"):
            stages.check_processes(config)


def test_a_level_1_that_is_loaded_is_trained_by_no_process(root, monkeypatch):
    donor = Run.create("donor", tiny_config())
    with donor.stage("l1", key="any") as folder:
        (folder / "l1.txt").write_text("weights")
    run = Run.create("named", tiny_config(level1__load="donor"))
    for name, stand_in in {
        "rank": lambda: 1, "count": lambda: 2, "from_first": lambda make: make(),
    }.items():  # fmt: skip
        monkeypatch.setattr(distributed, name, stand_in)
    monkeypatch.setattr(stages, "make_data", lambda ws: tiny_data())
    monkeypatch.setattr(stages, "_join_level1", lambda ws: pytest.fail("the others never come"))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        stages.train_run(lambda: run)
    assert Run.open("named").manifest["stages"]["l1"]["from"] == "donor"


def test_torchrun_leaves_the_run_of_one_process(pair, monkeypatch):
    # Other tests shorten the probe of this process, not torchrun's.
    monkeypatch.setattr(probes, "PROBE_OPTIM", PROBE_OPTIM)
    monkeypatch.setenv("HJEPA_OUTPUTS", str(pair[1]))
    stages.train_run(lambda: Run.create("one", profile("smoke").override(SETTINGS)))
    one, two = runs = [Run.open(name) for name in ("one", "two")]
    assert all(two.done(stage) for stage in ("data", "l1", "distance", "l2"))
    files = [sorted(path.relative_to(run.path) for path in run.path.rglob("*")) for run in runs]
    assert files[0] == files[1]
    for single, shared in zip(one.records("l1"), two.records("l1"), strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], rel=1e-3)
    models = [load_part(run.path / "l1", "level1").state_dict() for run in runs]
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-3, atol=1e-5)
