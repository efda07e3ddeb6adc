"""One run as a page and as a file; what a wing has to say it leaves in the run's `sections/`."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from PIL import Image

from hjepa_lib.config import differences, profile, to_dict
from hjepa_lib.evaluation import FLOORS
from hjepa_lib.files import FileError, plain, read_bytes, read_json, write_atomic, write_json
from hjepa_lib.runs.run import Run

SCHEMA = 1
KEY = ("method", "cost", "protocol", "layouts", "dynamics", "budget", "split")
"""No two results of a summary share these."""
REQUIRED = (
    *KEY, "n", "successes", "success_rate", "ci95", "path_efficiency", "final_distance_mean",
    "avg_termination_step", "planner", "weights", "data", "trials_hash", "seed", "version",
)  # fmt: skip
"""What every result has: no rate stands without its n (F12), none without its origin (I4)."""
_RUN = ("run", "profile", "seed", "created", "revision", "device", "precision")
_COLUMNS = {
    "Path efficiency\nshare of shortest": ("path_efficiency", 2),
    "Final distance\npx, mean": ("final_distance_mean", 1),
    "First hit\nsteps, mean": ("avg_termination_step", 1),
    "Episode\ns, in a batch": ("seconds_per_episode", 2),
    "Episode alone\ns": ("latency_single_episode", 2),
    "Compute\nMFLOP per step": ("mflop", 1),
}
_EMBED_LIMIT = 2_000_000  # bytes; a larger image is linked instead, so that the page stays small
_WIDE = 1.9  # figures at least this many times wider than high take a whole row


# --- summary.json -----------------------------------------------------------------------------
def build_summary(run: Run, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `run` is, its seconds, its checked `results`, and the data of its sections by name."""
    manifest = run.manifest | {"run": run.name}
    summary = {"schema": SCHEMA} | {key: manifest[key] for key in _RUN}
    for kind in ("stage", "notebook"):
        seconds = {name: one["seconds"] for name, one in manifest[f"{kind}s"].items()}
        summary[f"{kind}_seconds"] = seconds
    summary["results"] = [plain(result) for result in results]
    summary |= {name: one["data"] for name, one in read_sections(run).items() if one.get("data")}
    return check_summary(summary)


def check_summary(summary: Any) -> dict[str, Any]:
    """The summary itself; FileError, naming row and field, unless it is whole."""
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise FileError("a summary is a mapping with a list 'results'")
    if summary.get("schema") != SCHEMA or [key for key in _RUN if key not in summary]:
        raise FileError(f"a summary of schema {SCHEMA} with {', '.join(_RUN)} is expected")
    seen = set()
    for number, row in enumerate(summary["results"]):
        check_result(row, f"result {number}")
        if (key := tuple(row[name] for name in KEY)) in seen:
            raise FileError(f"two results share {dict(zip(KEY, key, strict=True))}")
        seen.add(key)
    return summary


def check_result(row: Mapping[str, Any], where: str) -> None:
    """FileError unless a row has what is required, and rates that belong to their counts."""
    for name in REQUIRED:
        if row.get(name) is None:
            raise FileError(f"{where} lacks {name!r}")
    rate, (low, high) = row["success_rate"], row["ci95"]
    if not 0 <= row["successes"] <= row["n"] or abs(rate * row["n"] - row["successes"]) > 1e-6:
        raise FileError(f"{where}: success_rate {rate} is not {row['successes']} / {row['n']}")
    if not low - 1e-9 <= rate <= high + 1e-9:
        raise FileError(f"{where}: ci95 [{low}, {high}] does not hold success_rate {rate}")


# --- sections ---------------------------------------------------------------------------------
def leave_section(run: Run, name: str, section: Mapping[str, Any]) -> Path:
    """Keep what a part of the library says about the run, for its report and its summary.

    `name` is such as "20-pixels": sections are shown in this order, and the summary has their
    `data` under "pixels". The rest is shown as plain text: `title`, `headline` (on top of a run
    without planners), `sentences`, `tables` with title, columns, rows and notes, `results` (rows as
    in summary.json), and `lists` of sentences by name.
    """
    for number, row in enumerate(section.get("results", [])):
        check_result(plain(row), f"{name}, row {number}")
    return write_json(run.folder("sections") / f"{name}.json", section)


