#!/usr/bin/env bash
# What bench/gpu.py needs on a GPU machine without network, in .gpu/ (ignored by git), below 60 MiB; prints the command
# to run there, in the checkout.
#
#     bash bench/pack_gpu.sh [--photos DIR] [--shards DIR] [--masks COCO_ROOT] [--images 12000]
#
#   --photos    a folder of photographs, of which the first 120 go along: for the section loader
#   --shards    a folder of tar shards with labels (train-*.tar, val-*.tar): the first --images of the first
#               training shards and a sixth as many to test on: for the section train
#   --masks     the root of a set in COCO's layout: for the frozen masks of train
#
# The machine there has Python 3.12 on x86-64 Linux and the packages named `there` below. Wheels of what else
# pyproject.toml asks for come from where pip takes them here, at the versions of constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
there="torch torchvision timm safetensors tensorboard fsspec pillow matplotlib numpy pyyaml filelock jinja2 markupsafe"
there+=" vl-convert-python" # large, and for pages alone: not needed there
needs="lightning-utilities markdown-it-py mdurl Pygments"  # of those that go along
most=60
photos='' shards='' masks='' images=12000
while [ $# -gt 0 ]; do
  case $1 in
    --photos) photos=$2 ;;
    --shards) shards=$2 ;;
    --masks) masks=$2 ;;
    --images) images=$2 ;;
    *) echo "pack_gpu: no option $1; see the head of $0" >&2; exit 2 ;;
  esac
  shift 2
done

rm -rf .gpu
mkdir -p .gpu/wheels
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The first images of some shards, whole: an image is two entries that stand together. first TOTAL SHARD...
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
  find "$photos" -maxdepth 1 -iname '*.jp*g' | LC_ALL=C sort >"$work/photos.txt"
  head -n 120 "$work/photos.txt" | while read -r file; do cp "$file" "$work/data/photos/"; done
  options+=' --photos $d/photos'
fi
if [ -n "$shards" ]; then
  mkdir "$work/data/shards"
  first "$images" "$shards"/train*.tar
  first $((images / 6)) "$shards"/val*.tar
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

lacking=$("$python" - $there <<'PYTHON'
import re, sys, tomllib

with open("pyproject.toml", "rb") as f:
    asked = [re.match(r"[\w.-]+", line)[0] for line in tomllib.load(f)["project"]["dependencies"]]
print(*(name for name in asked if name not in sys.argv[1:]))
PYTHON
)
platforms=''
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do platforms+=" --platform ${tag}_x86_64"; done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
  --constraint constraints.txt --dest .gpu/wheels $lacking $needs

size=$(du -sm .gpu | cut -f1)
if [ "$size" -ge "$most" ]; then
  echo "pack_gpu: .gpu is $size MiB, more than $most: fewer --images, or leave something out" >&2
  exit 1
fi
commit=$(git describe --always --abbrev=12 --exclude='*' --dirty=+)
echo "pack_gpu: .gpu is $size MiB. On the GPU machine, in the checkout, with .gpu beside bench/:" >&2
cat <<COMMAND
d=\$(mktemp -d) && python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target \$d/site .gpu/wheels/*.whl && tar xzf .gpu/data.tar.gz -C \$d && PYTHONUNBUFFERED=1 PYTHONPATH=\$d/site python3 bench/gpu.py --out "\$OUT" --commit $commit$options
COMMAND
