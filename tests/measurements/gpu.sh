#!/usr/bin/env bash
# What this library shows on a GPU, within SECONDS, without a network: tests, thresholds, benchmark, trainings.
#   tests/measurements/gpu.sh SECONDS [--only STEP ...] [--output FOLDER] [--dry-run]
# FOLDER is $OUT, else runs/gpu-results. --dry-run runs all of it on a CPU at tiny sizes. The steps are those of gpu.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 PYTHONPATH="$root:$here${PYTHONPATH:+:$PYTHONPATH}"
cd "$root"
exec "$PYTHON" -m gpu "$@"