def read_sections(run: Run) -> dict[str, dict[str, Any]]:
    """The sections that were left in the run, by name without its number, in order."""
    files = sorted((run.path / "sections").glob("*.json"))
    return {path.stem.partition("-")[2]: read_json(path) for path in files}


# --- report.html ------------------------------------------------------------------------------
def write_report(run: Run) -> Path:
    """Write `<run>/report.html`, whatever the run has, and return its path (S9)."""
    run.reload()
    results, sections, said = [], list(read_sections(run).values()), []
    if (run.path / "summary.json").exists():
        try:
            results = check_summary(read_json(run.path / "summary.json"))["results"]
        except FileError as error:
            said = [f"summary.json is damaged, so its results are left out: {error}."]
    shown = [{"title": "Results", "sentences": said, "results": results}, *sections]
    for number, one in enumerate(shown):
        tables = [*one.get("tables", []), *map(_table, _tables(one.get("results", [])))]
        shown[number] = one | {"tables": tables}
    page = Path(__file__).with_name("report.html").read_text("utf-8")
    text = jinja2.Environment(autoescape=True).from_string(page).render(
        run=run,
        headline=headline(results, sections),
        sections=[*shown, _chapters(run), *_figures(run), _origin(run)],
        changed=differences(profile(run.config.profile, run.config.seed), run.config),
        settings=yaml.safe_dump(to_dict(run.config), sort_keys=False),
    )  # fmt: skip
    return write_atomic(run.path / "report.html", text)


