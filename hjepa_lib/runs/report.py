"""`report.html`: one self-contained page per run, with every image inside it as a data URI.

Built from the run folder alone (manifest, summary.json, figures/, notebooks/), so it can be made
again at any time. It loads nothing from the network, has no script, and follows the reader's dark
mode. The executed notebooks stay files of their own, to which it links.
"""

from __future__ import annotations

import base64
import html
import struct
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from hjepa_lib.config import differences, profile, to_dict
from hjepa_lib.files import FileError, read_bytes, read_json, write_atomic
from hjepa_lib.pixels import tables as pixeltables
from hjepa_lib.runs.run import Run
from hjepa_lib.runs.summary import FLOORS, validate

_EMBED_LIMIT = 2_000_000  # bytes; a larger image is linked instead, so that the page stays small
_WIDE = 1.9  # figures at least this many times wider than high take a whole row
_TYPES = {".png": "image/png", ".gif": "image/gif"}


def write_report(run: Run) -> Path:
    """Write `<run>/report.html`, return its path; without summary.json it has no tables."""
    run.reload()
    summary_path = run.path / "summary.json"
    results: list[dict[str, Any]] = []
    if summary_path.exists():
        summary = read_json(summary_path)
        validate(summary)
        results = summary["results"]
    template = Template(
        resources.files("hjepa_lib.runs").joinpath("report.html").read_text("utf-8")
    )
    pixels = pixeltables.stored(run)
    base = profile(run.config.profile, run.config.seed)
    changed = differences(base, run.config)
    page = template.substitute(
        title=_text(run.name),
        facts=_facts(run),
        headline=headline(results, pixels),
        results=_results(results) + _pixels(pixels),
        figures=_figures(run),
        notebooks=_notebooks(run),
        stages=_stages(run),
        environment=_pairs(_environment(run)),
        notes=_notes(run),
        changed=_text(
            f"{len(changed)} changed from the profile" if changed else "the profile as it is"
        ),
        settings=_text(_settings(run, changed)),
    )
    return write_atomic(run.path / "report.html", page)


def headline(results: list[dict[str, Any]], pixels: dict[str, Any] | None = None) -> str:
    """One sentence: the best learned planner of the first table, with interval and floors.

    A run without planners speaks of its comparison of world models on pixels, if it has one.
    """
    tables = _tables(results)
    learned = [row for row in (tables[0] if tables else []) if _rank(row) == 1]
    if not learned and pixels and "pixels" in pixels:
        return pixeltables.headline(pixels["pixels"])
    if not learned:
        return "No planners are compared in this run: notebooks 04 and 05 do that."
    best = max(learned, key=lambda row: (row["success_rate"], row["path_efficiency"]))
    low, high = best["ci95"]
    text = (
        f"<b>{_label(best)}</b> solves <b>{best['successes']} of {best['n']}</b> trials "
        f"(95\N{NO-BREAK SPACE}% interval {100 * low:.0f}–{100 * high:.0f}\N{NO-BREAK SPACE}%) "
        f"on {_setting(best)}"
    )
    floors = [
        f"{row['method']} {_percent(row['success_rate'])}"
        for name in FLOORS
        for row in tables[0]
        if row["method"] == name
    ]
    return text + (f"; {', '.join(floors)}." if floors else ".")


