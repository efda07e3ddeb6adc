"""Refinement of the predictors on stored latents of the finished encoder."""

import pytest
from tiny import digest, frozen_stores, make_job, make_level1, tiny_config

from hjepa_lib.runs import stages
from hjepa_lib.training import refine

REFINED = {"level1__refine_updates": 6, "level1__optim__validate_every": 3}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(refine, "BATCH", 64)
    monkeypatch.setattr(refine, "VALIDATION_WINDOWS", 64)


def by_hand(model, store, first):
    """Mean squared error of the moving part after 1, 2 and 3 predicted steps from `first`."""
    total, static = 0.0, model.config.static_dim
    for member in range(model.config.predictors):
        z = store.latents[first].float()
        for ahead in (1, 2, 3):
            z = model.predict(z, store.actions[first + ahead - 1], member)
            truth = store.latents[first + ahead].float()
            total += (z - truth)[:, static:].square().mean().item() / 3
    return total / model.config.predictors


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level1__predictors": 2},
        {"level1__predictor": "transformer"},
        {"data__layouts": "random", "level1__static_dim": 4},
    ],
)
def test_the_loss_is_the_error_of_three_predicted_steps(changes):
    """Of the moving part alone where there is a static one."""
    config = tiny_config(**REFINED, **changes)
    job = make_job("refinement", config)
    store = frozen_stores(config.level1, config.seed, config.distance.trajectories)[0]
    drawn = []
    gather = store.gather
    store.gather = lambda first, length: drawn.append(first) or gather(first, length)
    try:
        wanted = make_level1(config, config.seed)  # the weights before the update
        report = next(iter(job.fit))
    finally:
        del store.gather
    assert report.loss == pytest.approx(by_hand(wanted, store, drawn[0]), rel=1e-4)


def test_only_the_predictors_learn_and_the_error_falls():
    config = tiny_config(
        level1__refine_updates=60, level1__optim__validate_every=20, level1__optim__lr=1e-2
    )
    job = make_job("refinement", config)
    before = digest(job.whole.encoder), digest(job.whole.idm)
    reports = [report.validation["loss"] for report in job.fit if report.validation]
    assert (digest(job.whole.encoder), digest(job.whole.idm)) == before
    assert reports[-1] < 0.8 * reports[0]


def test_trajectories_that_are_too_short_are_refused(monkeypatch):
    monkeypatch.setattr(refine, "STEPS", 100)
    with pytest.raises(ValueError, match="refinement needs trajectories of 101 states"):
        make_job("refinement", tiny_config(**REFINED))


def test_the_stage_refines_after_level_1_and_resumes_to_the_same(workspace_of):
    def quit_after(ws, count):
        rows = stages.train(ws, "l1")
        for _ in range(count):
            next(rows)
        rows.close()

    whole = workspace_of(tiny_config(**REFINED), "whole")
    assert len(list(stages.train(whole, "l1"))) == 10  # four of level 1, six refining
    broken = workspace_of(tiny_config(**REFINED), "broken")
    quit_after(broken, 3)
    quit_after(broken, 5)
    list(stages.train(broken, "l1"))
    weights = [(ws.run.path / "l1" / "model.safetensors").read_bytes() for ws in (whole, broken)]
    assert weights[0] == weights[1]
    plain = workspace_of(tiny_config(level1__optim__validate_every=3), "plain")
    list(stages.train(plain, "l1"))
    assert (plain.run.path / "l1" / "model.safetensors").read_bytes() != weights[0]
    assert {row["stage"] for row in whole.run.records()} == {"l1", "l1_refine"}
    assert not (whole.run.path / "resume" / "l1_refine").exists()