def headline(results: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: the best learned planner of the first table with its interval and floors."""
    rows = next(iter(_tables(results)), [])
    learned = [row for row in rows if row["method"] not in FLOORS]
    if not learned:
        own = [one["headline"] for one in sections if one.get("headline")]
        return own[0] if own else "No planners are compared in this run: notebook 04 does that."
    best = max(learned, key=lambda row: (row["success_rate"], row["path_efficiency"]))
    low, high = (100 * end for end in best["ci95"])
    floors = {row["method"]: 100 * row["success_rate"] for row in rows}
    beside = [f"{name} {floors[name]:.4g} %" for name in ("random", "oracle") if name in floors]
    return (
        f"{_label(best)} solves {best['successes']} of {best['n']} trials (95 % interval "
        f"{low:.0f}–{high:.0f} %) on {_setting(best)}"
        f"{'; ' + ', '.join(beside) if beside else ', without floor or ceiling'}."
    )


def _tables(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Results by protocol, layouts, dynamics and n: the fullest table first, floors outermost."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(results, key=lambda row: (row["method"] == "oracle", row["cost"] != "none")):
        tables.setdefault(_setting(row), []).append(row)
    return sorted(tables.values(), key=len, reverse=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    several = len({row["budget"] for row in rows}) > 1
    absent = {"random", "oracle"} - {row["method"] for row in rows}
    cells = []
    for row in rows:
        flops, (low, high) = row.get("flops_per_step"), row["ci95"]
        row = row | {"mflop": flops and flops / 1e6}
        levels = {"random": "floor", "oracle": "floor", "l2": "level2", "flat": "level1"}
        colours = [colour for mark, colour in levels.items() if mark in row["method"].lower()]
        success = {"share": 100 * row["success_rate"], "low": 100 * low, "high": 100 * high}
        numbers = [_number(row.get(key), digits) for key, digits in _COLUMNS.values()]
        name = _label(row) + (f" × {row['budget']:g}" if several else "")
        cells.append([name, success | {"colour": [*colours, "other"][0]}, *numbers])
    return {
        "title": _setting(rows[0]),
        "columns": ["Method", "Success\n95 % interval", *_COLUMNS],
        "rows": cells,
        "notes": [f"Not played here: {name}, which every table needs." for name in sorted(absent)],
    }


def _chapters(run: Run) -> dict[str, Any]:
    """The executed copies in notebooks/, as HTML beside them where nbconvert is installed."""
    rows, convert = [], importlib.util.find_spec("nbconvert") is not None
    for path in sorted((run.path / "notebooks").glob("*.ipynb")):
        stem, _, state = path.stem.partition(".")
        if state not in ("", "failed"):  # at work
            continue
        title, pictures, page = stem, 0, path
        with contextlib.suppress(FileError, KeyError, IndexError, TypeError):  # not a notebook
            cells = read_json(path)["cells"]
            outputs = [output for cell in cells for output in cell.get("outputs", [])]
            pictures = sum("image/png" in output.get("data", {}) for output in outputs)
            found = re.search(r"(?m)^# (.+)", "".join(cells[0]["source"]))
            title = found[1] if found else stem
            page = _as_html(path) if convert else path
        seconds = None if state else run.manifest["notebooks"].get(stem, {}).get("seconds")
        link = {"text": title, "href": quote(f"notebooks/{page.name}")}
        rows.append([link, state or pictures, _number(seconds, 1)])
    if not rows:
        return {}
    said = ["Every cell with its output."]
    said += [] if convert else ["After `pip install nbconvert` they are pages for a browser."]
    table = {"columns": ("Chapter", "Pictures", "Time\ns"), "rows": rows}
    return {"title": "Executed notebooks", "sentences": said, "tables": [table]}


def _as_html(path: Path) -> Path:
    """The notebook as `<name>.html` beside it, made anew when the notebook is younger."""
    page = path.with_suffix(".html")
    if not page.exists() or page.stat().st_mtime < path.stat().st_mtime:
        from nbconvert import HTMLExporter

        write_atomic(page, HTMLExporter().from_filename(str(path))[0])
    return page


def _figures(run: Run) -> list[dict[str, Any]]:
    """All of figures/, in the order in which the notebooks made them, GIFs first."""
    notes = run.manifest["notes"].get("figures", {})
    order = sorted(notes, key=lambda name: notes[name].get("notebook", "~"))
    files = {path.name: path for path in sorted((run.path / "figures").glob("*"))}
    parts: dict[str, list] = {".gif": [], ".png": []}
    for name in dict.fromkeys([*order, *files]):
        path, note = files.get(name, Path("")), notes.get(name, {})
        if path.suffix not in parts:
            continue
        data, source = read_bytes(path), quote(f"figures/{name}")
        if len(data) <= _EMBED_LIMIT:
            kind, text = path.suffix[1:], base64.b64encode(data).decode()
            source = f"data:image/{kind};base64,{text}"
        with Image.open(path) as image:
            width, height = image.size
        caption = note.get("caption") or path.stem.replace("_", " ")
        figure = {"caption": caption, "origin": note.get("notebook", ""), "source": source}
        figure |= {"width": width, "height": height, "wide": width > _WIDE * height}
        parts[path.suffix].append(figure)
    episodes = {"title": "Episodes", "figures": parts[".gif"]}
    return [episodes, {"title": "Figures", "figures": parts[".png"]}]


def _origin(run: Run) -> dict[str, Any]:
    """Seconds of the stages, versions of the environment, and the run's notes."""
    manifest = run.manifest
    stages = [[name, _number(one["seconds"], 1)] for name, one in manifest["stages"].items()]
    made = {"revision": manifest.get("revision", "unknown")} | manifest.get("versions", {})
    notes = {key: value for key, value in manifest["notes"].items() if key != "figures"}
    tables = [
        {"title": "Stages", "columns": ("Stage", "seconds"), "rows": stages},
        {"title": "Environment", "rows": list(made.items())},
        {"title": "Notes", "rows": [[key, _text(value)] for key, value in notes.items()]},
    ]
    return {"title": "How it was made", "tables": tables}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value).strip()


def _setting(row: Mapping[str, Any]) -> str:
    place = f"{row['protocol'].upper()}, {row['layouts']} layouts, {row['dynamics']}"
    return f"{place}, n = {row['n']}"


def _label(row: Mapping[str, Any]) -> str:
    method = row["method"].replace("_", " ")
    return method if row["cost"] in ("", "none") else f"{method}, {row['cost']} cost"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
