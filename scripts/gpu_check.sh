#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, within one run of less than ten minutes: build in place
# without isolation, CUDA and Triton tests, compute-sanitizer, benchmarks, a summary at the end.
#   scripts/gpu_check.sh [OUTPUT_FOLDER] [--seconds 570] [--steps build tests sanitizer benchmarks]
# Needs nvcc, cmake, ninja, pybind11, pytest and torch already installed; fetches nothing.
# PATCHWORD_COMMIT=HASH names the commit of a copy that came without its history.
# The output folder gets summary.txt, logs.tar.gz and one JSON file per benchmark suite; all are
# brought up to date after each step, so that a killed run leaves what it knew.
set -euo pipefail
cd "$(dirname "$0")/.."
for folder in /usr/local/cuda/bin /opt/cuda/bin; do
  if [ -d "$folder" ]; then PATH="$PATH:$folder"; fi
done
export PATH PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
