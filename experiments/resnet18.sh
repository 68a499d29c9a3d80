#!/bin/sh
# The backbone that docs/results.md fine-tunes on images of people: ResNet-18, both stages, on 50,000 real images of 64 pixels.
#
#   experiments/resnet18.sh DATA [OUT]       DATA: the folder of tiny-imagenet's shards
#
# About an hour on one core. Killed or stopped, the same command goes on from the last checkpoint.
set -eu
data=$1
out=${2:-experiments/runs/resnet18}
exec "${HETCL:-"$(dirname "$0")/../.venv/bin/hetcl"}" pretrain --data "$data" --out "$out" --resume --recipe small \
    --backbone torchvision:resnet18 --size 48 --spatial.side 6 --batch_negatives false --stage1.lr 0.06 --stage1.queue 1024 --stage1.temperature 0.2 \
    --stage2.lr 0.01 --stage2.queue 1024 \
    --stage1.epochs 4 --stage2.epochs 2 --threads 1 --workers 1 --checkpoint_every 400
