"""Sets of overrides: recipes (`--set preset=pldm_v2`) and the profiles.

Coefficients are those of the public configurations (PLDM arXiv 2502.14819 v1 unless v2 is named;
EB-JEPA arXiv 2602.03604). Updates are exactly E epochs of batches of 64 windows; the public PLDM
code makes E + 1 passes. Learning rates are base_lr * 64 / 256. Where our terms differ from the
public ones (EB-JEPA does not normalise actions), the preset cannot reproduce it exactly.
`random_layouts` is our own, for walls and doors that stand elsewhere in every layout.
"""

from __future__ import annotations

from typing import Any

Overrides = dict[str, Any]

_REFERENCE_MODEL: Overrides = {
    "level1.encoder": "impala",
    "level1.latent_dim": 512,
    "level1.predictor": "gru",
}

_PLDM: Overrides = _REFERENCE_MODEL | {
    "level1.idm_hidden": 512,
    "level1.window": 16,
    "level1.loss.form": "pldm",
    "level1.optim.batch": 64,
    "level1.optim.weight_decay": 1e-6,
    "level1.optim.clip": 0.0,
}

_PLANNER_PLDM: Overrides = {
    "planning.cost": "latent",
    "planning.replan": 1,
    "planning.flat.method": "mppi",
    "planning.flat.horizon": 96,
    "planning.flat.samples": 2000,
    "planning.flat.iterations": 1,
    "planning.flat.sigma": 2.6,  # px: sqrt(12) normalised units x 0.75 px
    "planning.flat.temperature": 0.005,
    "planning.flat.temperature_unit": "cost",
    "planning.flat.form": "sum",
}

# name: (base_lr, std, cov, std_t, sim_t, idm, updates)
_PLDM_ROWS: dict[str, tuple[float, float, float, float, float, float, int]] = {
    "pldm_634": (0.003, 2.2, 13, 0.19, 0.5, 2, 790),
    "pldm_1269": (0.001, 2.2, 13, 0.19, 0.5, 2, 1_530),
    "pldm_5078": (0.001, 2.2, 13, 0.19, 0.5, 2, 3_100),
    "pldm_20312": (0.003, 2.2, 13, 0.19, 0.5, 2, 6_300),
    "pldm_81250": (0.001, 2.2, 13, 0.19, 0.5, 2, 12_600),
    "pldm_325k": (0.001, 3.9843, 6.9238, 0.24535, 0.74242, 1.072, 25_400),
    "pldm_1500k": (0.001, 3.9843, 6.9238, 0.24535, 0.74242, 1.072, 58_500),
    "pldm_3m": (0.0007, 3.9843, 6.9238, 0.24535, 0.74242, 1.072, 96_000),
    "pldm_length65": (0.0003, 5, 6.9238, 0.24535, 0.74242, 1.072, 110_000),
    "pldm_length33": (0.0007, 5, 6.9238, 0.24535, 0.74242, 1.072, 125_000),
    "pldm_length17": (0.0028, 3, 6.9238, 0.24535, 0.74242, 1.072, 29_000),
    "pldm_noise_001": (0.0007, 5.5, 9.7, 0.42, 0.38, 1.4, 96_000),
    "pldm_noise_01": (0.0007, 3.9843, 6.5, 0.27, 0.19, 0.6, 96_000),
    "pldm_noise_02": (0.0007, 3.9843, 6.5, 0.31, 0.72, 0.5, 96_000),
    "pldm_noise_08": (0.0007, 3.9843, 6.5, 0.31, 0.24, 1.5, 96_000),
    "pldm_noise_16": (0.0007, 3, 6.5, 0.4, 0.27, 1.4, 96_000),
}


def _pldm(row: tuple[float, float, float, float, float, float, int]) -> Overrides:
    base_lr, std, cov, std_t, sim_t, idm, updates = row
    return _PLDM | {
        "level1.optim.lr": base_lr * 64 / 256,
        "level1.optim.updates": updates,
        "level1.loss.std": std,
        "level1.loss.cov": cov,
        "level1.loss.std_t": std_t,
        "level1.loss.sim_t": sim_t,
        "level1.loss.idm": idm,
    }


