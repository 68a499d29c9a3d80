#!/bin/sh
# Three runs of equal length (12 passes over tiny-imagenet) that docs/results.md compares with `hetcl contrast`.
#
#   experiments/equal_length.sh DATA [RUNS]       DATA: the folder of tiny-imagenet's shards
#
#   RUNS/tiny-imagenet   stage 1 of both, 8 epochs of MoCo-v2 (experiments/tiny_imagenet.sh makes it)
#   RUNS/hcl-12          that, then 4 epochs of HCL
#   RUNS/moco-8-4        that, then 4 epochs of MoCo-v2 at the same rates: what the second stage does without the branch
#   RUNS/moco-12         12 epochs of MoCo-v2 in one cosine
#
# About two hours on one core. Killed or stopped, the same command goes on from the last checkpoint.
set -eu
data=$1
runs=${2:-experiments/runs}
hetcl=${HETCL:-"$(dirname "$0")/../.venv/bin/hetcl"}
first=$runs/tiny-imagenet/checkpoints/stage1.ckpt
train() {
    out=$runs/$1
    shift
    [ -f "$out/backbone.safetensors" ] || "$hetcl" pretrain --data "$data" --out "$out" --resume --recipe small --size 48 --batch_negatives false \
        --threads 1 --workers 1 --checkpoint_every 400 "$@"
}
train hcl-12 --init "$first" --spatial.side 12 --stage2.epochs 4 --stage2.lr 0.01 --stage2.queue 1024 --stage2.temperature 0.2
train moco-8-4 --init "$first" --stage1.epochs 4 --stage1.lr 0.01 --stage1.queue 1024 --stage1.temperature 0.2 --stage2.epochs 0
train moco-12 --stage1.epochs 12 --stage1.lr 0.06 --stage1.queue 1024 --stage1.temperature 0.2 --stage2.epochs 0
