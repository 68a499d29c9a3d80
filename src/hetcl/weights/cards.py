"""The card beside an exported file: what it is, how to load it, what the check saw. Free of torch.

The code on a card is the code that the check has run; only configurations of libraries that are not installed are
there to copy without having been run, and the card says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetcl import __version__
from hetcl.printable import fenced, markdown, printable
from hetcl.weights.load_code import Target, code

if TYPE_CHECKING:
    from hetcl.weights.export_proof import Proof

PURPOSES = {
    "torchvision": "state dict of a torchvision model, without its classifier (.pth)",
    "timm": "state dict for timm.create_model(NAME, checkpoint_path=FILE, num_classes=0) (.pth, .safetensors)",
    "detectron2": "pickle for MODEL.WEIGHTS of detectron2, in C4 or FPN form; ResNets only (.pkl)",
    "mmdet": "checkpoint for init_cfg of mmdetection, mmpretrain, mmsegmentation; ResNets only (.pth)",
    "onnx": "images to C2..C5 as an ONNX graph, any batch and image size (.onnx)",
    "onnx-predictor": "whole detector or segmenter of a fine-tuned run as an ONNX graph, one image size (.onnx)",
    "safetensors": "the backbone's weights under its library's names, with facts in the header (.safetensors)",
    "hub": "folder that timm.create_model('local-dir:FOLDER', pretrained=True) loads, with a card; for model hubs",
    "full": "query and key encoder with their branches, for research; hetcl reads it as a MODEL (.safetensors)",
}
"""What each format is for, a line each (``hetcl export --help``)."""


@dataclass(frozen=True)
class Facts:
    """What a user of the weights must know to feed them."""

    arch: str
    """Library and name of the source's architecture."""
    method: tuple[str, ...]
    """How they were trained, stage by stage; empty where the source does not say."""
    size: int | None
    """Side of the images they were trained with, in pixels."""
    mean: tuple[float, ...]
    """Per channel, of pixels in 0..1."""
    std: tuple[float, ...]
    channels: str
    """``RGB``, ``BGR``, or ``stored``: as the files have them, of other than three channels."""
    assumed: bool
    """Whether mean and std are ImageNet's for want of a word about them in the source."""
    pixel_max: float = 0.0
    """The stored value that becomes 1; 0: the largest of the files' type."""

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return len(self.mean)

    @property
    def rgb(self) -> bool:
        """Whether images are RGB of 8 bits (or BGR)."""
        return self.in_chans == 3 and not self.pixel_max

    @property
    def scale(self) -> str:
        """How stored values become pixels in 0..1, before mean and std."""
        if self.rgb:
            return "(pixel / 255 - mean) / std"
        top = f"{self.pixel_max:g}" if self.pixel_max else "the largest value of its type"
        return f"(value / {top} - mean) / std"

    def metadata(self) -> dict[str, Any]:
        """The facts that files carry: numbers, strings and lists of them."""
        return {
            "arch": self.arch,
            "method": list(self.method),
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            **({} if self.rgb else {"in_chans": self.in_chans, "pixel_max": self.pixel_max}),
            **({"assumed": True} if self.assumed else {}),
        }


# ---- configurations to copy ------------------------------------------------------------------------------------------


def configurations(target: Target, facts: Facts, file: str) -> list[tuple[str, str, str]]:
    """``(heading, language, text)`` of what a user of detectron2 or mmdetection copies; empty for other formats."""
    if target.format == "detectron2":
        return _detectron2_configs(target, facts, file)
    if target.format == "mmdet":
        return [("mmdetection: a part of the model's config", "python", _mmdet_config(target, facts, file))]
    return []


def _quoted(text: str) -> str:
    """A string as Python and YAML both read it."""
    return printable(json.dumps(text, ensure_ascii=False))


def _pixels(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{255 * v:.3f}" for v in values) + "]"


