"""The house stands: imports run down, and no room outgrows its door."""

import ast
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "hjepa_lib"
FLOORS = (
    {"files"},
    {"config"},
    {"worlds"},
    {"data", "figures"},
    {"models"},
    {"training", "planning"},
    {"evaluation"},
    {"runs"},
    {"pixels", "grids", "workbench", "widgets"},  # the wings, side by side
    {"readme"},
    {"__main__"},
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
LOOSE = {"__init__", "__main__", "files", "readme"}
NAMED = re.compile(r"hjepa_lib(?:\.\w+)+(?::\w+)?")  # a module, or module:function, as text


def room(path):
    """A folder of the library, or a loose module."""
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return parts[0]


def targets(tree, package):
    """(line, dotted name) of everything that a module imports, or names as text to be imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and NAMED.fullmatch(str(node.value)):
            yield node.lineno, node.value.split(":")[0]


def arrows(source=None, path=None):
    """(from, to, where) of every import between two rooms."""
    files = sorted(LIBRARY.rglob("*.py")) if path is None else [path]
    for file in files:
        package = ["hjepa_lib", *file.relative_to(LIBRARY).parts[:-1]]
        for line, name in targets(ast.parse(source or file.read_text()), package):
            parts = name.split(".")
            there = parts[1] if parts[0] == "hjepa_lib" and len(parts) > 1 else ""
            if there in HEIGHT and there != room(file):
                yield room(file), there, f"{file.relative_to(LIBRARY)}:{line}"


def wrong(found):
    """Arrows that do not run down; `__init__` looks up what `load` needs when it is called."""
    return [
        f"{where}: {here} imports {there}"
        for here, there, where in found
        if here != "__init__" and HEIGHT[there] >= HEIGHT[here]
    ]


def test_every_import_runs_down():
    """So the core imports no wing, a wing no other wing, and the workbench knows cells by name.

    N14: figures draw what is handed in, so they draw every world and no hidden Two Rooms.
    """
    found = [*arrows()]
    assert wrong(found) == []
    assert {there for here, there, _ in found if here == "figures"} == {"files"}


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("from hjepa_lib.runs.run import Run", "models/new.py"),
        ("def late():\n    from hjepa_lib.pixels import stages", "runs/new.py"),
        ("import hjepa_lib.workbench.study", "widgets/new.py"),
        ("from ..evaluation import results", "figures/new.py"),
        ("import importlib\nimportlib.import_module('hjepa_lib.pixels.stages')", "runs/new.py"),
        ("CELL = 'hjepa_lib.pixels.studies:play'", "workbench/new.py"),
    ],
)
def test_an_arrow_that_runs_up_is_noticed(source, file):
    assert len(wrong(arrows(source, LIBRARY / file))) == 1


def test_rooms_loose_modules_and_files_keep_their_size():
    rooms = {room(path) for path in LIBRARY.rglob("*.py")}
    assert rooms == {*HEIGHT, "__init__"}
    assert {path.stem for path in LIBRARY.glob("*.py")} == LOOSE
    lines = {path: path.read_text().count("\n") for path in LIBRARY.rglob("*.py")}
    too_long = {path.name: count for path, count in lines.items() if count > 320}
    assert not too_long
