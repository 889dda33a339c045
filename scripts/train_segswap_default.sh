#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains SegSwap's default weights from the pictures of collect_segswap_pictures.py and exports
# them; the same command goes on after an interruption.
#
#   scripts/train_segswap_default.sh PICTURES RUNS
set -euo pipefail
pictures=$1 runs=$2
data=(
  "composed.composites.photographs=$pictures/photographs"
  "composed.composites.cutouts=[$pictures/cutouts,$pictures/clipart]"
  "composed.pool.folder=$runs/pool"
)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
patchword train segswap --config default -o "$runs/part1" --resume "${data[@]}"
patchword train segswap --config default_part2 -o "$runs/part2" --resume "${data[@]}" \
  "composed.initial=$runs/part1/checkpoints/best/model.safetensors"
python scripts/export_segswap_default.py "$runs" python/patchword/assets/segswap/default.safetensors
