"""One run as a page and as a file; what a wing has to say it leaves in the run's `sections/`."""

from __future__ import annotations

import base64
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from PIL import Image

from hjepa_lib.config import differences, profile, to_dict
from hjepa_lib.files import FileError, plain, read_bytes, read_json, write_atomic, write_json
from hjepa_lib.runs.run import Run

SCHEMA = 1
FLOORS = ("random", "oracle")
KEY = ("method", "cost", "protocol", "layouts", "dynamics", "budget", "split")
"""No two results of a summary share these."""
FIELDS = (
    *KEY, "n", "successes", "success_rate", "ci95", "success_first_1p41", "success_last_1p41",
    "success_first_4p5", "success_last_4p5", "cross_wall_rate", "init_plan_cross_wall_rate",
    "init_plan_reach", "init_plan_through_wall_rate", "planning_error_mean",
    "planning_error_mean_rmse", "final_distance_mean", "avg_termination_step",
    "first_crossing_steps", "efficiency_score", "path_efficiency", "effective_samples",
    "effective_samples_macro", "lost_trials", "replan", "flops_per_step",
    "model_transitions_per_step", "seconds_per_episode",
    "latency_single_episode", "planner", "case", "world", "data", "weights", "probe_px_encoder",
    "probe_px_predictor", "train_seconds", "parameters", "seed", "device", "trials_hash", "version",
)  # fmt: skip
"""Every name of a result in `summary.json`: a Case, its metrics, and where it comes from."""
_TEXT = (*KEY[:5], "split", "case", "world", "device", "trials_hash", "version")
_NESTED = ("planner", "data", "weights")
_UNDEFINED = (
    "cross_wall_rate", "init_plan_cross_wall_rate", "init_plan_reach",
    "init_plan_through_wall_rate", "first_crossing_steps", "effective_samples",
    "effective_samples_macro", "replan", "flops_per_step",
    "model_transitions_per_step", "seconds_per_episode", "latency_single_episode",
    "probe_px_encoder", "probe_px_predictor", "train_seconds", "parameters",
)  # fmt: skip
"""What may be null, where it is not defined; never 0 and never NaN (F12)."""
_DATA = ("source", "recipe", "transitions", "dynamics", "hash")
_RUN = ("run", "profile", "seed", "created", "revision", "device", "precision")
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
    """FileError unless a row has every field, no other, and values that belong together."""
    for name in dict.fromkeys([*FIELDS, *row]):
        if name not in row or name not in FIELDS:
            lacks = "lacks" if name in FIELDS else "has the unknown field"
            raise FileError(f"{where} {lacks} {name!r}")
        if not _fits(name, row[name]):
            raise FileError(f"{where}: {name} cannot be {row[name]!r}")
    rate, (low, high) = row["success_rate"], row["ci95"]
    if row["successes"] > row["n"] or abs(rate - row["successes"] / row["n"]) > 1e-9:
        raise FileError(f"{where}: success_rate {rate} is not {row['successes']} / {row['n']}")
    if not low - 1e-9 <= rate <= high + 1e-9:
        raise FileError(f"{where}: ci95 [{low}, {high}] does not hold success_rate {rate}")
    if absent := [name for name in _DATA if name not in row["data"]]:
        raise FileError(f"{where}: data lacks {absent[0]!r}")


