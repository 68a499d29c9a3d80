"""Published weights by name: the one place in hetcl's rooms for weights that may download.

A name is only ever what the user wrote: torchvision's ``WEIGHTS_NAME`` or timm's ``TAG``.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from typing import Any

from torch import Tensor

from hetcl.errors import InputError
from hetcl.paths import shelter

log = logging.getLogger("hetcl.weights")


def fetch(model: str, arch: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in the library's names, and what it publishes of the input: size, mean, std, channels.

    Args:
        model: the MODEL, for messages.
        arch: ``torchvision:NAME`` or ``timm:NAME``, known to exist.
        name: of the weights.

    Raises:
        InputError: no such name, or it cannot be downloaded.
    """
    shelter()
    log.info("%s: published weights, downloaded unless they lie on this machine already", model)
    library, _, bare = arch.partition(":")
    return (_torchvision if library == "torchvision" else _timm)(model, bare, name)


def _no_such(model: str, library: str, arch: str, name: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    hint = f"there are {', '.join(near)}" if near else f"{library} publishes none for it"
    return InputError(f"{model}: {name!r} is neither a file nor a weights name of {library}'s {arch}; {hint}")


def _cannot(model: str, name: str, error: BaseException) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0] if len(lines[0]) < 100 else lines[0][:100] + "..."
    return InputError(
        f"{model}: cannot download {name} ({reason}); with its file at hand write {model.removesuffix(name)}FILE"
    )


def _torchvision(model: str, arch: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(arch)
    try:
        chosen = weights[name]
    except KeyError:
        raise _no_such(model, "torchvision", arch, name, [w.name for w in weights]) from None
    facts: dict[str, Any] = {"channels": "RGB"}
    preset: Any = chosen.transforms()
    if hasattr(preset, "mean") and hasattr(preset, "crop_size"):
        facts |= {"mean": list(preset.mean), "std": list(preset.std), "size": int(preset.crop_size[0])}
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True)), facts
    except (OSError, RuntimeError) as e:
        raise _cannot(model, name, e) from None


def _timm(model: str, arch: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import timm

    bare = arch.split(".")[0]
    known = [n.partition(".")[2] for n in timm.list_pretrained(f"{bare}.*")]
    if name not in known:
        raise _no_such(model, "timm", bare, name, known)
    tagged = f"{bare}.{name}"
    hub = logging.getLogger("huggingface_hub")  # it speaks of each of its ten attempts
    level = hub.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hub.setLevel(logging.ERROR)
            state = timm.create_model(tagged, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError, LookupError) as e:
        raise _cannot(model, name, e) from None
    finally:
        hub.setLevel(level)
    return dict(state), timm_facts(tagged)


def timm_facts(name: str) -> dict[str, Any]:
    """What timm's configuration of ``name`` (``ARCH`` or ``ARCH.TAG``) says of the input; empty where nothing."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not config.mean or not config.std:
        return {}
    facts = {"mean": list(config.mean), "std": list(config.std), "channels": "RGB"}
    return facts | ({"size": int(config.input_size[-1])} if config.input_size else {})
