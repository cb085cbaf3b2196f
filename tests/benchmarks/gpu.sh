#!/bin/sh
# Everything that a GPU is asked for, in one go: sh tests/benchmarks/gpu.sh OUT [minutes for the transfer setting]
# Tests marked gpu, the step's time, and the transfer setting, which goes on where it stopped when given again.
# LIGHTLY_DISTILL_DATA names the folder of the real images. DEVICE=cpu tries the script without a GPU, on little.
set -u
out=${1:?the folder for results} minutes=${2:-20} device=${DEVICE:-cuda}
mkdir -p "$out"
cd "$(dirname "$0")/../.." || exit 1
small=""
setting=all
[ "$device" = cpu ] && small=--small setting=small

nvidia-smi -L 2>/dev/null | tee "$out/machine.txt"
python -m pytest -q -m gpu 2>&1 | tee "$out/tests.txt"
python tests/benchmarks/step_time.py --device "$device" --setting "$setting" --steps 20 2>&1 | tee "$out/step_time.txt"
# shellcheck disable=SC2086
timeout "${minutes}m" python tests/benchmarks/transfer/gpu.py --device "$device" --out "$out/transfer" $small 2>&1 | tee "$out/transfer.txt"
