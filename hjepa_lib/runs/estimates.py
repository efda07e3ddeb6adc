"""Time and disk that a run will take, for the line printed before it starts.

Minutes are measured on 2 CPU cores at 2-3 GHz; the GPU column of `full` is an estimate from forward
and backward FLOPs. They describe the unchanged profile: overrides scale them in no simple way.
"""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """Cost of a set of notebooks."""

    minutes: float
    megabytes: float


# profile -> notebook number -> minutes on a CPU, minutes on a GPU, MB on disk
_TABLE: dict[str, dict[str, tuple[float, float, float]]] = {
    "smoke": {
        "01": (0.2, 0.2, 3),
        "02": (0.4, 0.4, 3),
        "03": (0.3, 0.3, 2),
        "04": (0.5, 0.5, 4),
        "05": (0.4, 0.4, 4),
        "07": (0.7, 0.6, 8),
        "08": (0.7, 0.6, 12),
        "10": (0.2, 0.2, 6),
        "11": (0.3, 0.3, 6),
        "12": (0.3, 0.3, 8),
        "13": (0.3, 0.3, 10),
        "14": (0.3, 0.3, 6),
        "15": (0.5, 0.4, 10),
    },
    "laptop": {
        "01": (0.2, 0.2, 10),
        "02": (6.6, 3, 12),
        "03": (1.3, 1, 10),
        "04": (4, 2, 30),
        "05": (0.3, 0.3, 2),
        "07": (17, 9, 60),
        "08": (19, 10, 60),
        "10": (0.8, 0.5, 60),
        "11": (12, 4, 60),
        "12": (8, 3, 60),
        "13": (20, 4, 60),
        "14": (6, 3, 60),
        "15": (9, 3, 40),
    },
    "full": {
        "01": (2, 1, 60),
        "02": (9_000, 240, 60),
        "03": (1_500, 60, 60),
        "04": (600, 30, 120),
        "05": (10, 5, 20),
        "07": (4_000, 180, 300),
        "08": (3_000, 120, 300),
        "10": (20, 15, 1_500),
        "11": (6_000, 120, 200),
        "12": (6_000, 120, 300),
        "13": (1_500, 60, 400),
        "14": (900, 60, 200),
        "15": (120, 20, 200),
    },
}
_UNKNOWN = (2.0, 1.0, 10.0)  # a notebook the table does not know yet


def estimate(profile: str, notebooks: list[str], device: str) -> Estimate:
    """Sum over notebooks given by name ("02_train_l1"); `device` is cpu, cuda or mps."""
    rows = [_TABLE[profile].get(name[:2], _UNKNOWN) for name in notebooks]
    column = 0 if device == "cpu" else 1
    return Estimate(sum(row[column] for row in rows), sum(row[2] for row in rows))


def describe(minutes: float) -> str:
    """ "40 seconds", "22 minutes", "6.5 hours", "7 days"."""
    if minutes < 1.5:
        return f"{max(1, round(minutes * 60))} seconds"
    if minutes < 100:
        return f"{minutes:.0f} minutes"
    if minutes < 60 * 48:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes / 60 / 24:.0f} days"
