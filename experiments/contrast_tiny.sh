#!/bin/sh
# The comparison of docs/results.md: HCL and MoCo-v2 of equal length (experiments/equal_length.sh) by `hetcl contrast`.
#
#   experiments/contrast_tiny.sh DATA OUT [MODEL ...]       DATA: the folder of tiny-imagenet's shards
#
# Killed or called again with more models, it uses the features that are in OUT.
set -eu
data=$1
out=$2
shift 2
runs=experiments/runs
[ $# -gt 0 ] || set -- $runs/hcl-12 $runs/moco-8-4 $runs/moco-12
exec "${HETCL:-"$(dirname "$0")/../.venv/bin/hetcl"}" contrast "$@" --data "$data" --out "$out" --resume --images 20000 \
    --dims 8,16,32,64,96,128 --threads 1 --workers 1
