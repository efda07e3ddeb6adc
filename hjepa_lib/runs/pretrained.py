"""The committed small run in `outputs/pretrained/`: weights that let any notebook start alone.

It is a run folder with nothing but a manifest and the trained stages, so it is read like any other
run. Only the `pretrained` command writes it.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from hjepa_lib.files import write_json
from hjepa_lib.runs.places import RunError, repository
from hjepa_lib.runs.run import Run

STAGES = ("l1", "distance", "l2")
"""What is taken over, as far as the run has it; data are regenerated and results made anew."""
UNUSED = "last."
"""File names that begin so are left out: only the best weights are ever loaded."""


def export(run: Run, folder: Path | None = None) -> Path:
    """Replace `folder` (default `outputs/pretrained`) by the trained stages of `run`.

    RunError when level 1 is not trained. The old folder stays until the new one is whole.
    """
    folder = folder or repository() / "outputs" / "pretrained"
    stages = [name for name in STAGES if run.done(name)]
    if "l1" not in stages:
        raise RunError(f"run {run.name!r} has no trained level 1 to export")
    building, old = folder.with_name("pretrained.new.tmp"), folder.with_name("pretrained.old.tmp")
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    manifest = copy.deepcopy(run.manifest)
    manifest |= {"stages": {}, "notebooks": {}, "interrupted": {}}
    manifest["notes"].pop("figures", None)
    for name in stages:
        run.verify(name)
        entry = copy.deepcopy(run.manifest["stages"][name])
        # Inputs are not followed up in a folder that nothing writes to.
        entry["needs"] = {}
        entry["files"] = [
            item for item in entry["files"] if not Path(item["path"]).name.startswith(UNUSED)
        ]
        manifest["stages"][name] = entry
        for item in entry["files"]:
            target = building / item["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.path / item["path"], target)
    write_json(building / "manifest.json", manifest)
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
