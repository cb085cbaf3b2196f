#!/bin/sh
# All that a GPU is asked for: sh tests/benchmarks/gpu.sh DIR [right|fast|good] [--device cpu --small]
# Each part stops within 9 minutes and goes on when it is given again; gpu.py says what they are.
# PYTHON names the interpreter (default: python), LIGHTLY_DISTILL_DATA the folder of the real images.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
PYTHONPATH="$here:$here/integrations${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" "$here/tests/benchmarks/gpu.py" "$@"
