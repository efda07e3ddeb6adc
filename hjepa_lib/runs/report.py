"""One run as a page and as a file; what a wing has to say it leaves in the run's `sections/`."""

import contextlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml

from hjepa_lib.config import differences, profile, to_dict
from hjepa_lib.evaluation import FLOORS
from hjepa_lib.evaluation.results import Result, load_result, load_results
from hjepa_lib.evaluation.statistics import EQUAL_COMPUTE, mcnemar
from hjepa_lib.figures.style import data_uri
from hjepa_lib.files import FileError, read_bytes, read_json, write_atomic, write_json
from hjepa_lib.runs.run import Run
from hjepa_lib.worlds.trials import trials_hash

SCHEMA = 1
_RUN = ("run", "profile", "seed", "created", "revision", "device", "precision")
_EMBED_LIMIT = 2_000_000  # bytes; a larger image is linked instead, so that the page stays small


def build_summary(run: Run, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `run` is, its seconds, the `results`, the data of its sections by name."""
    manifest = run.manifest | {"run": run.name}
    summary = {"schema": SCHEMA} | {key: manifest[key] for key in _RUN}
    for kind in ("stage", "notebook"):
        seconds = {name: one["seconds"] for name, one in manifest[f"{kind}s"].items()}
        summary[f"{kind}_seconds"] = seconds
    summary["results"] = results
    return summary | {k: one["data"] for k, one in read_sections(run).items() if one.get("data")}


def leave_section(run: Run, name: str, section: Mapping[str, Any]) -> Path:
    """Keep what a part of the library says about the run, for its report and its summary.

    Sections named such as "20-pixels" are shown in this order; the summary has `data` under
    "pixels". Shown are `title`, `headline` (of a run without planners), `sentences`, `tables`
    (title, columns, rows, notes), `results` as in summary.json, `lists` by name.
    """
    return write_json(run.folder("sections") / f"{name}.json", section)


def keep_tuned(run: Run, results: Sequence[Mapping[str, Any]]) -> None:
    """A section on the pair that was tuned alike (Q5), with its floor and ceiling, if played."""
    pair = {one.header["method"]: one for one in load_results(run.path / "tuned")}
    if pair:
        rows = [one.row for one in pair.values()]
        ends = [row for row in results if row["method"] in ("random", "oracle")]
        beside = [row for row in ends if row["dynamics"] == rows[0]["dynamics"]]
        section = {"title": "Planners tuned alike", "results": [*beside, *rows], "data": rows}
        if {"flat", "l1+l2"} <= pair.keys():
            said = verdict("flat as validation trials chose it", pair["flat"], pair["l1+l2"])
            section["sentences"] = [said]
        leave_section(run, "10-tuned", section)


def played(run: Run) -> list[Result]:
    """The run's results whose stages are done, on trials that an own world still draws.

    FileError for a damaged one.
    """
    paths = sorted((run.path / "results").glob("*.npz"))
    found = [load_result(one) for one in paths if run.done(f"results/{one.stem}")]
    return [one for one in found if _drawn(one.header)]


def _drawn(header: Mapping[str, Any]) -> bool:
    if header["protocol"] != "own" or header["split"].endswith(".npz"):
        return True
    task_set = header.get("task_set", "")
    now = trials_hash(header["world"], header["split"], header["n"], task_set)
    return header["trials_hash"] == now


def verdict(name: str, flat: Result, two: Result) -> str:
    """One sentence on a pair: who solved more, both MFLOP per step, the exact McNemar test.

    Undecided where FLOPs per step differ by more than `EQUAL_COMPUTE`.
    """
    p = mcnemar(flat.success, two.success).p_value
    said = "L1+L2 better" if two.success.sum() > flat.success.sum() else "flat better"
    low, high = sorted(one.header["flops_per_step"] for one in (two, flat))
    if p >= 0.05 or high > EQUAL_COMPUTE * low:
        said = "undecided" + " at unequal FLOPs" * (p < 0.05)
    found = [
        f"{words} {one.success.sum():.0f} of {one.header['n']} at "
        f"{one.header['flops_per_step'] / 1e6:.3g} MFLOP per step"
        for words, one in (("L1+L2", two), ("flat", flat))
    ]
    return (
        f"verdict, {name}, {two.header['cost']} cost: {said}; {', '.join(found)}; "
        f"exact McNemar p = {p:.3g}"
    )


def read_sections(run: Run) -> dict[str, dict[str, Any]]:
    """The run's sections, by name without its number, in order; FileError if damaged."""
    found = {}
    for path in sorted((run.path / "sections").glob("*.json")):
        section = found[path.stem.partition("-")[2]] = read_json(path)
        if not isinstance(section, dict) or "title" not in section:
            raise FileError(f"{path} is no section of a report")
    return found


def write_report(run: Run, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write `<run>/report.html`, whatever the run has, and return its path (S9)."""
    run.reload()
    sections, damage = [], []
    try:
        sections = list(read_sections(run).values())
    except FileError as error:
        damage = [f"What is damaged is left out: {error}."]
    page = jinja2.Environment(autoescape=True)
    page.filters |= {"tables": _tables, "setting": _setting, "label": _label, "number": _number}
    convert = importlib.util.find_spec("nbconvert") is not None
    text = page.from_string(Path(__file__).with_name("report.html").read_text("utf-8")).render(
        run=run,
        headline=headline(results, sections),
        sections=[{"title": "Results", "sentences": damage}, *sections],
        results=results,
        convert=convert,
        chapters=_chapters(run, convert),
        figures=_figures(run),
        changed=differences(profile(run.config.profile, run.config.seed), run.config),
        settings=yaml.safe_dump(to_dict(run.config), sort_keys=False),
    )
    return write_atomic(run.path / "report.html", text)


def headline(results: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: the best learned method of the first table, its interval and floors."""
    rows = next(iter(_tables(results)), [])
    learned = [row for row in rows if row["method"] not in FLOORS]
    if not learned:
        own = [one["headline"] for one in sections if one.get("headline")]
        return [*own, "No planners are compared in this run: notebook 04 does that."][0]
    best = max(learned, key=lambda row: (row["success_rate"], row["path_efficiency"]))
    low, high = (100 * end for end in best["ci95"])
    floors = {row["method"]: 100 * row["success_rate"] for row in rows}
    beside = [f"{name} {floors[name]:.4g} %" for name in ("random", "oracle") if name in floors]
    chosen = f", the best of {len(learned)} on these trials," * (len(learned) > 1)
    return (
        f"{_label(best)}{chosen} solves {best['successes']} of {best['n']} trials (95 % interval "
        f"{low:.0f}–{high:.0f} %) on {_setting(best)}"
        f"{'; ' + ', '.join(beside) if beside else ', without floor or ceiling'}."
    )


def _tables(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Results by `_setting`: the fullest table first, floors outermost."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(results, key=lambda row: (row["method"] == "oracle", row["cost"] != "none")):
        tables.setdefault(_setting(row), []).append(row)
    return sorted(tables.values(), key=len, reverse=True)


def _setting(row: Mapping[str, Any]) -> str:
    kind = "" if row["split"] == "test" else f", {Path(row['split']).name} trials"
    return f"{place(row)}, {row['layouts']} layouts, {row['dynamics']}{kind}, n = {row['n']}"


def place(row: Mapping[str, Any]) -> str:
    """ "P1", or another world's name and set of tasks."""
    own = f"{row.get('world')} {row.get('task_set', '')}".strip()
    return own if row["protocol"] == "own" else row["protocol"].upper()


def _label(row: Mapping[str, Any]) -> str:
    told = f", told {row['told']}" if row.get("told") else ""
    return row["method"] + ("" if row["cost"] == "none" else f", {row['cost']} cost") + told


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _chapters(run: Run, convert: bool) -> list[dict[str, Any]]:
    """The executed copies in notebooks/, as HTML beside them where nbconvert is installed."""
    found = []
    for path in sorted((run.path / "notebooks").glob("*.ipynb")):
        stem, _, state = path.stem.partition(".")
        if state == "running":
            continue
        title, page = stem, path
        with contextlib.suppress(FileError, KeyError, IndexError, TypeError):  # not a notebook
            heading = re.search(r"(?m)^# (.+)", "".join(read_json(path)["cells"][0]["source"]))
            title = heading[1] if heading else stem
            page = path.with_suffix(".html") if convert else path
        if page != path and (not page.exists() or page.stat().st_mtime < path.stat().st_mtime):
            from nbconvert import HTMLExporter

            write_atomic(page, HTMLExporter().from_filename(str(path))[0])
        seconds = None if state else run.manifest["notebooks"].get(stem, {}).get("seconds")
        link = {"title": title, "href": quote(f"notebooks/{page.name}")}
        found.append(link | {"state": state, "seconds": seconds})
    return found


def _figures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """What the notebooks kept in figures/, by kind, in their order."""
    notes = run.manifest.get("figures") or run.manifest["notes"].get("figures", {})
    found: dict[str, list] = {".gif": [], ".png": []}
    for name, note in sorted(notes.items(), key=lambda item: item[1]["notebook"]):
        path = run.path / "figures" / name
        if path.suffix in found and path.is_file():
            data, source = read_bytes(path), quote(f"figures/{name}")
            if len(data) <= _EMBED_LIMIT:
                source = data_uri(data, path.suffix[1:])
            caption = note["caption"] or path.stem.replace("_", " ")
            found[path.suffix].append(note | {"caption": caption, "source": source})
    return {"Episodes": found[".gif"], "Figures": found[".png"]}
