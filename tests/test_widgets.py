import base64
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_agent, refused, tiny_config
from tiny_runs import LOADED, ROOT, Said, printed

from hjepa_lib.config import ConfigError, flatten
from hjepa_lib.evaluation import Case
from hjepa_lib.figures import style
from hjepa_lib.files import WorkbookError
from hjepa_lib.runs import notebooks as runner
from hjepa_lib.runs import score as scoring
from hjepa_lib.runs.run import Run
from hjepa_lib.widgets import panels
from hjepa_lib.widgets import player as players
from hjepa_lib.widgets import story as stories
from hjepa_lib.widgets.story import AHEAD, Scene, checked_scene, look, play, scene_of, trials_of
from hjepa_lib.worlds.trials import load_trials

NOTEBOOK = ROOT / "notebooks" / "06_inspect_rollouts.ipynb"
SCENE = Scene((20.0, 20.0), (45.0, 40.0), (32, 10))
STEPS = 13


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Landscapes with a sixteenth of the places, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stories, "_APART", 4)
        yield


@pytest.fixture(scope="module")
def story(agent):
    return play(agent, SCENE, "l1+l2", steps=STEPS)


@pytest.fixture(scope="module")
def flat(agent):
    return play(agent, SCENE, "flat", steps=STEPS)


@pytest.fixture(scope="module")
def near(agent):
    return play(agent, SCENE._replace(goal=(20.5, 20.0)), "flat", steps=STEPS)


def told_by(story):
    return data_of(players.player(story))["stories"][0]


def data_of(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"start": (32.0, 40.0)}, r"start \(32, 40\) is in a wall"),
        ({"start": (4.0, 30.0)}, r"start \(4, 30\) is in a wall"),
        ({"goal": (30.0, 66.0)}, r"goal \(30, 66\) is in a wall"),
        ({"start": (float("nan"), 30.0)}, r"start \(nan, 30\) is"),
        ({"row": (19, 10)}, "wall is at 19, but must be between"),
        ({"row": (32, 55)}, "door is at 55, but must be between"),
    ],
)
def test_wrong_scenes_are_refused_in_one_sentence(agent, change, sentence):
    wrong = SCENE._replace(**change)
    refused(WorkbookError, sentence, checked_scene, wrong)
    with pytest.raises(WorkbookError):
        play(agent, wrong, "flat", steps=2)
    in_the_door = SCENE._replace(start=(32.0, 12.0))
    assert checked_scene(in_the_door) is in_the_door


def test_scenes_and_trials_convert():
    trials = load_trials("p2_heldout", "validation", 3)
    scene = scene_of(trials, 2)
    assert scene.start == tuple(trials.start[2].tolist())
    assert [list(scene.row)] == trials.layout.pairs()[2:].tolist()
    several = trials_of(scene, companions=2)
    assert several.goal[0].tolist() == trials.goal[2].tolist()
    assert several.layout.pairs().unique(dim=0).tolist() == [list(scene.row)]
    assert not torch.equal(several.start[1], several.start[2])
    refused(WorkbookError, "trials 0 to 2, 3 was asked for", scene_of, trials, 3)