PRESETS: dict[str, Overrides] = {
    **{name: _pldm(row) for name, row in _PLDM_ROWS.items()},
    "planner_pldm": _PLANNER_PLDM,
    "pldm_v2": _pldm(_PLDM_ROWS["pldm_3m"])
    | _PLANNER_PLDM
    | {
        "level1.predictors": 5,
        "level1.loss.idm": 0.0,
        "planning.flat.samples": 500,
        "planning.flat.sigma": 3.75,  # px: 5 normalised units x 0.75 px
        "planning.flat.disagreement": 1e-4,
    },
    "eb_jepa": _REFERENCE_MODEL
    | {
        "level1.idm_hidden": 256,
        "level1.window": 17,
        "level1.rollout": 8,
        "level1.loss.form": "eb_jepa",
        "level1.loss.std": 16.0,
        "level1.loss.cov": 8.0,
        "level1.loss.std_t": 0.0,
        "level1.loss.sim_t": 12.0,
        "level1.loss.idm": 1.0,
        "level1.optim.batch": 384,
        "level1.optim.updates": 3_120,
        "level1.optim.lr": 1e-3,
        "level1.optim.weight_decay": 1e-5,
        "level1.optim.final": 0.01,
        "level1.optim.clip": 2.0,
        "data.recipe": "eb_jepa",
        "data.layouts": "random",
    },
    # Places for the dot, a code of its own for the walls, a deep predictor that is refined on
    # stored latents, and distances from shortest paths among many trajectories of each layout.
    "random_layouts": {
        "data.layouts": "random",
        "data.transitions": 1_500_000,
        "level1.encoder": "keypoint",
        "level1.latent_dim": 64,
        "level1.static_dim": 32,
        "level1.layers": 6,
        "level1.window": 9,
        "level1.layouts_per_batch": 48,
        "level1.optim.batch": 96,
        "level1.optim.updates": 3_000,
        "level1.refine_updates": 8_000,
        "distance.teacher": "graph",
        "distance.hidden": 512,
        "distance.trajectories": 16_000,
        "distance.optim.updates": 6_000,
        "evaluation.protocol": "p2_heldout",
    },
}

_SMOKE_PIXELS: dict[str, Any] = {
    "pixels.seeds": 1,
    "pixels.environment.id": "hjepa/Drift-v0",
    "pixels.environment.max_steps": 30,
    "pixels.data.episodes": 10,
    "pixels.data.transitions": 240,
    "pixels.ppo.steps": 128,
    "pixels.ppo.n_envs": 1,
    "pixels.ppo.n_steps": 64,
    "pixels.encoder.cnn_filters": 8,
    "pixels.encoder.depth": 1,
    "pixels.encoder.temporal_depth": 1,
    "pixels.decoder.depth": 1,
    "pixels.optim.updates": 12,
    "pixels.decoder.optim.updates": 6,
    "pixels.reward.optim.updates": 10,
    "pixels.reward.seeds": 2,
    "pixels.reward.study_transitions": 200,
    "pixels.vjepa2.stage1.depth": 1,
    "pixels.vjepa2.stage1.optim.updates": 8,
    "pixels.vjepa2.stage2.depth": 1,
    "pixels.vjepa2.stage2.optim.updates": 12,
    "pixels.grid.size": 8,
    "pixels.grid.episodes": 6,
    "pixels.grid.steps": 12,
    "pixels.grid.encoder_depth": 1,
    "pixels.grid.depth": 1,
    "pixels.grid.optim.updates": 10,
    "pixels.grid.reward_optim.updates": 10,
}

# The budgets of seeds 001, 002 and 004.
_FULL_PIXELS: dict[str, Any] = {
    "pixels.seeds": 5,
    "pixels.data.transitions": 0,
    "pixels.encoder.kind": "vit",
    "pixels.optim.updates": 0,
    "pixels.optim.lr": 3e-4,
    "pixels.decoder.optim.updates": 0,
    "pixels.decoder.optim.lr": 3e-4,
    "pixels.reward.optim.updates": 0,
    "pixels.reward.study_transitions": 30_000,
    "pixels.vjepa2.stage1.optim.updates": 0,
    "pixels.vjepa2.stage2.optim.updates": 0,
    "pixels.grid.size": 30,
    "pixels.grid.episodes": 2_000,
    "pixels.grid.steps": 20,
    "pixels.grid.optim.updates": 0,
    "pixels.grid.reward_optim.updates": 0,
}

PROFILES: dict[str, dict[str, Any]] = {
    "laptop": {},
    "smoke": {
        "data.transitions": 20_312,
        "level1.latent_dim": 32,
        "level1.width": 16,
        "level1.hidden": 64,
        "level1.optim.updates": 60,
        "level1.optim.batch": 16,
        "level1.optim.validate_every": 30,
        "distance.trajectories": 100,
        "distance.hidden": 64,
        "distance.optim.updates": 60,
        "distance.optim.batch": 128,
        "distance.optim.validate_every": 30,
        "level2.hidden": 64,
        "level2.optim.updates": 40,
        "level2.optim.batch": 16,
        "level2.optim.validate_every": 20,
        "planning.flat.samples": 16,
        "planning.flat.iterations": 2,
        "planning.hierarchy.level2.samples": 16,
        "planning.hierarchy.level2.iterations": 2,
        "planning.hierarchy.tracker.samples": 16,
        "planning.hierarchy.tracker.iterations": 2,
        "planning.level3.samples": 16,
        "evaluation.trials": 4,
        "evaluation.steps": 40,
        "evaluation.budgets": [0.5, 1.0],
        "evaluation.budget_trials": 2,
        **_SMOKE_PIXELS,
    },
    # The reference architecture with its published coefficients, at paper scale.
    "full": {
        **PRESETS["pldm_3m"],
        "data.transitions": 3_000_000,
        "level1.optim.validate_every": 2_000,
        "distance.trajectories": 20_000,
        "distance.optim.updates": 40_000,
        "level2.optim.updates": 30_000,
        "evaluation.trials": 500,
        **_FULL_PIXELS,
    },
}