def _detectron2_configs(t: Target, facts: Facts, file: str) -> list[tuple[str, str, str]]:
    net = t.resnet
    assert net is not None
    resnets = [
        f"    DEPTH: {net.depth}",
        *([f"    NUM_GROUPS: {net.groups}"] if net.groups != 1 else []),
        *([f"    WIDTH_PER_GROUP: {net.width_per_group}"] if net.width_per_group != 64 else []),
        *([] if net.bottleneck else ["    RES2_OUT_CHANNELS: 64"]),
        "    STRIDE_IN_1X1: False  # these weights have the stride in the 3x3 convolution",
        '    NORM: "SyncBN"  # batch norm is trained; "BN" on one GPU',
    ]
    shared = [
        "MODEL:",
        f"  WEIGHTS: {_quoted(file)}",
        f"  PIXEL_MEAN: {_pixels(facts.mean)}  # {facts.channels}, pixels in 0..255",
        f"  PIXEL_STD: {_pixels(facts.std)}",
        "  MASK_ON: True",
        "  BACKBONE:",
        "    FREEZE_AT: 0  # all layers are fine-tuned",
        "  RESNETS:",
        *resnets,
    ]
    tail = [
        "INPUT:",
        f'  FORMAT: "{facts.channels}"',
        "TEST:",
        "  PRECISE_BN:",
        "    ENABLED: True",
        "VERSION: 2",
    ]
    fpn = ['_BASE_: "Base-RCNN-FPN.yaml"', *shared, "  FPN:", '    NORM: "SyncBN"', *tail]
    out = [
        (
            "detectron2, FPN form (save it in detectron2's configs/ folder)",
            "yaml",
            "\n".join(fpn) + "\n",
        )
    ]
    if net.bottleneck:  # detectron2 builds res5 as a head of bottlenecks only
        name = [
            f'    NAME: "{EXTRA_NORM}"  # without the code below: "Res5ROIHeads", and no batch norm after res5'
        ]
        c4 = ['_BASE_: "Base-RCNN-C4.yaml"', *shared, "  ROI_HEADS:", *name, *tail]
        out.append(("detectron2, C4 form: res5 becomes the box head", "yaml", "\n".join(c4) + "\n"))
        out.append(
            (
                "detectron2, C4 form: the batch norm after res5 that papers on MoCo train with",
                "python",
                _EXTRA_NORM,
            )
        )
    return out


EXTRA_NORM = "Res5ROIHeadsExtraNorm"
"""Under which name users of MoCo's detection code know C4's heads with one more batch norm."""
_EXTRA_NORM = f"""\
# Save it beside train_net.py, and import it there: detectron2 does not have it.
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class {EXTRA_NORM}(Res5ROIHeads):
    @classmethod
    def from_config(cls, cfg, input_shape):
        parts = super().from_config(cfg, input_shape)
        channels = 8 * cfg.MODEL.RESNETS.RES2_OUT_CHANNELS  # of res5
        parts["res5"].add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return parts
"""


def _mmdet_config(t: Target, facts: Facts, file: str) -> str:
    net = t.resnet
    assert net is not None
    plain = net.groups == 1
    kind = "ResNet" if plain else "ResNeXt"
    width = f"base_width={net.width_per_group},  # width_per_group in mmpretrain"
    more = "" if plain else f"\n        groups={net.groups},\n        {width}"
    return f"""\
model = dict(
    data_preprocessor=dict(
        mean={_pixels(facts.mean)},  # {facts.channels}, pixels in 0..255
        std={_pixels(facts.std)},
        bgr_to_rgb={facts.channels == "RGB"},  # mm reads images as BGR
    ),
    backbone=dict(
        type="{kind}",
        depth={net.depth},{more}
        style="pytorch",  # the stride is in the 3x3 convolution
        frozen_stages=-1,  # all layers are fine-tuned
        norm_cfg=dict(type="SyncBN", requires_grad=True),  # "BN" on one GPU
        norm_eval=False,
        init_cfg=dict(type="Pretrained", checkpoint={_quoted(file)}, prefix="backbone."),
    ),
)
"""


# ---- the card --------------------------------------------------------------------------------------------------------


