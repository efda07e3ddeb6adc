"""Many runs: one experiment engine (sweep, study, compare, variants), verdicts, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STUDY = CONFIGS / "study.yaml"


def main_experiment(
    file: Path | None = None,
    *,
    list: bool = False,
    only: str = "",
    seeds: str = "",
    resume: bool = True,
    **options: Any,
) -> int:
    """The commands `experiment`, `sweep` and `study`: the exit status, 1 when a row failed.

    Without a file it is the committed study. `list` imports no torch; without `resume` an
    experiment that exists is refused. `options` go to `engine.run_experiment`.
    """
    from hjepa_lib.config import ConfigError
    from hjepa_lib.runs.places import RunError
    from hjepa_lib.workbench.schema import read_experiment
    from hjepa_lib.workbench.table import Table, describe

    if not all(part.isdigit() for part in seeds.split("+") if seeds):
        raise ConfigError(f"--seeds must be numbers such as 0+1+2, got {seeds!r}")
    experiment = read_experiment(file or STUDY)
    units = experiment.select(only, tuple(int(part) for part in seeds.split("+") if part))
    if list:
        print(describe(units, Table(experiment.table, experiment.profile)))
        return 0
    if experiment.folder.exists() and not resume:
        raise RunError(f"{experiment.name!r} exists already; resume it or choose another name")
    from hjepa_lib.workbench.engine import run_experiment

    ended = run_experiment(experiment, units, **options)
    failed = sum(bool(one.error) for one in ended)
    print(f"{len(ended) - failed} of {len(ended)} rows made; table: {experiment.table}")
    return 1 if failed else 0
