"""The flat model with as many weights as both levels."""

import pytest
import torch
from tiny import make_level1, make_level2, make_level3, tiny_config

from hjepa_lib.config import ConfigError, profile
from hjepa_lib.workbench.matching import matched_flat, parameters


def built(config):
    """Weights of the two levels, counted tensor by tensor on real models."""
    modules = [make_level1(config)]
    modules += [] if config.level2.disable_l2 else [make_level2(config)]
    modules += [make_level3(config)] if config.level3.enabled else []
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def test_parameters_equal_those_of_the_built_models():
    """HW3: every trained weight of both levels counts, a shared or frozen one not twice."""
    config = tiny_config()
    level1 = built(config.override("level2.disable_l2=true"))
    assert parameters(config) == built(config) > level1
    assert parameters(config.override("level2.disable_l2=true")) == level1
    for changes in (
        "level1.predictor=gru,level1.encoder=impala",
        "level1.predictors=3,level1.target=ema",
        "level1.idm_frozen=true",
        "level2.latent=categorical",
        "level3.enabled=true,level2.actions=concat",
        "level2.train=joint,level2.conditioning=true,level2.feedback=true",
    ):
        changed = config.override(changes)
        assert parameters(changed) == built(changed), changes


@pytest.mark.parametrize("name", ["smoke", "laptop"])
@pytest.mark.parametrize(
    "changes",
    [
        "",
        "level2.hidden=1024",
        "level1.predictors=3",
        "level1.encoder=impala",
        "level1.predictor=gru",
        "level1.encoder=impala,level1.predictor=gru",
        "level3.enabled=true",
    ],
)
def test_matched_flat_is_within_two_percent(name, changes):
    """F12: the widened level 1 alone has the weights of both levels; the rest stays the same."""
    config = profile(name).override(changes)
    overrides = matched_flat(config)
    flat = config.override(overrides)
    assert flat.level2.disable_l2
    assert not flat.level3.enabled
    assert abs(parameters(flat) / parameters(config) - 1) <= 0.02
    widths = {"level1.width", "level1.hidden", "level1.latent_dim"}
    off = {"level2.disable_l2"} | ({"level3.enabled"} if config.level3.enabled else set())
    assert overrides.keys() - widths == off
    if changes == "":
        assert "level1.latent_dim" not in overrides  # the cost keeps its space
        assert built(flat) == parameters(flat)
        ratios = [overrides[f"level1.{k}"] / getattr(config.level1, k) for k in ("width", "hidden")]
        assert ratios[0] == pytest.approx(ratios[1], rel=0.02)


def test_matching_draws_nothing_and_has_one_answer():
    before = torch.get_rng_state()
    first = matched_flat(profile("laptop"))
    assert torch.equal(torch.get_rng_state(), before)
    assert matched_flat(profile("laptop", seed=3)) == first


def test_what_cannot_be_matched_is_refused():
    config = profile("smoke")
    with pytest.raises(ConfigError, match=r"no level 2 to match: level2\.disable_l2 is set"):
        matched_flat(config.override("level2.disable_l2=true"))
    narrow = "level1.width=4,level1.hidden=4,level1.latent_dim=2,level2.hidden=4096"
    with pytest.raises(ConfigError, match=r"no flat model comes within 2% of [\d,]+ weights"):
        matched_flat(config.override(narrow))