def _fits(name: str, value: Any) -> bool:
    if value is None:
        return name in _UNDEFINED
    if name in _TEXT or name in _NESTED:
        return isinstance(value, str if name in _TEXT else Mapping)
    if name == "ci95":
        return len(value) == 2 and all(_fits("success_rate", end) for end in value)
    whole = name in ("n", "successes", "parameters", "seed", "lost_trials", "replan")
    share = name.endswith("_rate") or name.startswith("success_") or name == "path_efficiency"
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    return number and (name == "n") <= value <= (1 + 1e-9 if share else sys.float_info.max)


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
    shown = [{"title": "Results", "sentences": said, "tables": _results(results)}]
    for one in sections:
        tables = [*one.get("tables", []), *_results(one.get("results", []))]
        shown.append(one | {"tables": tables})
    shown += [_chapters(run), *_figures(run), _origin(run)]
    filled = ("sentences", "tables", "figures", "lists")
    changed = differences(profile(run.config.profile, run.config.seed), run.config)
    lines = [f"# {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()]
    created = run.manifest.get("created", "").replace("T", " ")[:16]
    facts = [f"profile {run.config.profile}", f"seed {run.config.seed}"]
    facts += [f"{run.manifest['device']}, {run.precision}", created]
    page = Path(__file__).with_name("report.html").read_text("utf-8")
    text = jinja2.Environment(autoescape=True).from_string(page).render(
        title=run.name,
        facts=" · ".join(filter(None, facts)),
        headline=headline(results, sections),
        sections=[one for one in shown if any(one.get(key) for key in filled)],
        changed=f"{len(changed)} changed from the profile" if changed else "the profile as it is",
        settings="\n".join([*lines, yaml.safe_dump(to_dict(run.config), sort_keys=False)]),
    )  # fmt: skip
    return write_atomic(run.path / "report.html", text)


def headline(results: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: the best learned planner of the first table with its interval and floors."""
    tables = _tables(results)
    learned = [row for row in (tables[0] if tables else []) if _rank(row) == 1]
    if not learned:
        own = [one["headline"] for one in sections if one.get("headline")]
        return own[0] if own else "No planners are compared in this run: notebook 04 does that."
    best = max(learned, key=lambda row: (row["success_rate"], row["path_efficiency"]))
    low, high = (100 * end for end in best["ci95"])
    floors = [row for name in FLOORS for row in tables[0] if row["method"] == name]
    beside = [f"{row['method']} {100 * row['success_rate']:.4g} %" for row in floors]
    text = f"{_label(best)} solves {best['successes']} of {best['n']} trials (95 % interval "
    text += f"{low:.0f}–{high:.0f} %) on {_setting(best)}"
    return f"{text}; {', '.join(beside)}." if beside else f"{text}, without floor or ceiling."


def _tables(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Results by protocol, layouts, dynamics and n: the fullest table first, floors outermost."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(results, key=_rank):
        tables.setdefault(_setting(row), []).append(row)
    return sorted(tables.values(), key=len, reverse=True)


def _rank(row: Mapping[str, Any]) -> int:
    return 0 if row["method"].startswith("random") else 2 if row["method"] == "oracle" else 1


def _results(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    columns = (
        "Method", "Success\n95 % interval", "Path efficiency\nshare of shortest",
        "Final distance\npx, mean", "First hit\nsteps, mean", "Episode\ns, in a batch",
        "Episode alone\ns", "Compute\nMFLOP per step",
    )  # fmt: skip
    tables = []
    for rows in _tables(results):
        several = len({row["budget"] for row in rows}) > 1
        absent = [name for name in FLOORS if name not in {row["method"] for row in rows}]
        notes = [f"Not played here: {name}, which every table needs." for name in absent]
        cells = [_cells(row, f" × {row['budget']:g}" if several else "") for row in rows]
        head = {"title": _setting(rows[0]), "columns": columns}
        tables.append(head | {"rows": cells, "notes": notes})
    return tables


def _cells(row: Mapping[str, Any], budget: str) -> list[Any]:
    (low, high), flops, name = row["ci95"], row["flops_per_step"], row["method"].lower()
    levels = {"random": "floor", "oracle": "floor", "l2": "level2", "flat": "level1"}
    colour = next((found for mark, found in levels.items() if mark in name), "other")
    rate = {"text": f"{100 * row['success_rate']:.4g} %", "share": 100 * row["success_rate"]}
    success = rate | {"low": 100 * low, "high": 100 * high, "colour": colour}
    numbers = {"path_efficiency": 2, "final_distance_mean": 1, "avg_termination_step": 1}
    numbers |= {"seconds_per_episode": 2, "latency_single_episode": 2}
    found = [_number(row[key], digits) for key, digits in numbers.items()]
    return [_label(row) + budget, success, *found, _number(flops and flops / 1e6, 1)]


def _chapters(run: Run) -> dict[str, Any]:
    """The executed copies in notebooks/, as HTML beside them where nbconvert is installed."""
    rows, convert = [], importlib.util.find_spec("nbconvert") is not None
    for path in sorted((run.path / "notebooks").glob("*.ipynb")):
        stem, _, state = path.stem.partition(".")
        if state not in ("", "failed"):  # at work
            continue
        title, pictures = _glance(path)
        page = _as_html(path) if convert and title else path
        seconds = None if state else run.manifest["notebooks"].get(stem, {}).get("seconds")
        link = {"text": title or stem, "href": quote(f"notebooks/{page.name}")}
        rows.append([link, "failed" if state else pictures, _number(seconds, 1)])
    found = {"sentences": ["Every cell with its output."]}
    if not convert:
        found["sentences"] += ["After `pip install nbconvert` they are pages for a browser."]
    found["tables"] = [{"columns": ("Chapter", "Pictures", "Time\ns"), "rows": rows}]
    return {"title": "Executed notebooks"} | (found if rows else {})


def _as_html(path: Path) -> Path:
    """The notebook as `<name>.html` beside it, made anew when the notebook is younger."""
    page = path.with_suffix(".html")
    if not page.exists() or page.stat().st_mtime < path.stat().st_mtime:
        from nbconvert import HTMLExporter

        write_atomic(page, HTMLExporter().from_filename(str(path))[0])
    return page


def _glance(path: Path) -> tuple[str, int]:
    """Heading of a notebook and number of pictures in it; ("", 0) when it cannot be read."""
    try:
        cells = read_json(path)["cells"]
        lines = "".join(cells[0]["source"]).splitlines()
        outputs = [output for one in cells for output in one.get("outputs", [])]
    except (FileError, KeyError, IndexError, TypeError):
        return "", 0
    title = next((line.lstrip("# ") for line in lines if line.startswith("# ")), path.stem)
    return title, sum("image/png" in output.get("data", {}) for output in outputs)


def _figures(run: Run) -> list[dict[str, Any]]:
    """All of figures/, in the order in which the notebooks made them, GIFs first."""
    notes = run.manifest["notes"].get("figures", {})
    order = sorted(notes, key=lambda name: notes[name].get("notebook", "~"))
    files = {path.name: path for path in sorted((run.path / "figures").glob("*"))}
    parts = {".gif": {"title": "Episodes"}, ".png": {"title": "Figures"}}
    for name in dict.fromkeys([*order, *files]):
        if name in files and files[name].suffix in parts:
            figure = _figure(files[name], notes.get(name, {}))
            parts[files[name].suffix].setdefault("figures", []).append(figure)
    return list(parts.values())


def _figure(path: Path, note: Mapping[str, str]) -> dict[str, Any]:
    data = read_bytes(path)
    with Image.open(path) as image:
        width, height = image.size
    embedded = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(data).decode()}"
    return {
        "caption": note.get("caption") or path.stem.replace("_", " "),
        "origin": note.get("notebook", ""),
        "source": embedded if len(data) <= _EMBED_LIMIT else quote(f"figures/{path.name}"),
        "width": width,
        "height": height,
        "wide": width > _WIDE * height,
    }


def _origin(run: Run) -> dict[str, Any]:
    """Seconds of the stages, versions of the environment, and the run's notes."""
    manifest = run.manifest
    stages = [[name, _number(one["seconds"], 1)] for name, one in manifest["stages"].items()]
    made = {"revision": manifest.get("revision", "unknown")} | manifest.get("versions", {})
    tables = [
        {"title": "Stages", "columns": ("Stage", "seconds"), "rows": stages},
        {"title": "Environment", "rows": [[key, str(value)] for key, value in made.items()]},
    ]
    notes = [
        [key, value if isinstance(value, str) else yaml.safe_dump(value).strip()]
        for key, value in manifest["notes"].items()
        if key != "figures"
    ]
    tables += [{"title": "Notes", "rows": notes}] if notes else []
    return {"title": "How it was made", "tables": tables}


def _setting(row: Mapping[str, Any]) -> str:
    place = f"{row['protocol'].upper()}, {row['layouts']} layouts, {row['dynamics']}"
    return f"{place}, n = {row['n']}"


def _label(row: Mapping[str, Any]) -> str:
    method = row["method"].replace("_", " ")
    return method if row["cost"] in ("", "none") else f"{method}, {row['cost']} cost"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
