#!/usr/bin/env bash
# What bench/gpu.py needs on a GPU machine without network, in .gpu/ (ignored by git), below 60 MiB; prints the command
# to run there, in the checkout.
#
#     bash bench/pack_gpu.sh [--photos DIR] [--shards DIR] [--masks COCO_ROOT] [--pictures 12000]
#
#   --photos    a folder of photographs, of which the first 120 go along: for the section loader
#   --shards    a folder of tar shards with labels (train-*.tar, val-*.tar): the first --pictures of the first
#               training shards and a sixth as many to test on: for the section train
#   --masks     the root of a set in COCO's layout: for the frozen masks of train
#
# The machine there has Python 3.12 on x86-64 Linux, torch, torchvision, timm, safetensors, tensorboard, fsspec, pillow,
# matplotlib and numpy. Wheels of the rest come from where pip takes them here, at the versions of constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
lacking="lightning-fabric lightning-utilities jsonargparse rich markdown-it-py mdurl Pygments faster-coco-eval"
most=60
photos='' shards='' masks='' pictures=12000
while [ $# -gt 0 ]; do
  case $1 in
    --photos) photos=$2 ;;
    --shards) shards=$2 ;;
    --masks) masks=$2 ;;
    --pictures) pictures=$2 ;;
    *) echo "pack_gpu: no option $1; see the head of $0" >&2; exit 2 ;;
  esac
  shift 2
done

rm -rf .gpu
mkdir -p .gpu/wheels
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The first pictures of some shards, whole: a picture is two entries that stand together. first TOTAL SHARD...
first() {
  local left=$(($1 * 2)) shard here
  shift
  for shard in "$@"; do
    [ "$left" -gt 0 ] || break
    tar tf "$shard" >"$work/all"
    head -n "$left" "$work/all" >"$work/some"
    here=$(wc -l <"$work/some")
    mkdir "$work/cut"
    tar xf "$shard" -C "$work/cut" -T "$work/some"
    tar cf "$work/data/shards/$(basename "$shard")" -C "$work/cut" -T "$work/some"
    rm -rf "$work/cut"
    left=$((left - here))
  done
}

options=''
mkdir -p "$work/data"
if [ -n "$photos" ]; then
  mkdir "$work/data/photos"
  find "$photos" -maxdepth 1 -iname '*.jp*g' | LC_ALL=C sort | head -n 120 | while read -r file; do cp "$file" "$work/data/photos/"; done
  options+=' --photos $d/photos'
fi
if [ -n "$shards" ]; then
  mkdir "$work/data/shards"
  first "$pictures" "$shards"/train*.tar
  first $((pictures / 6)) "$shards"/val*.tar
  if [ -f "$shards/classes.json" ]; then cp "$shards/classes.json" "$work/data/shards/"; fi
  options+=' --shards $d/shards'
fi
if [ -n "$masks" ]; then
  mkdir "$work/data/masks"
  cp -r "$masks/." "$work/data/masks/"
  chmod -R u+w "$work/data/masks"
  options+=' --masks coco:$d/masks'
fi
tar czf .gpu/data.tar.gz -C "$work/data" .

platforms=''
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do platforms+=" --platform ${tag}_x86_64"; done
# shellcheck disable=SC2086
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
  --constraint constraints.txt --dest .gpu/wheels $lacking

size=$(du -sm .gpu | cut -f1)
if [ "$size" -ge "$most" ]; then
  echo "pack_gpu: .gpu is $size MiB, more than $most: fewer --pictures, or leave something out" >&2
  exit 1
fi
commit=$(git describe --always --abbrev=12 --exclude='*' --dirty=+)
echo "pack_gpu: .gpu is $size MiB. On the GPU machine, in the checkout, with .gpu beside bench/:" >&2
cat <<COMMAND
d=\$(mktemp -d) && python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target \$d/site .gpu/wheels/*.whl && tar xzf .gpu/data.tar.gz -C \$d && PYTHONUNBUFFERED=1 PYTHONPATH=\$d/site python3 bench/gpu.py --out "\$OUT" --commit $commit$options
COMMAND
