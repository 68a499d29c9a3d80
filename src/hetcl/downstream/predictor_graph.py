"""``hetcl export RUN --format onnx-predictor``: a whole detector or segmenter as an ONNX graph for one size of image.

    export_predictor("det", out="detector.onnx", size=(480, 640))

The graph holds everything between an image and its answer: normalisation, scaling, padding, the model, non-maximum
suppression, masks pasted into the image. It is run in onnxruntime and compared with the run before it gets its name.

    H W  of the image     n  objects     M  side of a predicted mask
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import boxes as box_ops

from hetcl.downstream.trained import read_model, read_run
from hetcl.errors import InputError, WorkFailed
from hetcl.paths import expand
from hetcl.quantities import count
from hetcl.runs.folder import RunFolder, machine
from hetcl.types import PixelFormat
from hetcl.weights.cards import PURPOSES
from hetcl.weights.export_proof import run_code
from hetcl.weights.exporters import Kind, card_of, check_out, put_in_place, workspace, write
from hetcl.weights.facts import InputFacts
from hetcl.weights.writers import onnx_bytes, quiet

FORMAT = "onnx-predictor"
KIND = Kind(PURPOSES[FORMAT], (".onnx",), "as all readers expect")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PIXELS, SCORES, SHARE = 0.1, 1e-3, 1e-3
"""What may differ: pixels of a box, points of a score, and the share of pixels that another class or mask holds."""
CHECKED = 3
"""Images that graph and run are compared on."""


class DetectorGraph(nn.Module):
    """A detector as a function of one image and of the least score."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """The detections of an image, best first.

        Args:
            image: float32 ``[C, H, W]`` in [0, 1].
            score_threshold: float32 scalar, in place of the run's own.

        Returns:
            boxes float32 ``[n, 4]`` in pixels, scores float32 ``[n]``, labels int64 ``[n]`` from 1, and where the model
            has masks, bool ``[n, H, W]``.
        """
        model, size = self.model, (image.shape[-2], image.shape[-1])
        held, model.roi_heads.score_thresh = model.roi_heads.score_thresh, score_threshold
        images, _ = model.transform([image])
        maps = model.backbone(images.tensors)
        regions, _ = model.rpn(images, maps)
        (found,), _ = model.roi_heads(maps, regions, images.image_sizes)
        model.roi_heads.score_thresh = held
        boxes = resize_boxes(found["boxes"], list(images.image_sizes[0]), list(size))
        out = boxes, found["scores"], found["labels"]
        return (*out, pasted(found["masks"][:, 0], boxes, size)) if "masks" in found else out


class SegmenterGraph(nn.Module):
    """A segmenter as a function of one image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """float32 ``[C, H, W]`` in [0, 1] -> the class of each pixel, int64 ``[H, W]``."""
        return (self.model(image[None]).argmax(dim=1)[0],)


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """As ``scaling.paste``, all masks and pixels at once, so that nothing depends on a box's place.

    Args:
        masks: float ``[n, M, M]``, probabilities.
        boxes: float ``[n, 4]``, in the image's pixels.
        size: height and width of the image.
        threshold: a pixel whose middle has at least this probability is the object's.

    Returns:
        bool ``[n, H, W]``.
    """
    x, across = _along(boxes[:, 0], boxes[:, 2], size[1])
    y, down = _along(boxes[:, 1], boxes[:, 3], size[0])
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    drawn = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    return (drawn >= threshold) & down[:, :, None] & across[:, None, :]


