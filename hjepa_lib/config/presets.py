"""Sets of overrides: recipes (`--set preset=pldm_v2`) and the profiles.

Coefficients are the public ones (PLDM arXiv 2502.14819 v1, v2; EB-JEPA arXiv 2602.03604). Updates
are E epochs of batches of 64 windows (the public PLDM code makes E + 1 passes).
"""

from __future__ import annotations

from typing import Any

from hjepa_lib.config.fields import leaves

Overrides = dict[str, Any]

_SMALL, _LARGE = (2.2, 13, 0.19, 0.5, 2), (3.9843, 6.9238, 0.24535, 0.74242, 1.072)
_PLDM_ROWS = {
    "pldm_634": (0.003, *_SMALL, 790),
    "pldm_1269": (0.001, *_SMALL, 1_530),
    "pldm_5078": (0.001, *_SMALL, 3_100),
    "pldm_20312": (0.003, *_SMALL, 6_300),
    "pldm_81250": (0.001, *_SMALL, 12_600),
    "pldm_325k": (0.001, *_LARGE, 25_400),
    "pldm_1500k": (0.001, *_LARGE, 58_500),
    "pldm_3m": (0.0007, *_LARGE, 96_000),
    "pldm_length65": (0.0003, 5, 6.9238, 0.24535, 0.74242, 1.072, 110_000),
    "pldm_length33": (0.0007, 5, 6.9238, 0.24535, 0.74242, 1.072, 125_000),
    "pldm_length17": (0.0028, 3, 6.9238, 0.24535, 0.74242, 1.072, 29_000),
}
"""{preset: base_lr, std, cov, std_t, sim_t, idm, updates}"""


def _pldm(name: str) -> Overrides:
    base_lr, std, cov, std_t, sim_t, idm, updates = _PLDM_ROWS[name]
    loss = {"form": "pldm", "std": std, "cov": cov, "std_t": std_t, "sim_t": sim_t, "idm": idm}
    optim = {"updates": updates, "batch": 64, "lr": base_lr * 64 / 256, "weight_decay": 1e-6}
    model = {"encoder": "impala", "latent_dim": 512, "predictor": "gru", "idm_hidden": 512}
    return leaves({"level1": model | {"window": 16, "loss": loss, "optim": optim | {"clip": 0.0}}})


_PLANNER_PLDM = leaves({
    "planning": {"cost": "latent", "replan": 1},
    "planning.flat": {
        "method": "mppi", "horizon": 96, "samples": 2000, "iterations": 1, "form": "sum",
        "sigma": 2.6,  # px: sqrt(12) normalised units x 0.75 px
        "temperature": 0.005, "temperature_unit": "cost",
    },
})  # fmt: skip
PRESETS: dict[str, Overrides] = {
    **{name: _pldm(name) for name in _PLDM_ROWS},
    "planner_pldm": _PLANNER_PLDM,
    "pldm_v2": _pldm("pldm_3m") | _PLANNER_PLDM | leaves({
        "level1": {"predictors": 5, "loss.idm": 0.0},
        "planning.flat": {"samples": 500, "disagreement": 1e-4,
                          "sigma": 3.75},  # px: 5 normalised units x 0.75 px
    }),
    "eb_jepa": leaves({
        "data": {"recipe": "eb_jepa", "layouts": "random"},
        "level1": {"encoder": "impala", "latent_dim": 512, "predictor": "gru", "idm_hidden": 256,
                   "window": 17, "rollout": 8},
        "level1.loss": {"form": "eb_jepa", "std": 16.0, "cov": 8.0, "std_t": 0.0, "sim_t": 12.0,
                        "idm": 1.0},
        "level1.optim": {"batch": 384, "updates": 3_120, "lr": 1e-3, "weight_decay": 1e-5,
                         "final": 0.01, "clip": 2.0},
    }),
    # Our own: places for the dot, a code for the walls, a deep predictor that is refined on stored
    # latents, and distances from shortest paths.
    "random_layouts": leaves({
        "data": {"layouts": "random", "transitions": 1_500_000},
        "level1": {"encoder": "keypoint", "latent_dim": 64, "static_dim": 32, "layers": 6,
                   "window": 9, "layouts_per_batch": 48, "refine_updates": 8_000},
        "level1.optim": {"batch": 96, "updates": 3_000},
        "distance": {"teacher": "graph", "hidden": 512, "trajectories": 16_000},
        "distance.optim.updates": 6_000,
        "evaluation.protocol": "p2_heldout",
    }),
    # Our own: the place of what moves, by inverse dynamics alone; then a predictor that sees the
    # walls around it.
    "local": leaves({
        "level1": {"encoder": "place", "predictor": "local", "latent_dim": 2, "width": 8,
                   "hidden": 192, "layers": 3, "window": 3, "layouts_per_batch": 16,
                   "refine_updates": 2_000},
        "level1.optim": {"updates": 600, "batch": 32, "lr": 2e-3, "validate_every": 200},
        "distance": {"teacher": "graph", "trajectories": 1_200},
        "distance.optim.updates": 1_000,
        "level2": {"state_dim": 128, "kl": 0.01},
        "planning": {"cost": "graph", "flat": {"horizon": 2, "samples": 32}, "replan": 1},
    }),
}  # fmt: skip

