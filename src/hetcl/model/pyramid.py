"""Any backbone of torchvision or timm as four maps, C2 to C5.

    build_pyramid("resnet50", seed=0)            # torchvision first, then timm
    build_pyramid("torchvision:convnext_tiny")
    build_pyramid("timm:swin_tiny_patch4_window7_224")

Weights are random; nothing is downloaded. State dicts carry the library's own names, without the classifier.
Shapes: images ``[B, 3, H, W]``, or of ``in_chans`` channels; map i
``[B, C_i, H / stride_i, W / stride_i]`` (``hetcl/types.py``).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hetcl.draws import seed_of
from hetcl.errors import InputError
from hetcl.types import PyramidSpec

Maps = tuple[Tensor, Tensor, Tensor, Tensor]
STRIDES = (4, 8, 16, 32)
PROBES = ((64, 96), (224, 224))
"""Height and width of the images that find a model's stages; the second is for models of one fixed size."""
OWN = "module"
"""What stands for a library in the name of a backbone that was given from Python (``own_backbone.py``)."""
GIVEN: dict[str, Callable[[], Pyramid]] = {}
"""Those that this process was given, by name: each call draws weights anew."""


class Pyramid(nn.Module):
    """A backbone that gives four maps, finest first. Built by :func:`build_pyramid`.

    Attributes:
        arch: library and name, e.g. ``"torchvision:resnet50"``.
        spec: channels and strides of C2..C5.
    """

    def __init__(self, arch: str, spec: PyramidSpec) -> None:
        super().__init__()
        self.arch, self.spec = arch, spec

    def forward(self, images: Tensor) -> Maps:
        """``[B, 3, H, W]`` -> C2..C5, each ``[B, C, H / stride, W / stride]`` (rounded up or down)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"arch={self.arch}, channels={self.spec.channels}"


class ResNetPyramid(Pyramid):
    """torchvision's ResNet, ResNeXt and Wide ResNet. Parameter names are torchvision's, without ``fc``."""

    def __init__(self, arch: str, resnet: Any) -> None:
        last = resnet.fc.in_features
        super().__init__(arch, PyramidSpec((last // 8, last // 4, last // 2, last)))
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4

    def forward(self, images: Tensor) -> Maps:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return c2, c3, c4, c5


class WrappedPyramid(Pyramid):
    """A pyramid around a ``body`` built elsewhere; state-dict names are the body's own, with no prefix.

    Args:
        body: returns the four maps, maybe among others.
        last: per map, whether the body gives it as ``[B, H, W, C]``.
        pick: which outputs of the body are the four maps.
        size: height and width of the only images the body takes; None takes any.
    """

    def __init__(
        self,
        arch: str,
        spec: PyramidSpec,
        body: nn.Module,
        *,
        last: tuple[bool, ...],
        pick: tuple[int | str, ...],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(arch, spec)
        self.body, self.last, self.pick, self.size = body, last, pick, size
        self.register_state_dict_post_hook(_strip_body)
        self.register_load_state_dict_pre_hook(_restore_body)

    def forward(self, images: Tensor) -> Maps:
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            given, taken = ("x".join(map(str, size)) for size in (images.shape[-2:], self.size))
            raise InputError(
                f"{self.arch} takes images of {taken} pixels only, not {given}: "
                "use that size, or a backbone that takes any"
            )
        out = self.body(images)
        c2, c3, c4, c5 = (
            out[name].permute(0, 3, 1, 2) if last else out[name]
            for name, last in zip(self.pick, self.last, strict=True)
        )
        return c2, c3, c4, c5


def _strip_body(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """``body.x`` -> ``x`` in a state dict being written."""
    for name in [n for n in state if n.startswith(prefix + "body.")]:
        state[prefix + name.removeprefix(prefix + "body.")] = state.pop(name)


def _restore_body(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """``x`` -> ``body.x`` in a state dict being read."""
    for name in [n for n in state if n.startswith(prefix)]:
        state[prefix + "body." + name.removeprefix(prefix)] = state.pop(name)


@contextmanager
def seeded(seed: int | None, *key: int | str) -> Iterator[None]:
    """Inside, torch's initialisers draw from ``(seed, *key)``; outside, the global state is as it was.

    ``None`` leaves the global generator in charge. Weights are always drawn on the host.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_of(seed, "weights", *key))
        yield


