"""Images of people in COCO's format to VOC's layout for segmentation: person and background, one map an image.

python experiments/pennfudan_voc.py DATA OUT       DATA: a folder with annotations/instances_{train,val}.json, images/
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hetcl.datasets import masks, open_detection


def main(data: str, out: str) -> None:
    """Write OUT/VOC2012; nothing where it is there already."""
    root = Path(out) / "VOC2012"
    if (root / "done").exists():
        return
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        images, stems = open_detection(f"coco:{data}", split), []
        for index in range(len(images)):
            truth = images.annotations(index)
            name = Path(truth.name)
            shutil.copy(Path(data) / "images" / name.name, root / "JPEGImages" / f"{name.stem}.jpg")
            labels = np.zeros(truth.size, np.uint8)
            for segment in truth.segments or ():
                if segment is not None:
                    labels |= masks.bitmap(segment, truth.size)
            image = Image.fromarray(labels).convert("P")
            image.putpalette([0, 0, 0, 192, 128, 128])
            image.save(root / "SegmentationClass" / f"{name.stem}.png")
            stems.append(name.stem)
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    (Path(out) / "classes.txt").write_text("background\nperson\n")
    (root / "done").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
