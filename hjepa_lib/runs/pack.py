"""`colab_pack.sh`: code, notebooks and environment as one tarball for Colab.

The same files give the same bytes (with the same zlib): sorted names, one date, no owner. There are
no runs, no notebook outputs and no packing script in it; a VERSION file says which revision it is.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

from hjepa_lib.runs.revision import revision

FOLDER = "hjepa"
"""Everything unpacks into this folder."""
PATTERN = "hjepa*.tar.gz"
"""What the first cell of the notebooks looks for in Colab."""
FILES = (
    "CITATION.cff", "LICENSE", "Makefile", "README.md", "constraints.txt", "environment.yml",
    "pyproject.toml",
)  # fmt: skip
FOLDERS = ("hjepa_lib", "notebooks", "examples")
PRETRAINED = "outputs/pretrained"
_DATE = 315_532_800  # 1980-01-01: wheels are ZIP files, which know no earlier date
_LEFT_OUT = {"__pycache__"}
_PASSING = {".pyc", ".tmp"}

STEPS = """
In Colab:
  1. File > Upload notebook: one of notebooks/*.ipynb
  2. the folder icon at the left: upload {name}, it must lie in /content
  3. Runtime > Run all: the first cell unpacks it to /content/{folder} and installs the library;
     Colab's own torch stays
  4. drive = True in the parameters cell keeps the run in your Google Drive;
     profile = "full" wants a GPU (Runtime > Change runtime type)
All notebooks at once, after the first cell of one of them:
  !pip install -q papermill && cd /content/{folder} && python -m hjepa_lib run"""


def contents(root: Path, pretrained: bool = False) -> dict[str, bytes]:
    """{path inside the tarball: bytes}, sorted; FileNotFoundError when something is missing."""
    paths = [root / name for name in FILES]
    for folder in (*FOLDERS, *([PRETRAINED] if pretrained else [])):
        paths += _files(root, folder)
    if pretrained and not (root / PRETRAINED / "manifest.json").is_file():
        raise FileNotFoundError(f"there are no weights in {PRETRAINED}; make pretrained makes them")
    found = {path.relative_to(root).as_posix(): _content(path) for path in paths}
    found["VERSION"] = (revision(root) + "\n").encode()
    return dict(sorted(found.items()))


def _files(root: Path, folder: str) -> list[Path]:
    """Files below a folder that belong to the project; of notebooks/ nothing but notebooks."""
    pattern = "*.ipynb" if folder == "notebooks" else "*"
    files = [path for path in (root / folder).rglob(pattern) if path.is_file()]
    return [
        path
        for path in files
        if path.suffix not in _PASSING
        and not any(
            part.startswith(".") or part in _LEFT_OUT for part in path.relative_to(root).parts
        )
    ]


def _content(path: Path) -> bytes:
    return stripped(path.read_bytes()) if path.suffix == ".ipynb" else path.read_bytes()


def stripped(notebook: bytes) -> bytes:
    """The notebook without outputs, counters and traces of an execution, as nbstripout has it."""
    tree = json.loads(notebook)
    tree["metadata"].pop("widgets", None)
    for part in (tree, *tree["cells"]):
        part["metadata"].pop("papermill", None)
    for cell in tree["cells"]:
        if cell["cell_type"] == "code":
            cell["metadata"].pop("execution", None)
            cell |= {"outputs": [], "execution_count": None}
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def tarball(files: dict[str, bytes]) -> bytes:
    """A gzipped tar archive of the files below `FOLDER`; a function of nothing but its argument."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), _DATE, 0o644
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), mtime=0)


def main(arguments: list[str] | None = None) -> int:
    """Write the tarball and print what to do with it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="colab_pack.sh", description="Pack for Colab.")
    parser.add_argument("file", nargs="?", type=Path, default=Path("hjepa-colab.tar.gz"))
    parser.add_argument("--pretrained", action="store_true", help="with the small trained weights")
    options = parser.parse_args(arguments)
    if not options.file.match(PATTERN):
        parser.error(f"the notebooks look for {PATTERN}, so {options.file.name} is no name for it")
    root = Path(__file__).resolve().parents[2]
    try:
        files = contents(root, options.pretrained)
        data = tarball(files)
        options.file.write_bytes(data)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    version = files["VERSION"].decode().strip()
    print(f"{options.file}: {len(files)} files, {len(data) / 1e6:.1f} MB, revision {version}")
    print(STEPS.format(name=options.file.name, folder=FOLDER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
