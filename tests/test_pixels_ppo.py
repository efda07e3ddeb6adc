import multiprocessing
import random

import gymnasium
import numpy as np
import pytest
import torch
from tiny_pixels import skilled

from hjepa_lib.pixels import collect as ppo
from hjepa_lib.pixels.collect import acquire, collect

pytest.importorskip("stable_baselines3.common.vec_env")


@pytest.fixture(scope="module")
def collected():
    return collect(skilled(), 0)


def test_data_say_how_they_were_made_and_are_loaded_again(collected, tmp_path):
    meta = collected.meta
    assert (meta["method"], meta["action_repeat"], meta["frame_skip"]) == ("ppo", 2, 0)
    assert meta["ppo"]["steps"] == 128 and meta["ppo"]["n_envs"] == 1
    assert len(collected) == 3 * 6  # 12 steps an episode, 2 a decision
    assert any("mean return" in note for note in meta["notes"])
    collected.save(tmp_path)
    data = acquire(skilled(data__path=str(tmp_path)), 0)
    assert data.sha256 == collected.sha256 and data.meta["ppo"] == meta["ppo"]


def test_same_seed_same_data_and_global_generators_go_on_as_before(collected):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    assert collect(skilled(), 0).sha256 == collected.sha256
    assert state() == before
    assert collect(skilled(), 1).sha256 != collected.sha256


@pytest.mark.parametrize("repeat", [1, 3])
def test_rewards_sum_up_through_all_wrappers(monkeypatch, repeat):
    base = []

    def watched(name):
        kept = gymnasium.wrappers.TransformReward
        return kept(gymnasium.make(name), lambda reward: base.append(float(reward)) or reward)

    monkeypatch.setattr("hjepa_lib.pixels.env.open_env", watched)
    env = ppo.make_training_envs(skilled(ppo__action_repeat=repeat), 0, [])
    state = env.reset()[0]
    handed, done, info = [], False, {}
    while not done:
        _, (reward,), (done,), (info,) = env.step([1])
        handed.append(reward)
    assert state.shape == (4, 16, 16) and state.dtype == np.uint8
    assert len(base) == 12 and len(handed) == 12 // repeat
    assert handed == pytest.approx(np.reshape(base, (-1, repeat)).sum(1))
    assert info["episode"]["r"] == pytest.approx(sum(base), abs=1e-5)


def test_parallel_environments_train_and_are_closed(monkeypatch):
    monkeypatch.setattr(ppo, "usable_cores", lambda: 2)
    data = collect(skilled(ppo__n_envs=2, ppo__steps=64, data__episodes=2), 0)
    assert data.meta["ppo"]["n_envs"] == 2
    assert not multiprocessing.active_children()


def test_a_worker_that_may_start_no_process_has_all_environments_itself(monkeypatch):
    monkeypatch.setattr(ppo, "usable_cores", lambda: 2)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # as Dask's
    envs = ppo.make_training_envs(skilled(ppo__n_envs=2), 0, [])
    assert envs.num_envs == 2 and not multiprocessing.active_children()
    envs.close()


def test_repeat_switches_frame_skip_off():
    data = collect(skilled(environment__frame_skip=2), 0)
    assert data.meta["frame_skip"] == 0 and len(data) == 18
    assert "frame skip is off" in data.meta["notes"][0]
    skipped = collect(skilled(environment__frame_skip=2, ppo__action_repeat=0), 0)
    assert skipped.meta["frame_skip"] == 2 and (skipped.after - skipped.now == 3).all()


def test_every_setting_reaches_the_policy():
    changes = {"n_steps": 16, "steps": 32}
    settings = {f"ppo__{name}": value for name, value in changes.items()}
    model, _ = ppo.train_policy(skilled(environment__image_size=36, **settings), 0, [])
    assert (model.n_steps, model.batch_size) == (16, 16 * model.n_envs)
    assert (model.num_timesteps, model.n_epochs) == (32, 5)
    first = next(model.policy.features_extractor.parameters())
    assert first.shape[1] == 4 and model.policy.normalize_images  # frames as channels
