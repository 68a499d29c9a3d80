#!/bin/bash
# MoCo-v2, HCL and hcl-geo at equal length, one seed: one pass of stage 2 from one stage 1, then asked and fine-tuned.
#
#     experiments/geo_final.sh TINY-IMAGENET PENNFUDAN SMALL OUT SEED [CPU [train]]
#
# SMALL: what experiments/small_seeds.sh wrote (stage 1, and HCL's stage 2). Goes on where it was stopped. The claims were
# written down before (docs/results.md).
set -e
data=$(realpath "$1") people=$(realpath "$2") small=$3/$5/run out=$4/$5 seed=$5
[ -z "$6" ] || taskset -cp "$6" $$ > /dev/null
case $PYTHON in */*) PYTHON=$(realpath -s "$PYTHON") ;; esac
hetcl="${PYTHON:-python} -m hetcl.cli"
one="--threads 1 --workers 1"
mkdir -p "$out"
for method in hcl-geo moco-v2; do
  case $method in
    hcl-geo) own="--stage2.views.square true" ;;
    moco-v2) own="--stage2.temperature 0.1" ;;
  esac
  [ -f "$out/$method/backbone.safetensors" ] || $hetcl pretrain --data "$data" --out "$out/$method" --recipe small --init "$small/checkpoints/stage1.ckpt" \
    --stage1.epochs 0 --stage2.method $method --stage2.epochs 1 --stage2.views.flip_p 0.5 $own --seed "$seed" --knn.every 0 $one --resume
done
ln -sfn "$(realpath "$small")" "$out/hcl"
[ "$7" != train ] || exit 0
cd "$out"
three="hcl-geo hcl moco-v2"
asked="--data $data --data_split val --views crop,standard --yardstick none --examples 0 $one --resume"
$hetcl contrast hcl-geo hcl --features aligned,embedding $asked --out contrast
$hetcl contrast moco-v2 $asked --out contrast-moco
$hetcl probe $three hcl/checkpoints/stage1.ckpt --data "coco:$people" --ask where --out people $one --resume
$hetcl probe $three hcl/checkpoints/stage1.ckpt --data scenes:3000 --ask localization --images 1500 --test_images 600 --out scenes $one --resume
for method in $three; do
  $hetcl probe $method --data "$data" --ask what --size 48 --images 20000 --out "what-$method" $one --resume
done
for method in $three; do
  [ -f "finetune-$method/results.json" ] || $hetcl finetune --init $method --data "coco:$people" --out "finetune-$method" --recipe tiny-mask-rcnn-fpn --model faster-rcnn --steps 150 --milestones 120 \
    --evaluations 3 --min_size 96,112,128 --max_size 192 --test_size 112 --regions 16 --test_proposals 30 --detections 10 --checkpoint_every 0 --seed "$seed" $one --resume
done
