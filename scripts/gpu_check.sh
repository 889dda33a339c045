#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, within one run of about ten minutes:
# build in place without isolation, CUDA and Triton tests, compute-sanitizer, benchmarks.
#   scripts/gpu_check.sh [OUTPUT_FOLDER]
# Needs nvcc, cmake, ninja, pybind11 and torch already installed; fetches nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu_check}
mkdir -p "$out"
python=${PYTHON:-python3}
jobs=${JOBS:-$(nproc)}
failures=0

step() {  # step NAME SECONDS COMMAND...: runs under a time limit, keeps the log, counts failures
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  local start=$SECONDS
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    echo "   ok, $((SECONDS - start)) s"
  else
    echo "   FAILED (exit $?), $((SECONDS - start)) s; the end of $out/$name.log:"
    tail -n 30 "$out/$name.log"
    failures=$((failures + 1))
  fi
}

nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv | tee "$out/gpu.csv"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
arch="$capability-real"
[ "$capability" = 90 ] && arch="90a-real"

export PYTHONPATH=python PATCHWORD_CUDA_ARCHS="$arch" JOBS="$jobs" PYTHON="$python" PYTHONUNBUFFERED=1
step build 240 scripts/dev_build.sh --cuda
step resources 60 "$python" scripts/kernel_resources.py python/patchword/libpatchword_cuda.so
step tests 200 "$python" -m pytest tests/ops -m cuda -q -x --maxfail=20 -p no:cacheprovider

# A small selection: the sanitizer slows kernels by a factor of 10 to 100.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer-$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest tests/ops -m "cuda and sanitizer" -q -p no:cacheprovider
  done
else
  echo "== compute-sanitizer is not installed: skipped"
fi
step benchmarks 240 "$python" -m benchmarks.run --device cuda --folder "$out" \
  --suite ops --suite attention --suite refinement --suite sequences
grep -h . "$out/benchmarks.log" | tail -n 80
echo "$failures step(s) failed"
exit "$((failures > 0))"
