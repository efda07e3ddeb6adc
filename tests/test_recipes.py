"""A stage's recipe number is raised when its code trains something else from the same settings.

Losses of tiny trainings are compared with those stored beside the recipe number that made them.
After a change that is meant: raise it in runs/keys.py, then `python tests/test_recipes.py`
writes the new losses.
"""

import json
from pathlib import Path

import pytest
from tiny import make_job, tiny_config

from hjepa_lib.runs import stages
from hjepa_lib.runs.keys import core_stages
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.workspace import Workspace

STORED = Path(__file__).parent / "fixtures" / "recipes.json"
TRAINED = ("l1", "distance", "l2", "policies")


def losses(run, stage):
    if stage == "policies":  # no run trains it unasked
        return [report.loss for report in make_job(stage, tiny_config()).fit]
    return [row["loss"] for row in run.records(stage)]


@pytest.mark.parametrize("stage", TRAINED)
def test_what_a_stage_trains_has_the_recipe_number_that_it_was_stored_with(trained, stage):
    stored = json.loads(STORED.read_text())[stage]
    recipe = core_stages(tiny_config())[stage].recipe
    found = losses(Run.at(trained), stage)
    advice = f"stage {stage!r} trains something else: raise its recipe number, see this file's top"
    if recipe == stored["recipe"]:
        assert found == pytest.approx(stored["losses"], rel=1e-3), advice
    else:
        assert found != pytest.approx(stored["losses"], rel=1e-3), "raised for nothing"


def write(folder):
    ws = Workspace("test", Run.create("recipes", tiny_config(), folder))
    stages.load_trained(ws)
    now = core_stages(ws.config)
    found = {name: {"recipe": now[name].recipe, "losses": losses(ws.run, name)} for name in TRAINED}
    STORED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import sys
    import tempfile

    sys.path.insert(0, str(Path(__file__).parent))
    write(Path(tempfile.mkdtemp()))
