#!/usr/bin/env bash
# Builds the compiled parts into the source tree (python/patchword/), for development:
#   scripts/dev_build.sh [--cuda] [--simt] [--asan] [--no-emulated]
# --no-emulated leaves out the AVX-512 tiles that run without AVX-512: half of the CPU code.
# Afterwards `PYTHONPATH=python python -m pytest tests` runs without an install.
set -euo pipefail
cd "$(dirname "$0")/.."
cuda=OFF simt=OFF asan=OFF emulated=ON dir=build/dev
for option in "$@"; do
  case "$option" in
    --cuda) cuda=ON ;;
    --simt) simt=ON ;;
    --asan) asan=ON dir=build/asan ;;
    --no-emulated) emulated=OFF ;;
    *)
      echo "dev_build.sh: unknown option $option;" \
        "the options are --cuda --simt --asan --no-emulated" >&2
      exit 2
      ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$dir"
cmake -S . -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
  -DPATCHWORD_CUDA=$cuda -DPATCHWORD_CUDA_ARCHS="${PATCHWORD_CUDA_ARCHS:-}" \
  -DPATCHWORD_EMULATED_LEVELS=$emulated -DPATCHWORD_SIMT=$simt -DPATCHWORD_ASAN=$asan >"$dir.cmake.log" 2>&1 ||
  { cat "$dir.cmake.log" >&2; exit 1; }
cmake --build "$dir" -j "${JOBS:-2}"
cmake --install "$dir" --prefix "$PWD/python" --strip >/dev/null