def card(
    *,
    file: Path,
    source: str,
    target: Target,
    facts: Facts,
    proof: Proof,
    ran: str,
    sha256: str,
    run: Mapping[str, Any] | None,
    commit: str | None,
    rounded: bool = False,
) -> str:
    """The text of the card, Markdown.

    Args:
        file: what was written; its name is what the card speaks of.
        source: what the weights were exported from, in short.
        ran: the code that the check has run; empty where it ran none.
        run: settings and summary of the run that made the weights, where there is one.
        rounded: the source's weights are of float64, and were rounded.
        commit: of the hetcl that exports, where it runs from a checkout.
    """
    made = f"hetcl {__version__}" + (f", commit {commit}" if commit else "")
    rows = [
        ("format", f"{target.format}: {PURPOSES[target.format]}"),
        ("source", markdown(f"{source}, {facts.arch}")),
        ("training", markdown(" then ".join(facts.method)) if facts.method else "the source does not say"),
        (
            "input size in training",
            f"{facts.size} x {facts.size} pixels" if facts.size else "the source does not say",
        ),
        ("channel order", markdown(facts.channels)),
        *([] if facts.rgb else [("channels", f"{facts.in_chans}")]),
        ("pixel scale", f"0..1 before mean and std are applied: {facts.scale}"),
        ("mean", _numbers(facts.mean) + (" (ImageNet's: the source does not say)" if facts.assumed else "")),
        ("std", _numbers(facts.std) + (" (ImageNet's: the source does not say)" if facts.assumed else "")),
        *([("precision", "float32, rounded from the source's float64")] if rounded else []),
        ("sha256", f"`{sha256}`"),
        ("exported by", made),
        (
            "licence",
            "the code is Apache-2.0; the weights are yours, on the terms of the data and weights they are made from",
        ),
    ]
    parts = [f"# {markdown(file.name)}", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows), ""]
    if target.untrained:
        names = ", ".join(f"`{n}`" for n in target.untrained)
        parts += [
            f"Not trained, at their initial values, since the library's model asks for them: {names}.",
            "",
        ]
    parts += ["## Load it", ""]
    parts += _code_block(target, file, ran)
    for heading, language, text in configurations(target, facts, file.name):
        parts += [f"### {heading}", "", *fenced(language, text), ""]
    parts += ["## Check", "", *_check_lines(proof)]
    parts += _made_by(run)
    return "\n".join(parts).rstrip() + "\n"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _code_block(target: Target, file: Path, ran: str) -> list[str]:
    text = ran or code(target)
    line = (
        "The check ran this code as it stands."
        if ran
        else f"{target.format} is not installed here, so this code was not run; what was checked, and how, is below."
    )
    return [line, "", *fenced("python", f"FILE = {_quoted(file.name)}\n\n{text}"), ""]


def _check_lines(proof: Proof) -> list[str]:
    sizes = ", ".join(f"{h} x {w}" for h, w in proof.images)
    keys = f"{proof.keys} weights and statistics are equal to the bit. " if proof.keys else ""
    head = (
        f"Loaded back by {proof.by}. {keys}Maps of random images ({sizes} pixels, two of each) against the "
        "source's; largest difference over the largest absolute value of the stage:"
    )
    table = ["| stage | difference |", "|---|---|"]
    rows = [f"| C{i} | {gap:.1e} |" for i, gap in enumerate(proof.differences, start=2)]
    return [head, "", *table, *rows, ""]


def _made_by(run: Mapping[str, Any] | None) -> list[str]:
    if run is None:
        return []
    import yaml

    line = f"Trained by hetcl {run.get('hetcl') or ''}".rstrip()
    line += f", commit {run['commit']}" if run.get("commit") else ""
    line += f", recipe {run['recipe']}" if run.get("recipe") else ""
    line += f", on {run['images']} images" if run.get("images") else ""
    lines = ["## Made by", "", markdown(f"{line}, with these settings:")]
    text = yaml.safe_dump(run["settings"], sort_keys=False, allow_unicode=True).rstrip()
    return [*lines, "", *fenced("yaml", text), ""]