def _along(start: Tensor, end: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Middles of pixels, -1 at the start of each box and 1 at its end; which pixels a box touches: ``[n, side]``."""
    middles = torch.arange(side, dtype=start.dtype, device=start.device) + 0.5
    place = (middles - start[:, None]) / (end - start).clamp(min=1e-6)[:, None] * 2 - 1
    return place, (middles > start.floor()[:, None]) & (middles < end.ceil()[:, None])


def export_predictor(
    run: str | Path, *, out: str | Path, size: tuple[int, int] | None = None, overwrite: bool = False
) -> list[Path]:
    """Write a fine-tuned run's whole model as an ONNX graph, with a card beside it, and prove them equal.

    Args:
        run: a run of :func:`hetcl.finetune`.
        out: the file, which must end in ``.onnx``.
        size: height and width of the images that the graph takes; None: as the run evaluates, 3 : 4.
        overwrite: replace what is there.

    Returns:
        the file and its card, ``out`` with ``.md`` behind.

    Raises:
        InputError: no such run, packages that are missing, or an ``out`` or ``size`` that cannot be.
        WorkFailed: the file could not be written, or is not equal to the run; nothing is left of it.
    """
    lacking = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if lacking:
        raise InputError(f"--format {FORMAT} needs {' and '.join(lacking)}: pip install {' '.join(NEEDED)}")
    file, folder = Path(expand(out)), RunFolder(Path(expand(run)))
    check_out(file, FORMAT, KIND, overwrite)
    saved = read_run(folder)
    model, steps = read_model(folder, saved)
    settings = saved["settings"]
    detects = settings["model"] != "fcn"
    height, width = size or _default_size(settings)
    if not 32 <= min(height, width) <= max(height, width) <= 4096:
        raise InputError(f"--image-size {height}x{width}: a side has 32 to 4096 pixels")
    graph = (DetectorGraph if detects else SegmenterGraph)(model).eval()
    pixels = InputFacts.from_dict(saved["facts"], "settings.yaml").pixels
    channels = pixels.channels
    with workspace(file, FORMAT, KIND, overwrite) as hidden:
        outputs = ["boxes", "scores", "labels", "masks"] if detects else ["classes"]
        data = _graph(graph, (channels, height, width), outputs, saved, settings["model"])
        write(hidden / file.name, data, file)
        try:
            code = _code(saved["classes"], pixels, (height, width), detects)
            names = run_code(code, hidden / file.name)
            proof = _compare(model, names, (channels, height, width), detects=detects)
        except WorkFailed as error:
            raise WorkFailed(f"the graph is not equal to {run}, and was removed: {error}") from None
        card = _card(file, folder, saved, steps, (height, width), code, proof)
        write(hidden / card_of(file).name, card.encode(), file)
        return put_in_place(hidden, file, [file, card_of(file)])


def _default_size(settings: dict[str, Any]) -> tuple[int, int]:
    if settings["model"] == "fcn":
        return settings["crop"], settings["crop"]
    short = settings["test_size"]
    return short, min(settings["max_size"], round(short * 4 / 3))


@contextlib.contextmanager
def _graph_of_nms() -> Iterator[None]:
    """Inside, non-maximum suppression within classes has one form for any number of boxes, which a graph can hold."""

    def batched(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
        apart = (
            torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
        )  # (no boxes have no largest number)
        return box_ops.nms(boxes + (classes.to(boxes) * apart)[:, None], scores, threshold)

    held, box_ops.batched_nms = box_ops.batched_nms, batched
    try:
        yield
    finally:
        box_ops.batched_nms = held


def _graph(
    graph: nn.Module, shape: tuple[int, int, int], names: list[str], saved: dict[str, Any], kind: str
) -> bytes:
    """The ONNX graph. Raises ``InputError`` when torch cannot export the model."""
    inputs: tuple[Tensor, ...] = (torch.rand(shape, generator=torch.Generator().manual_seed(0)),)
    inputs += (torch.tensor(0.0),) if isinstance(graph, DetectorGraph) else ()
    names = names[:3] if kind == "faster-rcnn" else names
    try:
        with quiet(), torch.no_grad(), _graph_of_nms(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision's of torch
            program = torch.onnx.export(
                torch.export.export(graph, inputs, strict=False), dynamo=True, verbose=False,
                input_names=["image", "score_threshold"][: len(inputs)], output_names=names,
            )  # fmt: skip
    except Exception as error:  # the exporter's own errors, of many kinds
        raise InputError(
            f"torch cannot export {kind} on {saved['arch']} to ONNX ({type(error).__name__}); --debug says where"
        ) from error
    facts = {"model": kind, "arch": saved["arch"], "classes": list(saved["classes"]), "size": list(shape[1:])}
    return onnx_bytes(program, facts | machine())


def _compare(model: Any, names: dict[str, Any], shape: tuple[int, int, int], *, detects: bool) -> str:
    """What was compared, in words. Raises ``WorkFailed`` when run and graph differ."""
    found, apart, session = 0, [0.0, 0.0, 0.0], names["session"]
    for seed in range(CHECKED):
        image = _image(shape, seed)
        given = {"image": image.numpy()} | ({"score_threshold": np.array(0, np.float32)} if detects else {})
        theirs = session.run(None, given)
        ours = _asked(model, image, detects=detects)
        if [a.shape for a in ours] != [b.shape for b in theirs]:
            raise WorkFailed(f"{len(ours[0])} detections against {len(theirs[0])} in image {seed + 1}")
        found += len(ours[0]) if detects else ours[0].size
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not a.size:
                continue
            place = min(i, 2) if detects else 2
            difference = (a != b).mean() if place == 2 else abs(a - b).max()
            apart[place] = max(apart[place], float(difference))
    if apart[0] > PIXELS or apart[1] > SCORES or apart[2] > SHARE:
        raise WorkFailed(
            f"boxes differ by {apart[0]:.2g} pixels, scores by {apart[1]:.2g}, labels in {apart[2]:.2%}"
        )
    if not detects:
        return (
            f"{count(CHECKED, 'image')}: the classes of {found:,} pixels are equal in all but {apart[2]:.2%}"
        )
    return (
        f"{count(CHECKED, 'image')}, {count(found, 'detection')}: boxes within {apart[0]:.1g} pixels, scores within "
        f"{apart[1]:.1g}, labels and masks equal in all but {apart[2]:.2%}"
    )


def _image(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Large patches of colour with some noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, shape[0], 6, 8), generator=draw)
    smooth = F.interpolate(coarse, shape[1:], mode="bicubic")[0]
    return (0.9 * smooth + 0.1 * torch.rand(shape, generator=draw)).clamp(0, 1)


@torch.no_grad()
def _asked(model: Any, image: Tensor, *, detects: bool) -> list[np.ndarray]:
    """What the model itself says of an image, a detector whatever the score, in the order of the graph's outputs."""
    if not detects:
        return [model(image[None]).argmax(dim=1)[0].numpy()]
    held, model.roi_heads.score_thresh = model.roi_heads.score_thresh, 0.0
    (found,) = model([image])
    model.roi_heads.score_thresh = held
    masks = [found["masks"][:, 0]] if "masks" in found else []
    return [t.numpy() for t in (found["boxes"], found["scores"], found["labels"], *masks)]


def _code(classes: Sequence[str], pixels: PixelFormat, size: tuple[int, int], detects: bool) -> str:
    """Code that loads and uses the graph; it needs onnxruntime, numpy and Pillow."""
    channels, (height, width) = pixels.channels, size
    opened = f"""
def read(path):
    \"\"\"An image file as uint8 [its height, its width, {channels}].\"\"\"
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))

""" if pixels.rgb else ""  # fmt: skip
    given = "path" if pixels.rgb else "values"
    taken = (
        "read(path)"
        if pixels.rgb
        else f"np.atleast_3d(values)  # [its height, its width, {channels}], as the file has them"
    )
    top = (
        f"{pixels.top or 255:g}" if pixels.rgb or pixels.top
        else '1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max'
    )  # fmt: skip
    answer = f"""\
def detect({given}, score=0.5):
    image = {taken}
    pixels, factor, _ = fitted(image)
    given = {{"image": pixels, "score_threshold": np.array(score, np.float32)}}
    boxes, scores, labels, *masks = session.run(None, given)
    height, width = image.shape[:2]
    boxes = (boxes / factor).clip(0, np.array([width, height, width, height], np.float32))  # none in what was added
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # masks[0][keep], if any, have the size of pixels
    return boxes[keep], scores[keep], [CLASSES[i - 1] for i in labels[keep]]
""" if detects else f"""\
def segment({given}):
    pixels, _, (height, width) = fitted({taken.split("  #")[0]})
    (classes,) = session.run(None, {{"image": pixels}})
    return classes[:height, :width]  # of the image as it was scaled
"""  # fmt: skip
    return f"""\
import numpy as np
import onnxruntime
from PIL import Image{", ImageOps" * pixels.rgb}

session = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])
CLASSES = {list(classes)!r}

{opened}
def fitted(values):
    \"\"\"[h, w, {channels}] -> float32 [{channels}, {height}, {width}] in [0, 1], the factor, and h and w in it.\"\"\"
    top = {top}  # the value that is 1.0
    factor = min({height} / values.shape[0], {width} / values.shape[1])
    size = tuple(max(1, round(side * factor)) for side in values.shape[:2])
    pixels = np.zeros(({channels}, {height}, {width}), np.float32)  # what is over stays black
    for plane, channel in zip(pixels, np.moveaxis(np.asarray(values, np.float32) / top, 2, 0)):
        scaled = Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], Image.Resampling.BILINEAR)
        plane[: size[0], : size[1]] = np.asarray(scaled).clip(0, 1)
    return pixels, factor, size


{answer}"""


def _pixel_words(pixels: PixelFormat) -> str:
    """How the array that goes in is made."""
    if pixels.rgb:
        return "RGB, pixels / 255"
    top = f"{pixels.top:g}" if pixels.top else "the largest value of their type (1 for floats)"
    return (
        f"the channels as the files have them, each the stored value / {top}; the code takes an array of stored "
        f"values [height, width, {pixels.channels}]"
    )


def _card(
    file: Path, folder: RunFolder, saved: dict[str, Any], steps: tuple[int, int], size: tuple[int, int], code: str,
    proof: str,
) -> str:  # fmt: skip
    """What stands beside the graph."""
    kind, detects = saved["settings"]["model"], saved["settings"]["model"] != "fcn"
    outputs = (
        "`boxes` float32 [n, 4] (left, top, right, bottom in pixels), `scores` float32 [n], `labels` int64 [n] "
        f"(1 is {saved['classes'][0]})" + (", `masks` bool [n, H, W]" if kind == "mask-rcnn" else "")
        if detects else f"`classes` int64 [H, W] (0 is {saved['classes'][0]})"
    )  # fmt: skip
    least = ", `score_threshold` float32, a scalar" if detects else ""
    pixels = InputFacts.from_dict(saved["facts"], "settings.yaml").pixels
    return f"""\
# {file.name}

A whole {kind} on {saved["arch"]}, fine-tuned by hetcl for {steps[0]:,} steps (run `{folder.path.name}`),
as an ONNX graph for images of {size[0]} x {size[1]} pixels.

- In: `image` float32 [{pixels.channels}, {size[0]}, {size[1]}] in [0, 1]{least}. Normalisation is part of the graph.
- Pixels: {_pixel_words(pixels)}.
- Images of another shape are scaled to fit and get black at the right and bottom; results near that border differ a
  little from those of `hetcl predict`, which adds none: export at the size of your images.
- Out: {outputs}.
- Compared with the run in onnxruntime: {proof}.

```python
FILE = "{file.name}"

{code}```

Made by hetcl {machine()["hetcl"]}, commit {machine()["commit"]}.
"""
