"""Opens a file of weights that a stranger may have made: tensors come out, no code runs, nothing is written.

PyTorch files are loaded by ``weights_only`` alone. What a trainer saved beside its weights (arguments, counters) may
be objects of its own classes; those of known trainers are replaced by an empty :class:`Stand_in` while the file is
read, never by the class itself. All other classes are refused.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetcl.errors import InputError
from hetcl.runs import archive, checkpoint
from hetcl.weights import sealed

TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of ``torch.save`` began before they were zips (PyTorch < 1.6): a magic number, pickled."""
HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|pathlib\._local\.\w+|datetime\.\w+|typing\.Any"
    r"|collections\.defaultdict|torch\.torch_version\.TorchVersion|torch\.optim\.lr_scheduler\.\w+"
    r"|builtins\.(int|float|str|bool|list|dict|tuple|set|complex)"
    r"|numpy(\.\w+)*\.(scalar|dtype|_reconstruct|ndarray|\w+DType|float64|float32|int64|bool_)"
    r"|(omegaconf|lightning|pytorch_lightning|lightning_fabric|lightning_utilities|mmengine|mmcv|yacs|fvcore|easydict"
    r"|addict|timm|lightly)(\.\w+)+"
)
"""Classes, by their full name, whose place a stand-in takes: what trainers save beside the weights."""
DICTIONARIES = re.compile(r"collections\.defaultdict|(.*\.)?(AttributeDict|EasyDict|Dict|ConfigDict)")


class Stand_in:
    """Takes the place of a class of a file and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stand_in:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DictStandIn:
    """Takes the place of a class that is filled like a dictionary: a plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


TYPES = {
    *(
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
"""Types of tensors that can be looked at; others (eight bits of several kinds) can not."""


def open_file(path: Path) -> tuple[Any, dict[str, Any]]:
    """What ``path`` holds, on the host, and the facts of its header (safetensors of hetcl; else empty).

    Returns:
        ``(content, facts)``: for safetensors a state dict, otherwise whatever was saved.

    Raises:
        InputError: it cannot be read, or could not be read without running code or filling the memory.
    """
    try:
        with open(path, "rb") as f:
            head = f.read(1024)
    except OSError as e:
        raise _unreadable(
            path, checkpoint.why_unreadable(path, e) if path.exists() else "no such file"
        ) from None
    if path.suffix == ".safetensors" or _is_safetensors(head):
        return _open_safetensors(path)
    if not head:
        raise _unreadable(path, "the file is empty")
    if not head.startswith(b"PK"):
        _refuse_other_kinds(path, head)
    else:
        _refuse_bombs(path)
    content = _load(path)
    _refuse_unbacked(path, content)
    return content, {}


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(f"cannot read {path} as weights: {why}")


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _is_safetensors(head: bytes) -> bool:
    """A length of 8 bytes, then JSON."""
    return len(head) > 9 and head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 27


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            state = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
        facts = sealed.unseal(state, metadata)
    except (
        *(SafetensorError, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
        RecursionError,
    ) as e:
        detail = (str(e).splitlines() or [""])[0][:200]
        raise _unreadable(path, f"it is damaged or cut short ({detail})") from None
    if not isinstance(facts.get("arch"), str | None):
        raise _unreadable(path, "the facts in its header are not hetcl's")
    if not state:
        raise InputError(f"{path} holds no weights")
    odd = next((n for n, v in state.items() if v.dtype not in TYPES), None)
    if odd is not None:
        kind = str(state[odd].dtype).removeprefix("torch.")
        raise _unreadable(path, f"{odd} is of type {kind}; save it as float32")
    return state, facts


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    """Says what the file is where its first bytes tell; files of old PyTorch pass."""
    if head.startswith(TORCH_PICKLE):
        return
    if head.startswith(b"version https://git-lfs"):
        raise _unreadable(path, "it is a git-lfs pointer; fetch the weights themselves (git lfs pull)")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise _unreadable(
            path,
            "it is a bare pickle (detectron2's .pkl are), which can run code; where you trust it, load it yourself "
            "and save its weights with safetensors.torch.save_file",
        )
    if head[257:262] == b"ustar":
        raise _unreadable(path, "it is a tar archive; unpack the weights first")
    if head[:2] == b"\x1f\x8b":
        raise _unreadable(path, "it is packed with gzip; unpack it first")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        raise _unreadable(path, "it is a text file, not weights")


def _refuse_bombs(path: Path) -> None:
    """Raises when the zip would grow absurdly, is not one of ``torch.save``, or does not match its checksums."""
    names = archive.parts(path)
    if "constants.pkl" in names:
        raise _unreadable(
            path, "it is a TorchScript archive, which is code; save the state_dict() of its module instead"
        )
    if names and "data.pkl" not in names:
        raise _unreadable(path, "it is a zip, but not one of torch.save; unpack the weights first")
    if why := archive.damage(path):
        raise _unreadable(path, why)


def _load(path: Path) -> Any:
    """Loads with stand-ins for harmless classes. Raises ``InputError`` with the class that is in the way."""
    strange = _classes_in(path)
    refused = [name for name in strange if not HARMLESS.fullmatch(name)]
    if refused:
        raise _more_than_tensors(path, refused)
    stand_ins: list[Any] = [
        (type(n, (DictStandIn if DICTIONARIES.fullmatch(n) else Stand_in,), {}), n) for n in strange
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused in our own words
            return checkpoint.load_tensors(path)
    except checkpoint.UNREADABLE as e:
        named = re.search(r"GLOBAL ([\w.]+)", str(e))
        if named:
            raise _more_than_tensors(path, [named[1]]) from None
        raise _unreadable(path, checkpoint.why_unreadable(path, e)) from None


def _more_than_tensors(path: Path, classes: list[str]) -> InputError:
    return _unreadable(
        path,
        f"it holds more than tensors ({', '.join(classes[:2])}), and hetcl runs no code from files; "
        "save its state_dict alone",
    )


def _classes_in(path: Path) -> list[str]:
    """Full names of the classes and functions that ``weights_only`` would refuse, from the pickle's opcodes alone."""
    if not archive.is_zip(path):
        return []  # of an old file torch cannot list them; loading it refuses the first
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file: whatever this raises, loading it says what is wrong
        return []


def _refuse_unbacked(path: Path, content: Any) -> None:
    """Raises when tensors claim more memory than the file has bytes for: strides of 0, or a false size of a storage."""
    size = path.stat().st_size
    most = archive.GROWTH * size + archive.SLACK
    storages: dict[int, int] = {}
    for name, tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _unreadable(path, f"{name} is no plain tensor ({tensor.layout}, {tensor.device})")
        if tensor.dtype not in TYPES:
            raise _unreadable(
                path, f"{name} is of type {str(tensor.dtype).removeprefix('torch.')}; save it as float32"
            )
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > most or sum(storages.values()) > most:
            raise _unreadable(path, f"{name} claims more bytes than the file has")


def _tensors(content: Any, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries, with their names."""
    if depth and isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(value, Tensor):
                yield str(name), value
            elif isinstance(value, Mapping):
                yield from _tensors(value, depth - 1)