def _tables(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results by protocol, layouts, dynamics and n: the fullest table first, floors outermost."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(results, key=_rank):
        tables.setdefault(_setting(row), []).append(row)
    return sorted(tables.values(), key=len, reverse=True)


def _rank(row: dict[str, Any]) -> int:
    if row["method"].startswith("random"):
        return 0
    return 2 if row["method"] == "oracle" else 1


def _pixels(found: dict[str, Any]) -> str:
    """What notebooks 10-15 stored: comparison, grid models, the transformer's planning row."""
    parts = []
    if "pixels" in found:
        parts.append(pixeltables.pixels_table(found["pixels"]))
    if "grid" in found:
        parts.append(pixeltables.grid_table(found["grid"]))
    parts.append(
        _results(
            found.get("planning", []), "A transformer or convolutions as level 1, on Two Rooms"
        )
    )
    return "\n".join(["", *parts])


def _results(results: list[dict[str, Any]], title: str = "Results") -> str:
    parts = [f"<h2>{title}</h2>"] if results else []
    for rows in _tables(results):
        budgets = len({row["budget"] for row in rows}) > 1
        parts.append(f"<h3>{_setting(rows[0])}</h3>")
        parts.append('<div class="card scroll"><table>' + _HEAD)
        parts += [_row(row, budgets) for row in rows]
        parts.append("</table></div>")
    return "\n".join(parts)


_COLUMNS = (
    ("Method", ""),
    ("Success", "95 % interval"),
    ("Path efficiency", "share of shortest"),
    ("Final distance", "px, mean"),
    ("First hit", "steps, mean"),
    ("Episode", "s, in a batch"),
    ("Episode alone", "s, batch of one"),
    ("Compute", "MFLOP per step"),
)
_HEAD = (
    "<tr>"
    + "".join(
        f'<th>{name}<span class="unit">{unit or "&nbsp;"}</span></th>' for name, unit in _COLUMNS
    )
    + "</tr>"
)


def _row(row: dict[str, Any], budgets: bool) -> str:
    low, high = row["ci95"]
    rate = (
        f'<span class="rate"><b>{_percent(row["success_rate"])}</b><span class="track">'
        f'<span class="fill {_colour(row["method"])}" '
        f'style="width:{100 * row["success_rate"]:.1f}%"></span>'
        f'<span class="range" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%">'
        f"</span></span>"
        f'<span class="interval">{100 * low:.0f}–{100 * high:.0f}</span></span>'
    )
    flops = row["flops_per_step"]
    cells = (
        _label(row) + (f" × {row['budget']:g}" if budgets else ""),
        rate,
        _number(row["path_efficiency"], 2),
        _number(row["final_distance_mean"], 1),
        _number(row["avg_termination_step"], 1),
        _number(row["seconds_per_episode"], 2),
        _number(row["latency_single_episode"], 2),
        _number(None if flops is None else flops / 1e6, 1),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _figures(run: Run) -> str:
    """All of figures/, in the order in which the notebooks made them, GIFs first."""
    captions = run.manifest["notes"].get("figures", {})
    files = [path for path in sorted((run.path / "figures").glob("*")) if path.suffix in _TYPES]
    order = list(captions)
    files.sort(key=lambda path: order.index(path.name) if path.name in captions else len(order))
    files.sort(key=lambda path: captions.get(path.name, {}).get("notebook", "~"))
    parts = []
    for title, suffix in (("Episodes", ".gif"), ("Figures", ".png")):
        chosen = [path for path in files if path.suffix == suffix]
        if chosen:
            shown = "\n".join(_figure(path, captions.get(path.name, {})) for path in chosen)
            parts.append(f'<h2>{title}</h2>\n<div class="figures">\n{shown}\n</div>')
    return "\n".join(parts)


def _figure(path: Path, note: dict[str, str]) -> str:
    caption = note.get("caption") or path.stem.replace("_", " ")
    data = read_bytes(path)
    width, height = _size(data, path.suffix)
    if len(data) > _EMBED_LIMIT:
        source = f"figures/{path.name}"
    else:
        source = f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(data).decode()}"
    origin = f" <small>({_text(note['notebook'])})</small>" if note.get("notebook") else ""
    wide = " wide" if height and width / height > _WIDE else ""
    pixels = ' class="pixels"' if path.suffix == ".gif" else ""
    return (
        f'<figure class="card{wide}"><div class="image"><img{pixels} src="{source}" '
        f'width="{width}" height="{height}" alt="{_text(caption)}"></div>'
        f"<figcaption>{_text(caption)}{origin}</figcaption></figure>"
    )


def _size(data: bytes, suffix: str) -> tuple[int, int]:
    """Width and height in px, read from the header."""
    if suffix == ".gif":
        return struct.unpack("<HH", data[6:10]) if len(data) >= 10 else (0, 0)
    return struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)


