"""Many runs: one experiment engine (sweep, study, compare, variants), verdicts, bench."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STUDY = CONFIGS / "study.yaml"
