#!/bin/bash
# The backbones of experiments/geo_final.sh on built-in scenes, one seed: the class of each cell, and fine-tuned on 200 of them.
#
#     experiments/geo_scenes.sh OUT SEED [CPU]
#
# OUT, SEED: as geo_final.sh had them (its `train` is enough). Goes on where it was stopped. The claims were written down
# before (docs/results.md).
set -e
seed=$2
[ -z "$3" ] || taskset -cp "$3" $$ > /dev/null
case $PYTHON in */*) PYTHON=$(realpath -s "$PYTHON") ;; esac
cd "$1/$2"
hetcl="${PYTHON:-python} -m hetcl.cli"
one="--threads 1 --workers 1"
three="hcl-geo hcl moco-v2"
$hetcl probe $three hcl/checkpoints/stage1.ckpt --data scenes:3000 --ask dense-knn,dense-linear --images 1500 --test_images 600 --out scenes-cells $one --resume
for method in $three; do
  common="--init $method --data scenes:200 --steps 600 --milestones 480 --evaluations 3 --lr 0.02 --checkpoint_every 0 --seed $seed $one --resume"
  [ -f "scenes-boxes-$method/summary.json" ] || $hetcl finetune --out "scenes-boxes-$method" --recipe tiny-faster-rcnn-fpn --min_size 96 --max_size 96 \
    --test_size 96 --regions 16 --test_proposals 30 --detections 10 $common
  [ -f "scenes-pixels-$method/summary.json" ] || $hetcl finetune --out "scenes-pixels-$method" --recipe tiny-fcn --crop 96 $common
done
