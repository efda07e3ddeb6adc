"""The committed small run in `outputs/pretrained/`: weights that let any notebook start alone."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from hjepa_lib.files import write_atomic, write_json
from hjepa_lib.runs.keys import digest
from hjepa_lib.runs.places import RunError, repository
from hjepa_lib.runs.run import Run


def export(run: Run, folder: Path | None = None) -> Path:
    """Replace `folder` (default `outputs/pretrained`) by the trained stages of `run`.

    It is a run folder with the best weights alone: data are regenerated and results made anew.
    RunError when level 1 is not trained. The old folder stays until the new one is whole.
    """
    folder = folder or repository() / "outputs" / "pretrained"
    stages = [name for name in ("l1", "distance", "l2") if run.done(name)]
    if "l1" not in stages:
        raise RunError(f"run {run.name!r} has no trained level 1 to export")
    building = folder.with_name("pretrained.new.tmp")
    shutil.rmtree(building, ignore_errors=True)
    manifest = copy.deepcopy(run.manifest) | {"stages": {}, "notebooks": {}, "interrupted": {}}
    manifest["notes"].pop("figures", None)
    kept = manifest["stages"]
    for name in stages:
        run.verify(name)
        entry = run.manifest["stages"][name]
        files = [one for one in entry["files"] if not Path(one["path"]).name.startswith("last.")]
        kept[name] = entry | {"files": files}
        # What it read is here as well, without the files that are left out.
        read = entry.get("reads", {})
        kept[name]["reads"] = {one: digest(kept[one]) for one in read if one in kept}
        for one in files:
            write_atomic(building / one["path"], (run.path / one["path"]).read_bytes())
    write_json(building / "manifest.json", manifest)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return folder
