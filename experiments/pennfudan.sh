#!/bin/sh
# Fine-tuning on images of people (docs/results.md): Mask R-CNN with FPN and C4, and an FCN, from one backbone.
#
#   experiments/pennfudan.sh DATA INIT OUT [TASK ...]       DATA: the folder of pennfudan; INIT: a MODEL
#
# TASK: fpn, c4, fcn; all where none is named. About 20, 30 and 10 minutes on one core. Killed or called again, it goes on.
set -eu
data=$1
init=$2
out=$3
shift 3
[ $# -gt 0 ] || set -- fpn c4 fcn
here=$(dirname "$0")
hetcl=${HETCL:-"$here/../.venv/bin/hetcl"}
for task in "$@"; do
    case $task in
    fcn)
        "${PYTHON:-"$here/../.venv/bin/python"}" "$here/pennfudan_voc.py" "$data" "$out/voc"
        set -- --data "voc:$out/voc" --recipe tiny-fcn
        ;;
    *) set -- --data "coco:$data" --recipe "tiny-mask-rcnn-$task" ;;
    esac
    [ -f "$out/$task/summary.json" ] || "$hetcl" finetune --init "$init" --out "$out/$task" --resume --threads 1 --workers 0 "$@"
done
