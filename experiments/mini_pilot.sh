#!/bin/bash
# Before the miniature's final runs: which learning rates do its short runs learn with? One seed that is not among theirs.
#
#     experiments/mini_pilot.sh TINY-IMAGENET-TAR OUT STAGE1-LR STAGE2-LR [CPU]
set -e
data=$1 out=$2/$3-$4
[ -z "$5" ] || taskset -cp "$5" $$ > /dev/null
hetcl="${PYTHON:-python} -m hetcl.cli"
short="--threads 1 --workers 1"
$hetcl pretrain --data "$data" --out "$out/run" --recipe small --stage1.epochs 1 --stage2.epochs 1 --stage1.lr "$3" --stage2.lr "$4" \
  --seed 10 --knn.every 0 $short
$hetcl probe "$out/run" "$out/run/checkpoints/stage1.ckpt" --data scenes:3000 --ask localization,correspondence --images 1500 \
  --test_images 600 --out "$out/where" $short
$hetcl contrast "$out/run" "$out/run/checkpoints/stage1.ckpt" --data "$data" --views standard --images 4000 --examples 0 --yardstick none \
  --out "$out/contrast" $short
