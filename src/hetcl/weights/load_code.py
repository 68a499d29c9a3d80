"""The code that loads an exported file in its library: the check runs it (``export_proof.py``), the card shows it.

Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetcl.weights.plain_resnet import PlainResNet


@dataclass(frozen=True)
class Target:
    """What the file looks like to its library."""

    format: str
    library: str
    """torchvision or timm, whose model the weights fit."""
    name: str
    """The model's name there."""
    missing: tuple[str, ...] = ()
    """Names of the library's model that the file does not hold: the classifier."""
    untrained: tuple[str, ...] = ()
    """Names in the file that the source does not have: they hold initial values."""
    stages: tuple[str, ...] = ()
    """torchvision: the modules that give C2..C5."""
    last: tuple[bool, ...] = (False,) * 4
    """Which of the library's maps have their channels last."""
    indices: tuple[int, ...] = ()
    """timm: ``out_indices`` of C2..C5."""
    resnet: PlainResNet | None = None
    in_chans: int = 3
    """Channels of an image."""
    first: str = ""
    """torchvision: the convolution that sees the image, where that is not RGB."""


def code(target: Target) -> str:
    """How to load ``FILE``, as the card shows and the check runs it; it leaves ``backbone``, and mostly ``model``."""
    return _CODE[target.format](target)


def _torchvision(t: Target, load: str = 'torch.load(FILE, map_location="cpu", weights_only=True)') -> str:
    stages = "{" + ", ".join(f'"{n}": "c{i}"' for i, n in enumerate(t.stages, start=2)) + "}"
    missing = "{" + ", ".join(f'"{n}"' for n in t.missing) + "}" if t.missing else "set()"
    return f"""\
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

model = torchvision.models.get_model("{t.name}", weights=None)
{_other_channels(t)}missing, unexpected = model.load_state_dict({load}, strict=False)
assert not unexpected and set(missing) == {missing}
backbone = create_feature_extractor(model.eval(), {stages})
# maps = backbone(images)  # {{"c2": ..., "c5": ...}} from normalised float32 [B, {t.in_chans}, H, W]{_order(t)}
"""


def _other_channels(t: Target) -> str:
    """torchvision's models are of RGB images; others get another first convolution."""
    if t.in_chans == 3:
        return ""
    return f"""\
rgb = model.get_submodule("{t.first}")  # torchvision's models take RGB images
first = type(rgb)({t.in_chans}, rgb.out_channels, rgb.kernel_size, rgb.stride, rgb.padding, bias=rgb.bias is not None)
model.set_submodule("{t.first}", first)
"""


def _timm_backbone(t: Target) -> str:
    return f"""\
backbone = timm.create_model(
    "{t.name}",
    features_only=True,
    out_indices={t.indices}{_in_chans(t)},
    pretrained=True,
    pretrained_cfg_overlay={{"file": FILE{_as_they_are(t)}}},
).eval()
# c2, c3, c4, c5 = backbone(images)  # from normalised float32 [B, {t.in_chans}, H, W]{_order(t)}
"""


def _in_chans(t: Target) -> str:
    """``, in_chans=5`` of timm's models of other than RGB images."""
    return "" if t.in_chans == 3 else f", in_chans={t.in_chans}"


def _as_they_are(t: Target) -> str:
    """Weights of other channels are not to be adapted once more."""
    return "" if t.in_chans == 3 else ', "first_conv": None'


def _timm(t: Target) -> str:
    more = _in_chans(t)
    return f"""\
import timm

model = timm.create_model("{t.name}"{more}, checkpoint_path=FILE, num_classes=0).eval()  # every key has its place
{_timm_backbone(t)}"""


def _hub(t: Target) -> str:
    return f"""\
import timm

SOURCE = "local-dir:" + FILE  # or "hf-hub:USER/NAME", once it is there
model = timm.create_model(SOURCE, pretrained=True).eval()  # no classifier; num_classes=N adds one
backbone = timm.create_model(SOURCE, pretrained=True, features_only=True, out_indices={t.indices}).eval()
# c2, c3, c4, c5 = backbone(images)  # from normalised float32 [B, 3, H, W]{_order(t)}
"""


