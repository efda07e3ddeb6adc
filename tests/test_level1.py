import pytest
import torch
from tiny import digest, frames_of, frozen_stores, make_job, make_level1, tiny_config
from tiny_runs import cut

from hjepa_lib.config import differences, profile
from hjepa_lib.models.checkpoint import load_part
from hjepa_lib.runs import stages
from hjepa_lib.training import level1 as level1_training
from hjepa_lib.workbench import variants

VIT = {"level1__encoder": "vit", "level1__predictor": "transformer", "level1__hidden": 16}
MASKED = VIT | {"level1__pretrain_mask": 0.4, "level1__pretrain_updates": 4}
REFINED = {"level1__refine_updates": 6, "level1__optim__validate_every": 3}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(level1_training, "REFINE_BATCH", 64)
    monkeypatch.setattr(level1_training, "REFINE_WINDOWS", 64)


def test_hidden_patches_cannot_be_seen_and_visible_ones_can():
    """F4."""
    model = make_level1(tiny_config(**MASKED)).eval()
    token, plain = torch.ones(8), frames_of(1)
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    hidden[0, 3] = True  # rows 0..12, columns 39..51

    def latent(frames, mask):
        return model.encode(frames, lambda x: model.encoder(x, mask, token))

    there, elsewhere = plain.clone(), plain.clone()
    there[..., :13, 39:52] = 0
    elsewhere[..., :13, 13:26] = 0
    assert torch.equal(latent(plain, hidden), latent(there, hidden))
    assert not torch.equal(latent(plain, hidden), latent(elsewhere, hidden))
    assert torch.equal(latent(plain, torch.zeros_like(hidden)), model.encode(plain))
    assert torch.equal(model.train().encode(plain), model.eval().encode(plain))


def test_pretraining_moves_the_encoder_only_and_reports_collapse():
    job = make_job("pretraining", tiny_config(**MASKED))
    before = {name: value.clone() for name, value in job.module.state_dict().items()}
    masked = job.fit.module
    slow = [p.clone() for p in masked.slow.parameters()]
    reports = [next(iter(job.fit))]
    fast = list(job.module.encoder.parameters())
    for old, new, now in zip(slow, masked.slow.parameters(), fast, strict=True):
        assert torch.allclose(new, 0.996 * old + 0.004 * now, atol=1e-7)
    reports += list(job.fit)
    assert [(r.update, r.stage) for r in reports] == [(n, "l1_pretrain") for n in (1, 2, 3, 4)]
    after = job.module.state_dict()
    changed = {name.split(".")[0] for name in after if (after[name] != before[name]).any()}
    assert changed == {"encoder"}
    assert reports[-1].validation.keys() == {"masked_l1", "latent_std", "effective_rank"}
    coverage = {id(p) for group in job.fit.optimiser.param_groups for p in group["params"]}
    assert coverage == {id(p) for p in masked.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level1__predictors": 2},
        {"level1__predictor": "transformer"},
        {"data__layouts": "random", "level1__static_dim": 4},
    ],
)
def test_the_loss_is_the_error_of_three_predicted_steps(changes, monkeypatch):
    config = tiny_config(**REFINED, **changes)
    job = make_job("refinement", config)
    store = frozen_stores(config.level1, config.seed, config.distance.trajectories)[0]
    drawn, gather = [], store.gather
    monkeypatch.setattr(store, "gather", lambda *args: drawn.append(args[0]) or gather(*args))
    model = make_level1(config, config.seed)  # the weights before the update
    report = next(iter(job.fit))
    (first, *_), total = drawn, 0.0
    for member in range(config.level1.predictors):
        z = store.latents[first].float()
        for ahead in (1, 2, 3):
            z = model.rollout(z, store.actions[first + ahead - 1, None], member)[:, 1]
            gap = (z - store.latents[first + ahead].float())[:, config.level1.static_dim :]
            total += gap.square().mean().item() / 3
    assert report.loss == pytest.approx(total / config.level1.predictors, rel=1e-4)


def test_only_the_predictors_learn_and_the_error_falls():
    changes = {"refine_updates": 60, "optim__validate_every": 20, "optim__lr": 1e-2}
    job = make_job("refinement", tiny_config(**{f"level1__{k}": v for k, v in changes.items()}))
    before = digest(job.whole.encoder), digest(job.whole.idm)
    reports = [report.validation["loss"] for report in job.fit if report.validation]
    assert (digest(job.whole.encoder), digest(job.whole.idm)) == before
    assert reports[-1] < 0.8 * reports[0]


@pytest.mark.parametrize(
    ("changes", "names", "stops"),
    [
        (MASKED, ["l1_pretrain"] * 4 + ["l1"] * 4, (2, 6)),
        (REFINED, ["l1"] * 4 + ["l1_refine"] * 6, (3, 5)),
    ],
)
def test_the_stage_trains_one_after_the_other_and_resumes_to_the_same(
    changes, names, stops, workspace_of
):
    whole = workspace_of(tiny_config(**changes), "whole")
    reports = list(stages.train(whole, "l1"))
    assert [report.stage for report in reports] == names
    broken = workspace_of(tiny_config(**changes), "broken")
    for count in stops:
        cut(stages.train(broken, "l1"), count)
    list(stages.train(broken, "l1"))
    plain = workspace_of(tiny_config(**VIT if changes is MASKED else {}), "plain")
    list(stages.train(plain, "l1"))
    weights = [
        (ws.run.path / "l1" / "model.safetensors").read_bytes() for ws in (whole, broken, plain)
    ]
    assert weights[0] == weights[1] != weights[2]
    assert load_part(whole.run.path / "l1", "level1").config == tiny_config(**changes).level1


def test_encoders_differ_in_networks_and_objective_alone():
    base = profile("laptop")
    side, twin = map(base.override, variants.encoders(base, 100).values())
    assert side.level1.optim.updates + 20 == twin.level1.optim.updates  # 20 of pre-training
    assert {key for key in differences(side, twin) if not key.startswith("level1.")} == set()
    assert side.level1.optim.batch == twin.level1.optim.batch
