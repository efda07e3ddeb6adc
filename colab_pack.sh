#!/usr/bin/env bash
# Packs code, notebooks and environment into one tarball and prints how to use it in Colab.
#   ./colab_pack.sh [--pretrained] [FILE]    (default: hjepa-colab.tar.gz, ignored by git)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHONPATH="$root" PYTHONDONTWRITEBYTECODE=1 exec "${PYTHON:-python3}" -m hjepa_lib.runs.pack "$@"