def test_a_story_is_whole(story):
    calls = -(-STEPS // story.replan)
    assert story.positions.shape == (STEPS + 1, 2)
    assert story.actions.shape == (STEPS, 2)
    assert story.plan.shape == (calls, 5, 2)
    assert story.macro.shape == (calls, 3, 2)
    np.testing.assert_allclose(story.positions[0], SCENE.start)
    frames = SCENE.world().render(torch.tensor(story.positions)[None])[0]
    np.testing.assert_array_equal(story.frames, frames.numpy())
    known = np.isfinite(story.ahead).all(-1).sum(1)
    np.testing.assert_array_equal(known, np.minimum(AHEAD, STEPS - np.arange(STEPS)))
    assert (story.call(0), story.call(STEPS - 1), story.call(STEPS)) == (0, calls - 1, calls - 1)


def test_open_loop_predictions_are_those_of_level_1(story, agent):
    start = agent.encode(torch.from_numpy(story.frames[3:4]))
    actions = torch.from_numpy(story.actions[3:7])[None]
    expected = agent.probe(agent.level1.rollout(start, actions)[0, 1:])
    np.testing.assert_allclose(story.ahead[3, :4], expected.numpy(), atol=1e-4)


def test_maps_hold_the_cost_of_every_free_place(agent, monkeypatch):
    monkeypatch.setattr(stories, "_APART", 1)
    maps, _ = look(agent, SCENE)
    for values in maps.costs.values():
        assert values.shape == (65, 65) and values[40, 45] == pytest.approx(0, abs=2e-3)
        assert np.nanmin(values) >= 0
        assert np.isnan(values[30, 32])


def test_the_graph_cost_is_that_of_the_scenes_own_graph(monkeypatch):
    monkeypatch.setattr(stories, "_APART", 12)
    local = {"encoder": "place", "predictor": "local", "latent_dim": 2, "refine_updates": 1}
    agent = make_agent(tiny_config(**{f"level1__{name}": value for name, value in local.items()}))
    agent.level1.idm.weight.data += torch.eye(2)  # untrained ones say that no action moves a dot
    maps, _ = look(agent, SCENE)
    rows, columns = np.isfinite(maps.costs["graph"]).nonzero()
    free = torch.from_numpy(np.stack((maps.x[columns], maps.y[rows]), -1))
    places = (free[None], torch.tensor([SCENE.goal]))
    frames, goal = (SCENE.world().render(place)[0] for place in places)
    wanted = agent.cost_to(goal, "graph")(agent.encode(frames))
    found = maps.costs["graph"][np.isfinite(maps.costs["graph"])]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def gap_of(story):
    return np.linalg.norm(story.positions[-1] - story.scene.ends[1])


def test_a_story_ends_with_the_goal_or_says_that_it_missed(near, story):
    assert near.reached == near.steps == 0
    assert gap_of(near) < 2**0.5
    assert near.outcome.startswith("reached the goal at step 0")
    assert len(near.plan) == 1
    assert told_by(near)["actions"] == []
    assert story.reached is None
    left = f"{story.way[-1]:.1f} px of way left"  # through the door, not the wall (N8)
    assert story.outcome == f"missed the goal in {STEPS} steps: {left}"
    assert story.way[-1] > gap_of(story)


@pytest.mark.parametrize("protocol", ["p1", "p2_seen", "p3"])
def test_a_story_is_solved_by_the_rule_of_its_protocol(agent, near, protocol):
    """It was cut at the first step within sqrt(2) px, whatever was asked."""
    told = play(agent, near.scene, "flat", steps=40, protocol=protocol)
    gaps = np.linalg.norm(told.positions - near.scene.ends[1], axis=-1)
    assert gaps[0] < 2**0.5 and (protocol == "p1" or gaps[-1] > 4.5)  # it walks away
    assert (told.reached, told.steps) == ((0, 0) if protocol == "p1" else (None, 40))


def test_shuffled_sub_goals_come_from_companions(agent, story):
    hierarchy = dataclasses.replace(agent.planning.hierarchy, control="shuffle")
    shuffled = dataclasses.replace(agent.planning, hierarchy=hierarchy)
    other = play(agent, SCENE, "l1+l2", shuffled, STEPS)
    assert len(other.positions) == STEPS + 1
    assert not np.array_equal(other.positions, story.positions)


def test_a_story_is_what_the_stored_result_says(ws, agent):
    """I13."""
    for method, cost in (("flat", "latent"), ("l1+l2", "distance")):
        stored = scoring.play(ws, agent, Case.of(ws.config, method, cost)).arrays["positions"][2]
        told = stories.tell(ws.config, agent, method, cost, 2)
        np.testing.assert_allclose(told.positions, stored[: told.steps + 1], atol=1e-3)
        assert told.scene == scene_of(load_trials("p1", "test", 5), 2)
        assert told.title == f"{method}, {cost} cost, test trial 2"


def test_a_planner_that_is_told_the_world_has_no_plans_to_show(agent):
    told = play(agent, SCENE, "flat", dataclasses.replace(agent.planning, truth="dynamics"), STEPS)
    assert told.plan is None and told.fan is None and len(told.near) > 1
    assert len(players.film(told).axes) == players.MOMENTS + 1
    assert told_by(told)["plan"] is None


def test_stories_are_of_the_runs_own_world(agent):
    config = tiny_config(evaluation__protocol="p3_thick_wall")
    told = stories.tell(config, agent, "flat", "latent", 0)
    np.testing.assert_array_equal(told.frames[0, 1, 30, 29:36] > 0, [0, 1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("source", ["maze_velocity", "four_rooms", "patrolled_door"])
def test_ends_move_and_what_else_a_state_says_stays(source):
    scene = scene_of(load_trials(source, "validation", 2), 1)
    (place, goal), back = scene.ends, scene.moved(*scene.ends[::-1])
    np.testing.assert_array_equal(back.ends, [goal, place])
    moved = {"maze_velocity": [0, 1, 2, 3], "four_rooms": [0, 1]}.get(source, [0, 1, 6, 7, 8, 9])
    wanted = np.array(scene.start)
    wanted[moved] = np.resize(goal, len(moved))
    np.testing.assert_allclose(back.start, wanted, rtol=1e-6)
    assert torch.equal(trials_of(back).start[0], torch.tensor(back.start))
    refused(WorkbookError, "is in a wall", checked_scene, scene.moved(place, (1.0, 1.0)))


def test_player_is_one_self_contained_piece(story, flat):
    titled = dataclasses.replace(story, title="</script><!--<script><b>")  # S10
    for page in (players.player(titled), players.player(story, flat)):
        assert page._repr_html_() == page
        assert not LOADED.search(page)
        assert page.count("</script>") == page.count("<script") == 2 and "<!--" not in page
        assert len(page) < 600_000
    told = told_by(titled)
    assert told["title"] == titled.title
    assert [len(row) for row in told["ahead"]] == [min(AHEAD, STEPS - i) for i in range(STEPS)]
    assert players.colours_of(flat, story) == [style.BLUE, style.ORANGE]
    assert players.colours_of(flat, flat) == [style.BLUE, style.PURPLE]
    refused(style.FigureError, "one story or two, got 3", players.player, story, story, story)


def test_sprite_holds_the_frames_in_reading_order(story):
    sheet = players.sprite(story.frames)
    assert sheet.shape == (65, 16 * 65, 3)
    for step in (0, 7, STEPS):
        tile = sheet[:, step * 65 : (step + 1) * 65]
        assert tile[story.frames[step, 0] == story.frames[step, 0].max()].min() > 200
    assert players.sprite(np.repeat(story.frames, 2, 0)).shape == (130, 16 * 65, 3)


def test_pictures_show_the_room(story):
    code = told_by(story)["floor"].split(",")[1]
    floor = Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")
    places = [(32, 40), (32, 30), (20, 20), (32, 10)]
    wall, same, free, door = (
        floor.getpixel(tuple(int((v + 0.5) * floor.width / 65) for v in place)) for place in places
    )
    assert wall == same != free == door


def test_scripts_name_what_the_data_hold(story):
    text = "\n".join(players._part(name) for name in ("panels.js", "charts.js", "player.js"))
    told = data_of(players.player(story))
    for name in set(told) | set(told["stories"][0]):
        assert re.search(rf"\.{name}\b", text), f"{name} is sent, and never read"
    for name in set(re.findall(r"\bdata\.(\w+)", text)):
        assert name in told, name
    for name in set(re.findall(r"\bstory\.(\w+)", text)):
        assert name in told["stories"][0], name


@pytest.mark.parametrize("method", ["flat", "l1+l2"])
def test_knobs_change_a_planner_and_name_what_differs(agent, method):
    config, level1 = tiny_config(), "flat" if method == "flat" else "hierarchy.tracker"
    usual = flatten(config.planning)
    base = {name: usual[name] for name in stories.options_of(agent, method)}
    assert ("hierarchy.control" in base) == (method == "l1+l2") and f"{level1}.samples" in base
    told = stories.play_with(agent, SCENE, config, method, base)
    assert told.title == f"{method}, {config.planning.cost} cost"
    changed = base | {f"{level1}.horizon": 9, "replan": 4, "cost": "latent"}
    told = stories.play_with(agent, SCENE, config, method, changed)
    assert told.title == f"{method}, latent cost, {level1}.horizon 9, replan 4"
    assert told.plan.shape[1] == 9 and told.replan == 4
    wrong = base | {f"{level1}.samples": 1}
    refused(ConfigError, "samples", stories.play_with, agent, SCENE, config, method, wrong)


def shown(panel):
    (output,) = panel.output.outputs
    return output["data"]["text/html"]


def titles(panel):
    return [one["title"] for one in data_of(shown(panel))["stories"]]


def test_studio_refuses_and_replans(agent, story):
    studio = panels.studio(tiny_config(), agent, story)
    assert titles(studio) == ["l1+l2, distance cost"]
    studio.controls["start_y"].value = 40.0
    assert data_of(shown(studio))["stories"][0]["start"] == [20.0, 40.0]
    studio.controls["start_x"].value = 32.0
    assert 'role="alert"' in shown(studio) and "is in a wall" in shown(studio)
    studio.controls["start_x"].value = 12.0
    studio.controls["door_y"].value = 30
    studio.controls["hierarchy.control"].value = "zero"
    assert titles(studio) == [
        "l1+l2, distance cost",
        "l1+l2, distance cost, hierarchy.control zero",
    ]
    told = data_of(shown(studio))["stories"][1]
    assert (told["start"], told["goal"]) == ([12, 40], [45, 40])
    assert all(one.continuous_update is False for one in list(studio.controls.values())[:6])


def test_explorer_follows_method_cost_and_trial(agent, flat):
    explorer = panels.explorer(tiny_config(), agent, flat, 0)
    assert titles(explorer) == ["flat, distance cost, test trial 0"]
    explorer.controls["trial"].value = 2
    explorer.controls["cost"].value = "latent"
    explorer.controls["method"].value = "l1+l2"
    assert titles(explorer) == ["l1+l2, latent cost, test trial 2"]
    explorer.controls["trial"].value = 10_000
    assert 'role="alert"' in shown(explorer)


def test_other_layouts_agents_and_costs(agent):
    config = tiny_config(level2__actions="learned", planning__action_cap=1.0)
    other = dataclasses.replace(make_agent(config), distance=None)
    planning = dataclasses.replace(other.planning, cost="latent")
    told = play(other, SCENE._replace(row=(25, 44)), "l1+l2", planning, 5)
    assert list(told.costs) == ["latent"]
    assert np.linalg.norm(told.actions, axis=-1).max() <= 1.0001
    assert list(told_by(told)["landscapes"]) == ["latent"]
    alone = dataclasses.replace(agent, level2=None)
    told = play(alone, SCENE, "flat", steps=3)
    assert told.macro is None


def test_it_runs_headless(trained, root):
    shutil.copytree(trained, root / "trained")
    run = Run.open("trained")
    runner.run_notebooks(run, [NOTEBOOK], threads=1, say=Said())
    run.reload()
    text, outputs = printed(run.path / "notebooks" / NOTEBOOK.name)
    assert text.count("headless:") == 2
    kinds = ""
    for data in outputs:
        kinds += "i" * ("image/png" in data) + "p" * ("hjepa-player" in data.get("text/html", ""))
        assert not any("widget-view" in name for name in data)
    assert kinds == "ipiiiiip"
