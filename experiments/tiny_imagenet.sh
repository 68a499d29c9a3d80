#!/bin/sh
# The run of docs/results.md: both stages on 50,000 real images of 64 pixels, on one core of a small machine.
#
#   experiments/tiny_imagenet.sh DATA [OUT]       DATA: the folder of tiny-imagenet's shards
#
# Takes about 90 minutes on one core. Killed or stopped, the same command goes on from the last checkpoint.
set -eu
data=$1
out=${2:-experiments/runs/tiny-imagenet}
exec "$(dirname "$0")/../.venv/bin/hetcl" pretrain --data "$data" --out "$out" --resume --recipe small \
    --size 48 --spatial.side 6 --batch_negatives false --stage1.lr 0.06 --stage1.queue 1024 --stage1.temperature 0.2 \
    --stage2.lr 0.05 --stage2.queue 1024 --stage1.epochs 8 --stage2.epochs 3 --threads 1 --workers 1 --checkpoint_every 400
