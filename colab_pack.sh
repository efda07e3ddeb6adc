#!/usr/bin/env bash
# Packs the committed code, notebooks, environment and small weights into one tarball for Colab.
#   ./colab_pack.sh [FILE]    (default: hjepa-colab.tar.gz; .gitattributes says what stays out)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
file="${1:-hjepa-colab.tar.gz}"
case "$(basename "$file")" in
  hjepa*.tar.gz) ;;
  *) echo "error: the notebooks look for hjepa*.tar.gz, so $file is no name for it" >&2; exit 2 ;;
esac
if ! git -C "$root" rev-parse --verify -q HEAD >/dev/null 2>&1; then
  echo "error: packing needs git and a clone: the tarball holds what is committed" >&2; exit 2
fi
if [ -n "$(git -C "$root" -c filter.nbstripout.clean=cat status --porcelain --untracked-files=no)" ]; then
  echo "note: changes that are not committed stay out" >&2
fi
git -C "$root" archive --format=tar --prefix=hjepa/ HEAD | gzip -n >"$file.tmp"
mv "$file.tmp" "$file"
echo "$file: $(du -h "$file" | cut -f1), revision $(git -C "$root" rev-parse HEAD)"
cat <<STEPS

In Colab:
  1. File > Upload notebook: one of notebooks/*.ipynb
  2. the folder icon at the left: upload $(basename "$file"), it must lie in /content
  3. a mounted Google Drive keeps the runs: they live in MyDrive/hjepa, stage by stage, and resume
  4. Runtime > Run all: the first cell installs the library; Colab's own torch stays;
     profile = "full" wants a GPU (Runtime > Change runtime type)
All notebooks at once, after the first cell of one of them:
  !pip install -q papermill && cd /content/hjepa && python -m hjepa_lib run
STEPS
