"""Tables of notebooks 10-15 for `report.html`: the world models on pixels, and the grid models.

Everything is read from what the run stored (`pixels/comparison.json`, `grid/results.json`); nothing
is computed from weights here, and models are listed in their fixed order, never ranked.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import pandas as pd

from hjepa_lib.files import read_json
from hjepa_lib.grids.measures import comparison as grid_comparison
from hjepa_lib.grids.measures import paired_sentences
from hjepa_lib.pixels.claims import sentences
from hjepa_lib.pixels.comparison import floor, number
from hjepa_lib.pixels.figures_rewards import LABELS
from hjepa_lib.pixels.pixelrows import UNTRAINED
from hjepa_lib.runs.run import Run

PIXELS, GRID, PLANNING = (
    "pixels/comparison.json", "grid/results.json", "pixels/planning/planning.json",
)  # fmt: skip
LEFT_OUT = ("columns", "rows")
"""Parts of the comparison that its own file has and a summary does not need."""


def stored(run: Run) -> dict[str, Any]:
    """{"pixels": comparison, "grid": rows, "planning": rows}, each only where the run has it."""
    found = {}
    for key, name in (("pixels", PIXELS), ("grid", GRID), ("planning", PLANNING)):
        if (run.path / name).is_file():
            found[key] = read_json(run.path / name)
    return found


def brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same for `summary.json`: without the single seeds, which stand in the run's own files."""
    short = dict(found)
    if "pixels" in short:
        short["pixels"] = {k: v for k, v in short["pixels"].items() if k not in LEFT_OUT}
    if "grid" in short:
        short["grid"] = {"rows": short["grid"]}
    return short


def headline(comparison: Mapping[str, Any]) -> str:
    """One sentence: what was compared, and how many of the derived claims were won."""
    claims = [claim for claim in comparison["claims"] if claim["model"] not in UNTRAINED]
    won = sum(claim["verdict"] == "beats" for claim in claims)
    seeds, n = len(comparison["seeds"]), comparison["n"]
    models = len(set(comparison["models"]) - set(UNTRAINED))
    return (
        f"<b>{models} world models</b> and random encoders on "
        f"{html.escape(comparison['environment'])}: {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{n['training']:,} transitions to learn from and {n['validation']:,} to be judged on; "
        f"<b>{won} of {len(claims)}</b> paired comparisons with a trivial guess, a plainer head, "
        "a random encoder or the matched twin are won (95 % intervals, not corrected for their "
        "number)."
    )


def pixels_table(comparison: Mapping[str, Any]) -> str:
    """Scores with intervals, the trivial guesses beside them, and the claims."""
    models = comparison["models"]
    head = "".join(f"<th>{_text(LABELS.get(name, name))}</th>" for name in models)
    lines = [f"<tr><th>Measure</th>{head}<th>Trivial guess</th></tr>"]
    for name, column in comparison["columns"].items():
        cells = "".join(f"<td>{_text(cells[name]['text'])}</td>" for cells in models.values())
        title = f'<td title="{_text(column["meaning"])}">{_text(_words(name))}</td>'
        lines.append(f"<tr>{title}{cells}<td>{_guess(comparison, name, column)}</td></tr>")
    said = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences(comparison))
    pairs = "".join(f"<p>{_text(_pair(pair))}</p>" for pair in comparison["matched"])
    notes = "".join(f"<p>{_text(note)}</p>" for note in comparison.get("notes", []))
    n = comparison["n"]
    return (
        "<h2>World models on pixels</h2>\n"
        f"<p>{_text(comparison['environment'])}, training seeds "
        f"{', '.join(map(str, comparison['seeds']))}; {n['training']:,} transitions of training, "
        f"{n['validation']:,} of validation in {n['episodes']} episodes. Mean over seeds with its "
        "95 % interval; errors in latents are divided by that of copying the last latent, because "
        "the units of two latent spaces cannot be compared.</p>\n"
        f'<div class="card scroll"><table class="named">{"".join(lines)}</table></div>\n'
        f"{pairs}{notes}"
        f'<details class="card"><summary>Paired comparisons</summary><ul>{said}</ul></details>'
    )


def _guess(comparison: Mapping[str, Any], name: str, column: Mapping[str, str]) -> str:
    """The baseline's own score in the units of the column."""
    baseline = column["baseline"]
    if not baseline:
        return "–"
    value = floor(comparison, name)
    shown = value if isinstance(value, str) else number(value)
    return _text(f"{_words(baseline)}: {shown}")


def _pair(pair: Mapping[str, Any]) -> str:
    (one, two), (first, second) = pair["pair"], pair["parameters"]
    apart = f"{100 * pair['gap']:.2f} % apart, {'matched' if pair['ok'] else 'NOT matched'}"
    return f"{one} has {first:,} parameters, {two} {second:,}: {apart}."


def grid_table(rows: list[dict[str, Any]]) -> str:
    """The measured comparison of the grid models (GRID-10)."""
    table: pd.DataFrame = grid_comparison(rows)
    head = "".join(f"<th>{_text(str(name))}</th>" for name in table.columns)
    lines = [f"<tr><th>Measure</th>{head}</tr>"]
    for name, cells in table.iterrows():
        shown = "".join(f"<td>{'–' if cell != cell else _text(str(cell))}</td>" for cell in cells)
        lines.append(f'<tr><td class="text">{_text(str(name))}</td>{shown}</tr>')
    said = "".join(f"<li>{_text(line)}</li>" for line in paired_sentences(rows))
    pairs = f"\n<p>Paired by training seed, interval over seeds alone:</p><ul>{said}</ul>"
    return (
        "<h2>Models of a grid world</h2>\n"
        f'<div class="card scroll"><table>{"".join(lines)}</table></div>{pairs if said else ""}'
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: str) -> str:
    return html.escape(value, quote=True)