def _facts(run: Run) -> str:
    manifest = run.manifest
    facts = (
        f"profile {run.config.profile}",
        f"seed {run.config.seed}",
        f"{manifest['device']}, {run.precision}",
        manifest.get("created", "").replace("T", " ")[:16],
    )
    return _text(" · ".join(filter(None, facts)))


def _notebooks(run: Run) -> str:
    """Links to the executed copies in notebooks/: title, pictures inside, seconds."""
    rows = []
    for path in sorted((run.path / "notebooks").glob("*.ipynb")):
        stem, _, state = path.stem.partition(".")
        if state not in ("", "failed"):  # at work
            continue
        seconds = run.manifest["notebooks"].get(stem, {}).get("seconds")
        title, pictures = _glance(path)
        link = f'<a href="notebooks/{_text(path.name)}">{_text(title or stem)}</a>'
        rows.append(
            f'<tr><td class="text">{link}</td><td>{"failed" if state else pictures}</td>'
            f"<td>{_number(None if state else seconds, 1)}</td></tr>"
        )
    if not rows:
        return ""
    head = '<tr><th>Chapter</th><th>Pictures</th><th>Time<span class="unit">s</span></th></tr>'
    return (
        "<h2>Executed notebooks</h2>\n<p>Every cell with its output; JupyterLab opens them.</p>\n"
        f'<div class="card scroll"><table>{head}{"".join(rows)}</table></div>'
    )


def _glance(path: Path) -> tuple[str, int]:
    """Heading of a notebook and number of pictures in it; ("", 0) when it cannot be read."""
    try:
        cells = read_json(path)["cells"]
        lines = [line for cell in cells[:1] for line in "".join(cell["source"]).splitlines()]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
    except (FileError, KeyError, TypeError):
        return "", 0
    title = next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")
    return title, sum("image/png" in output.get("data", {}) for output in outputs)


def _stages(run: Run) -> str:
    rows = ['<tr><th>Stage</th><th class="unit">seconds</th></tr>']
    for name, stage in run.manifest["stages"].items():
        rows.append(f"<tr><td>{_text(name)}</td><td>{_number(stage['seconds'], 1)}</td></tr>")
    return "<table>" + "".join(rows) + "</table>"


def _environment(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {"revision": manifest.get("revision", "unknown")} | manifest.get("versions", {})


def _notes(run: Run) -> str:
    notes = {key: value for key, value in run.manifest["notes"].items() if key != "figures"}
    if not notes:
        return ""
    shown = {
        key: value if isinstance(value, str) else yaml.safe_dump(value).strip()
        for key, value in notes.items()
    }
    return f'<h3>Notes</h3><div class="card scroll">{_pairs(shown)}</div>'


def _pairs(pairs: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{_text(key)}</td><td class="text">{_text(str(value))}</td></tr>'
        for key, value in pairs.items()
    )
    return f"<table>{rows}</table>"


def _settings(run: Run, changed: dict[str, tuple[Any, Any]]) -> str:
    lines = [f"# {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
    return "\n".join([*lines, yaml.safe_dump(to_dict(run.config), sort_keys=False)])


def _setting(row: dict[str, Any]) -> str:
    return _text(
        f"{row['protocol'].upper()}, {row['layouts']} layouts, {row['dynamics']}, n = {row['n']}"
    )


def _label(row: dict[str, Any]) -> str:
    cost = row["cost"]
    method = row["method"].replace("_", " ")
    return _text(method if cost in ("", "none") else f"{method}, {cost} cost")


def _colour(method: str) -> str:
    """Same meaning of colours as in the figures (figures/style.py)."""
    name = method.lower()
    if name.startswith(FLOORS):
        return "floor"
    if "l2" in name or "hier" in name:
        return "level2"
    return "level1" if "flat" in name or "l1" in name else "other"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}\N{NO-BREAK SPACE}%"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
