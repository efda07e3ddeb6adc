"""Notebooks 10-15: one smoke run by the command line. Their form: test_notebooks.py."""

import os
import subprocess
import sys

import pytest
from tiny_pixels import TINY_COMMAND, TINY_GRID
from tiny_runs import LOADED, ROOT, printed

from hjepa_lib.config import profile
from hjepa_lib.config.pixels import MODELS
from hjepa_lib.files import read_json
from hjepa_lib.pixels.transitions import Transitions
from hjepa_lib.runs.notebooks import select_notebooks
from hjepa_lib.runs.run import Run

NAMES = [path.stem for path in select_notebooks("10-15", ROOT / "notebooks")]
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


SMALL = TINY_COMMAND | {f"pixels.grid.{key}": value for key, value in TINY_GRID.items()} | {
    "chapters.pixel_points": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run, what the command printed) on a machine without a screen."""
    root = tmp_path_factory.mktemp("outputs")
    environment = {key: value for key, value in os.environ.items() if key not in SCREENS}
    done = subprocess.run(
        [sys.executable, "-m", "hjepa_lib", "run", "--notebooks", "10-15", "--profile", "smoke",
         "--name", "pixels", "--set", *(f"{key}={value}" for key, value in SMALL.items())],
        cwd=ROOT, env=environment | {"HJEPA_OUTPUTS": str(root)}, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HJEPA_OUTPUTS", str(root))
        yield Run.open("pixels"), done.stdout


def test_the_smoke_run_is_whole(finished):
    """ENV-8, ENV-9."""
    run, said = finished
    entries = run.manifest["notebooks"]
    assert list(entries) == NAMES
    assert all(entry["ok"] for entry in entries.values())
    assert [line.split()[0] for line in said.splitlines() if line[:2].isdigit()] == NAMES
    data = Transitions.load(run.path / "pixels/pixel_data")
    assert data.meta["environment"] == profile("smoke").pixels.environment.id == "hjepa/Calm-v0"


def test_it_leaves_summary_report_and_a_valid_comparison(finished):
    """Rules 1-6, F12, F15."""
    run, _ = finished
    assert not LOADED.search((run.path / "report.html").read_text())
    found = read_json(run.path / "pixels/comparison/comparison.json")
    assert {*MODELS, "random"} <= found["models"].keys()
    assert found["seeds"] == list(range(run.config.pixels.seeds))
    table = read_json(run.path / "summary.json")
    assert table["notebook_seconds"].keys() == set(NAMES)
    assert table["pixels"] == {k: v for k, v in found.items() if k != "rows"}


@pytest.mark.parametrize("name", NAMES)
def test_executed_copies_show_pictures_and_no_warning(finished, name):
    """N4, N6."""
    text, outputs = printed(finished[0].path / "notebooks" / f"{name}.ipynb")
    assert sum("image/png" in output for output in outputs) >= 2
    assert "Warning" not in text