def _safetensors(t: Target) -> str:
    if t.library == "torchvision":
        text = _torchvision(t, "load_file(FILE)").replace(
            "import torch\nimport torchvision\n",
            "import hetcl\nimport torchvision\nfrom safetensors.torch import load_file\n",
        )
    else:
        missing = "{" + ", ".join(f'"{n}"' for n in t.missing) + "}" if t.missing else "set()"
        text = f"""\
import hetcl
import timm
from safetensors.torch import load_file

model = timm.create_model("{t.name}"{_in_chans(t)}, num_classes=0).eval()
missing, unexpected = model.load_state_dict(load_file(FILE), strict=False)
assert not unexpected and set(missing) == {missing}
{_timm_backbone(t)}"""
    return text + "same = hetcl.load_backbone(FILE)  # the same four maps, channels first\n"


def _detectron2(t: Target) -> str:
    assert t.resnet is not None
    return f"""\
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone

cfg = get_cfg()
cfg.MODEL.BACKBONE.FREEZE_AT = 0
cfg.MODEL.RESNETS.DEPTH = {t.resnet.depth}
cfg.MODEL.RESNETS.NUM_GROUPS = {t.resnet.groups}
cfg.MODEL.RESNETS.WIDTH_PER_GROUP = {t.resnet.width_per_group}
cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {256 if t.resnet.bottleneck else 64}
cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
cfg.MODEL.RESNETS.NORM = "BN"
cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
DetectionCheckpointer(backbone).load(FILE)
# maps = backbone(images)  # {{"res2": ..., "res5": ...}} from normalised float32 [B, 3, H, W]
"""


def _mmdet(t: Target) -> str:
    return f"""\
import torch
import torchvision

checkpoint = torch.load(FILE, map_location="cpu", weights_only=True)
state = {{name.removeprefix("backbone."): value for name, value in checkpoint["state_dict"].items()}}
model = torchvision.models.get_model("{t.name}", weights=None)  # mm's ResNets have torchvision's names
missing, unexpected = model.load_state_dict(state, strict=False)
assert not unexpected and set(missing) == {{"fc.weight", "fc.bias"}}
"""


def _onnx(t: Target, runtime: str = "onnxruntime") -> str:
    if runtime == "onnxruntime":
        load = 'session = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])'
        head = "import onnxruntime"
    else:
        load, head = "session = ReferenceEvaluator(FILE)", "from onnx.reference import ReferenceEvaluator"
    shape = f"[B, {t.in_chans}, H, W]"
    return f"""\
{head}

{load}


def backbone(images):
    return session.run(None, {{"images": images.numpy()}})  # c2, c3, c4, c5 from normalised float32 {shape}
"""


def onnx_by_reference(target: Target) -> str:
    """The code for ONNX where onnxruntime is not installed."""
    return _onnx(target, "onnx")


def _full(t: Target) -> str:
    return f"""\
from hetcl.weights.encoder import load_encoder

encoder = load_encoder(FILE)  # the query encoder; hetcl pretrain --init FILE takes the key encoder too
backbone = encoder.pyramid  # c2, c3, c4, c5 from normalised float32 [B, {t.in_chans}, H, W]
embedding = encoder.embedding  # {{"semantic": [B, 128], ...}}; None where there are no contrastive branches
"""


def _order(t: Target) -> str:
    return ",\n# each map [B, H, W, C] as this model has them" if any(t.last) else ""


_CODE = {
    "torchvision": _torchvision,
    "timm": _timm,
    "detectron2": _detectron2,
    "mmdet": _mmdet,
    "onnx": _onnx,
    "safetensors": _safetensors,
    "hub": _hub,
    "full": _full,
}
