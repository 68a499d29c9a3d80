"""Detectors and segmenter at the recipes' sizes: seconds a step, seconds an image, memory; torchvision's own beside.

Images are noise of COCO's usual size with random objects: the work is the same. Evaluation keeps 100 detections of
each image (with random weights their scores would all be too low), so it is a worst case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation import fcn_resnet50

from gpu_sections import roof
from gpu_sections.correct import objects
from gpu_sections.section import Section, free
from gpu_sections.stages import NoLoader, fabric_on, precision_for
from gpu_sections.steps import memory
from hetcl.downstream.build import MODEL_WORDS, build_model
from hetcl.downstream.loader import Batch
from hetcl.downstream.models.scaling import IMAGENET
from hetcl.downstream.task import Finetune, FinetuneConfig
from hetcl.settings import resolve_finetune, to_dict

RECIPES = {
    "Mask R-CNN R50-FPN": "coco-mask-rcnn-r50-fpn-1x",
    "FCN R50": "voc-fcn-r50",
    "Mask R-CNN R50-C4": "coco-mask-rcnn-r50-c4-1x",
}
"""What is measured, as its recipe has it."""
CLASSES = {"fcn": 21, "mask-rcnn": 80}
IMAGE = (480, 640)


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurement."""

    backbone: str
    peer: str
    """torchvision's name of the backbone."""
    batches: tuple[int, ...]
    rounds: int
    overrides: dict[str, Any]
    image: tuple[int, int]


SMALL = {
    **{"min_size": [64], "max_size": 96, "test_size": 64, "crop": 32},
    **{"regions": 4, "test_proposals": 4, "detections": 4},
}
FULL = Scale("torchvision:resnet50", "resnet50", (2, 16), 3, {}, IMAGE)
TOY = Scale("timm:test_resnet", "resnet18", (2,), 1, SMALL, (64, 64))


def run(section: Section) -> None:
    """Each model: training steps, evaluation; ours, then torchvision's."""
    scale = TOY if section.toy else FULL
    fabric = fabric_on(section.device, precision_for(section.device))
    for name, recipe in RECIPES.items():
        settings = resolve_finetune(recipe, scale.overrides)
        fcn = settings.model == "fcn"
        for batch in scale.batches:
            given = made_batch(settings, scale, batch)
            for whose, make in sides(name, settings, scale):
                words = f"{name}, step of {batch}, {whose}"
                section.attempt(words, lambda m=make, g=given: stepped(m(), g, fabric, scale), cap=25)
        for whose, make in sides(name, settings, scale):
            given = made_batch(settings, scale, 1)
            words = f"{name}, evaluation, {whose}"
            section.attempt(words, lambda m=make, g=given, f=fcn: looked(m(), g, fabric, f, scale), cap=20)


def sides(name: str, settings: Any, scale: Scale) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Whose model, and how it is made. torchvision has no C4."""
    words = {k: v for k, v in to_dict(settings).items() if k in MODEL_WORDS}
    words |= {"norm": "tuned", "score_threshold": 0.0}
    classes = CLASSES[settings.model]
    yield "ours", lambda: build_model(arch=scale.backbone, classes=classes, facts=IMAGENET, **words)
    if settings.model == "fcn":
        yield "torchvision (stride 8)", lambda: Segmenting(classes)
    elif settings.neck == "fpn":
        yield "torchvision", lambda: peer(settings, scale, classes)


def peer(settings: Any, scale: Scale, classes: int) -> nn.Module:
    """torchvision's Mask R-CNN, all of it trained, at the same sizes."""
    body = resnet_fpn_backbone(
        backbone_name=scale.peer, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return MaskRCNN(
        body, classes + 1, min_size=side_of(settings), max_size=settings.max_size, box_score_thresh=0.0,
        box_detections_per_img=settings.detections, box_batch_size_per_image=settings.regions,
        rpn_post_nms_top_n_test=settings.test_proposals,
    )  # fmt: skip


class Segmenting(nn.Module):
    """torchvision's FCN as ours is called."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = fcn_resnet50(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(images)["out"]
        return {"loss": nn.functional.cross_entropy(logits, labels)} if labels is not None else logits


def side_of(settings: Any) -> int:
    """The short side that both sides train and test at: the middle one of the recipe's."""
    return int(sorted(settings.min_size)[len(settings.min_size) // 2])


def made_batch(settings: Any, scale: Scale, count: int) -> Batch:
    """A batch as the loader gives it."""
    if settings.model == "fcn":
        side, classes = settings.crop, CLASSES["fcn"]
        labels = tuple({"labels": torch.randint(classes, (side, side))} for _ in range(count))
        return Batch(
            tuple(torch.randint(256, (3, side, side), dtype=torch.uint8) for _ in range(count)), labels
        )
    images, targets = objects(count, *scale.image, most=12)
    for target in targets:
        target["boxes"] = target["boxes"].float()
        target["short"] = torch.tensor(side_of(settings))
    return Batch(tuple((image * 255).to(torch.uint8) for image in images), tuple(targets))


def stepped(model: nn.Module, given: Batch, fabric: Fabric, scale: Scale) -> dict[str, Any]:
    """A training step as a run makes it (torchvision's model goes through the same one)."""
    config = FinetuneConfig(
        steps=1, evaluations=1, batch=len(given.images), lr=1e-4, sgd_momentum=0.9, weight_decay=1e-4,
        norm_weight_decay=0.0, channels_last=True,
    )  # fmt: skip
    task = Finetune(
        model.to(fabric.device, memory_format=torch.channels_last), config, fabric=fabric, loader=NoLoader(),
        evaluate=lambda _: None, on_bad=lambda _: None,
    )  # fmt: skip
    free(fabric.device)
    batch = given.to(fabric.device)
    if isinstance(model, MaskRCNN):
        for target in batch.targets:
            target.pop("short")
    seconds = roof.best_of(lambda: task.step(batch, 0), fabric.device, rounds=scale.rounds)
    return {"step_seconds": seconds, "images": len(given.images), **used(fabric.device)}


@torch.no_grad()
def looked(model: nn.Module, given: Batch, fabric: Fabric, fcn: bool, scale: Scale) -> dict[str, Any]:
    """One image in evaluation, on the device."""
    model = model.to(fabric.device, memory_format=torch.channels_last).eval()
    image = given.images[0].to(fabric.device).float().div_(255)

    def look() -> Any:
        with fabric.autocast():
            return model(image[None] if fcn else [image])

    found = look()
    seconds = roof.best_of(look, fabric.device, rounds=scale.rounds)
    kept = {} if fcn else {"detections": len(found[0]["scores"])}
    return {"image_seconds": seconds, **kept, **used(fabric.device)}


def used(device: torch.device) -> dict[str, Any]:
    """Most memory taken."""
    return {"gpu_memory_gib": memory(device) / 2**30 or None}