def build_pyramid(arch: str, *, seed: int | None = None, in_chans: int = 3) -> Pyramid:
    """A backbone with random weights.

    Args:
        arch: ``torchvision:NAME``, ``timm:NAME``, a bare name (torchvision's if it has one, else timm's), or what
            ``register_backbone`` gave.
        seed: what the weights are a function of; None draws from torch's global generator.
        in_chans: channels of its images.

    Raises:
        InputError: the name is unknown, or the model has no maps of strides 4, 8, 16 and 32 (a plain ViT).
    """
    if arch.startswith(f"{OWN}:"):
        with seeded(seed, "pyramid"):
            return given(arch)()
    library, name = _resolve(arch)
    build = _torchvision if library == "torchvision" else _timm
    with seeded(seed, "pyramid"):
        return build(name, in_chans)


def set_in_chans(model: nn.Module, in_chans: int) -> nn.Module:
    """A model of RGB images made one of ``in_chans`` channels, with new random weights in its first convolution.

    They are drawn such that outputs spread as before: normal, with the std of the old ones times sqrt(3 / in_chans).
    """
    if in_chans == 3:
        return model
    name, old = first_conv(model)
    new: Any = nn.Conv2d(
        in_chans,
        old.out_channels,
        **{n: getattr(old, n) for n in ("kernel_size", "stride", "padding")},
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.copy_(torch.randn_like(new.weight) * (old.weight.std() * (3 / in_chans) ** 0.5))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    model.set_submodule(name, new)
    return model


def first_conv(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the convolution that sees the RGB image: the first of three input channels.

    Raises:
        InputError: there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            return name, module
    raise InputError(
        f"{type(model).__name__} has no first convolution of 3 channels, so it takes RGB images alone: set in_chans to "
        "3, or take a backbone of timm's"
    )


def given(arch: str) -> Callable[[], Pyramid]:
    """What builds a backbone that was given from Python. Raises InputError when this process was not given it."""
    if arch in GIVEN:
        return GIVEN[arch]
    what = arch.partition(":")[2].rpartition("-")[0]
    like = [name for name in GIVEN if name.rpartition("-")[0] == f"{OWN}:{what}"]
    other = f" ({like[-1]} is known, whose weights have other names or shapes)" if like else ""
    raise InputError(
        f"the backbone {arch} was given from Python, and only its name was recorded{other}: call "
        f"hetcl.register_backbone({what or 'MODULE'}) first, with the same class or a module like it"
    )


def _resolve(arch: str) -> tuple[str, str]:
    """``(library, name)``. Raises InputError with near names when nobody knows it."""
    library, colon, name = arch.partition(":")
    if not colon:
        library, name = "", arch
    if library not in ("", "torchvision", "timm"):
        raise InputError(
            f"backbone {arch!r}: {library!r} is not a library; use torchvision:NAME or timm:NAME"
        )
    known: dict[str, list[str]] = {}
    for candidate, lister in (("torchvision", _torchvision_names), ("timm", _timm_names)):
        if library in ("", candidate):
            known[candidate] = lister()
            bare = name.split(".")[0] if candidate == "timm" else name  # timm's NAME.TAG
            if bare in known[candidate]:
                return candidate, name
    every = sorted({n for names in known.values() for n in names})
    near = difflib.get_close_matches(name, every, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "for example resnet50, or timm:convnext_tiny"
    where = library or "torchvision and timm"
    raise InputError(f"backbone {arch!r}: no such model in {where}; {hint}")


def _torchvision_names() -> list[str]:
    import torchvision.models as models

    return models.list_models(module=models)


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _no_pyramid(arch: str, why: str) -> InputError:
    return InputError(
        f"backbone {arch!r} has no maps of strides 4, 8, 16 and 32 ({why}); "
        "choose a four-stage backbone such as resnet50, convnext_tiny or swin_t"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


# --- torchvision


def _torchvision(name: str, in_chans: int) -> Pyramid:
    from torchvision.models import ResNet, get_model_builder

    arch = f"torchvision:{name}"
    builder: Callable[..., nn.Module] = get_model_builder(name)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # inception and googlenet speak of their initialisation
        model = set_in_chans(builder(weights=None), in_chans)
    if isinstance(model, ResNet):
        return ResNetPyramid(arch, model)
    return _traced(arch, model, in_chans)


def _traced(arch: str, model: nn.Module, in_chans: int) -> Pyramid:
    """Cut any torchvision classifier after the last stage of each stride."""
    from torchvision.models.feature_extraction import create_feature_extractor

    failure = "its stages were not found"
    for size in PROBES:
        try:
            found = _stages(model, in_chans, *size)
        except (AssertionError, RuntimeError, ValueError) as error:
            failure = _first_line(error)
            continue
        if set(found) == set(STRIDES):
            nodes = {found[s][0]: f"c{i}" for i, s in enumerate(STRIDES, start=2)}
            spec = PyramidSpec(tuple(found[s][1] for s in STRIDES))
            last = tuple(found[s][2] for s in STRIDES)
            body = create_feature_extractor(model, return_nodes=nodes)
            return WrappedPyramid(
                arch,
                spec,
                body,
                last=last,
                pick=("c2", "c3", "c4", "c5"),
                size=None if size == PROBES[0] else size,
            )
        failure = f"found strides {sorted(found) or 'none'}"
    raise _no_pyramid(arch, failure)


@torch.no_grad()
def _stages(model: nn.Module, in_chans: int, height: int, width: int) -> dict[int, tuple[str, int, bool]]:
    """Last stage of each stride: ``{stride: (module name, channels, channels last)}``.

    Stages are the model's children and grandchildren (``features.3``, ``trunk_output.block2``): deeper
    modules are the inside of blocks, where the first convolution of a stage may still have the stride of the
    one before.
    """
    found: dict[int, tuple[str, int, bool]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if not isinstance(out, Tensor) or out.ndim != 4:
                return
            for stride in STRIDES:
                grid = (height // stride, width // stride)
                first, last = tuple(out.shape[2:]) == grid, tuple(out.shape[1:3]) == grid
                if first or last:
                    found[stride] = (name, out.shape[1] if first else out.shape[3], not first)

        return hook

    handles = []
    for name, child in model.named_children():
        handles.append(child.register_forward_hook(note(name)))
        for sub, grandchild in child.named_children():
            handles.append(grandchild.register_forward_hook(note(f"{name}.{sub}")))
    training = model.training
    try:
        model.eval()(torch.zeros(1, in_chans, height, width))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


# --- timm


def _timm(name: str, in_chans: int) -> Pyramid:
    arch = f"timm:{name}"
    body, size = _timm_body(arch, name, in_chans)
    info: Any = body.feature_info
    strides = list(info.reduction())
    if not set(STRIDES) <= set(strides):
        raise _no_pyramid(arch, f"found strides {strides}")
    pick = tuple(len(strides) - 1 - strides[::-1].index(s) for s in STRIDES)  # the last map of each stride
    spec = PyramidSpec(tuple(info.channels()[i] for i in pick))
    channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
    return WrappedPyramid(arch, spec, body, last=(channels_last,) * 4, pick=pick, size=size)


def _timm_body(arch: str, name: str, in_chans: int) -> tuple[nn.Module, tuple[int, int] | None]:
    """The feature model, and the only size of image it takes, if so."""
    import timm

    try:
        config: Any = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"backbone {arch!r}: {_first_line(error)}; leave the tag out") from None
    fixed = config is not None and config.fixed_input_size
    how: dict[str, Any] = {"features_only": True, "pretrained": False, "in_chans": in_chans}
    try:
        if fixed:
            try:  # the Swin family lets go of its size when asked
                loose = timm.create_model(name, strict_img_size=False, **how)
                return loose, None
            except TypeError:
                pass
        body = timm.create_model(name, **how)
        return body, tuple(config.input_size[-2:]) if fixed else None
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, KeyError) as error:
        raise _no_pyramid(arch, _first_line(error)) from error
