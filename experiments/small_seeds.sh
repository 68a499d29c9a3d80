#!/bin/bash
# The recipe `small`, three of its sixty epochs, one seed, then asked: labels by kNN and linear, boxes of the main object.
#
#     experiments/small_seeds.sh TINY-IMAGENET OUT SEED [CPU [train]]
#
# `train`: train alone. Goes on where it was stopped. docs/results.md says what came out.
set -e
data=$1 out=$2/$3 seed=$3
[ -z "$4" ] || taskset -cp "$4" $$ > /dev/null
hetcl="${PYTHON:-python} -m hetcl.cli"
$hetcl pretrain --data "$data" --out "$out/run" --recipe small --stage1.epochs 2 --stage2.epochs 1 --seed "$seed" \
  --knn.bank 20000 --knn.queries 5000 --threads 1 --workers 1 --resume
[ "$5" != train ] || exit 0
for model in "$out/run" timm:resnet10t:random; do
  name=$(basename "$model")
  $hetcl probe "$model" --data "$data" --ask what --size 48 --images 20000 --out "$out/what-$name" --threads 1 --workers 1 --resume
done
$hetcl probe "$out/run" "$out/run/checkpoints/stage1.ckpt" --data scenes:3000 --ask localization --images 1500 \
  --test_images 600 --out "$out/where" --threads 1 --workers 1 --resume
