"""How much memory the work will take, said before it begins: measured on two images, compared with what there is.

What kernels take for themselves is not seen. Against the resident memory of real steps, estimates were within a third
(docs/decisions.md).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hetcl.errors import InputError
from hetcl.machine import Room, memory

OWN = 150_000_000
"""Bytes that libraries take for themselves once they compute."""
HOPELESS = 2.0
"""Times all the memory there is: beyond doubt too much, whatever the estimate's error."""


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still held: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage()._cdata for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self.now += size
        self.most = max(self.most, self.now)

        def gone(_: Any) -> None:
            self.now -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, gone)


def bytes_of(compute: Callable[[], Any]) -> int:
    """Bytes of tensors that ``compute`` holds at a time, at most, besides those that were there; with its result."""
    with _Live() as live:
        result = compute()
    del result
    return live.most


@dataclass(frozen=True)
class Need:
    """Memory that work will take, in bytes."""

    device: int
    """Where it computes."""
    host: int = 0
    """What the main memory holds besides, for batches that are prepared ahead."""


def outlook(need: Need, device: torch.device, advice: str) -> tuple[str, str]:
    """What a person should know of the memory that work will take, and what to be warned of (or nothing).

    Args:
        advice: what makes it less: ``lower batch``.

    Raises:
        InputError: there is so little that trying is no use.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        rooms = [
            (need.device, Room(free, total, torch.cuda.get_device_name(device))),
            (need.host + OWN, memory()),
        ]
    else:
        rooms = [(need.device + need.host + OWN, memory())]
    lines, warned = [], []
    for bytes_, room in rooms:
        if room is None:
            continue
        about = f"about {bytes_ / 1e9:.1f} GB, and {room}"
        lines.append(about)
        if bytes_ > HOPELESS * room.limit:
            raise InputError(f"this would need {about}: {advice}")
        if bytes_ > room.free:
            warned.append(f"this will need {about}: memory may run out, which ends it; {advice}")
    return "; ".join(lines), "; ".join(warned)