BRIEF = {
    "local": leaves({"level1": {"refine_updates": 60}, "distance.trajectories": 100,
                     "level1.optim": {"updates": 60, "batch": 16, "validate_every": 30}}),
}  # fmt: skip
"""What the profile smoke makes of a recipe."""

_SMOKE = {
    "data.transitions": 20_312,
    "level1": {"latent_dim": 32, "width": 16, "hidden": 64},
    "level1.optim": {"updates": 60, "batch": 16, "validate_every": 30},
    "distance": {"trajectories": 100, "hidden": 64},
    "distance.optim": {"updates": 60, "batch": 128, "validate_every": 30},
    "level2.hidden": 64,
    "level2.optim": {"updates": 40, "batch": 16, "validate_every": 20},
    "policies.hidden": 64,
    "policies.optim": {"updates": 40, "batch": 16, "validate_every": 20},
    "planning": {f"{name}.samples": 16 for name in ("flat", "hierarchy.level2", "hierarchy.tracker",
                                                    "level3")},
    "evaluation": {"trials": 4, "steps": 40, "budgets": [0.5, 1.0], "budget_trials": 2},
    "pixels": {
        "seeds": 1, "data.episodes": 20, "data.transitions": 240,
        "ppo": {"steps": 128, "n_envs": 1, "n_steps": 64},
        "encoder": {"latent_dim": 32, "cnn_filters": 8, "depth": 1, "temporal_depth": 1},
        "decoder": {"depth": 1, "optim.updates": 6},
        "optim.updates": 12,
        "reward": {"optim.updates": 10, "labels": (50, 100)},
        "vjepa2.stage1": {"depth": 1, "optim.updates": 8},
        "vjepa2.stage2": {"depth": 1, "optim.updates": 12},
        "grid": {"size": 8, "episodes": 6, "steps": 12, "encoder_depth": 1, "depth": 1,
                 "optim.updates": 10},
    },
}  # fmt: skip
# The reference architecture at paper scale, and the budgets of seeds 001, 002 and 004 in passes.
_FULL = {
    "data.transitions": 3_000_000,
    "level1.optim.validate_every": 2_000,
    "distance": {"trajectories": 20_000, "optim.updates": 40_000},
    "level2.optim.updates": 30_000,
    "evaluation.trials": 500,
    "pixels": {
        "seeds": 5, "data": {"transitions": 0, "episodes": 100},
        "jepa": {"target": "default", "lr": 0.0},
        "environment": {"id": "ALE/Breakout-v5", "image_size": 64, "max_steps": 300,
                        "stack": 4},
        "encoder": {"kind": "vit", "dropout": 0.2, "embedding_dropout": 0.1, "head_dim": 64,
                    "mlp_dim": 512, "latent_dim": 64},
        "decoder": {"depth": 5, "dropout": 0.2, "mlp_dim": 512},
        "grid": {"size": 30, "episodes": 2_000, "steps": 20, "optim.lr": 1e-4},
        **{f"{part}optim": {"lr": 3e-4, "batch": 32, "schedule": "constant"}
           for part in ("", "decoder.", "reward.")},
        "reward": {"hidden": 512, "layers": 3},
        "vjepa2.stage1": {"patch_loss": 0.0, "read": "cls"},
        "vjepa2.stage2": {"dropout": 0.1, "output": "latent", "depth": 4, "head_dim": 64,
                          "mlp_dim": 512},
        **{f"vjepa2.stage{n}.optim": {"lr": 1e-4, "batch": 32, "weight_decay": 0.05, "delta": 0.0,
                                      "schedule": "plateau"} for n in (1, 2)},
        **{f"{part}optim.updates": 0 for part in ("", "decoder.", "reward.", "vjepa2.stage1.",
                                                  "vjepa2.stage2.", "grid.")},
    },
}  # fmt: skip
PROFILES: dict[str, Overrides] = {
    "laptop": {},
    "smoke": leaves(_SMOKE),
    "full": PRESETS["pldm_3m"] | leaves(_FULL),
}
