"""The queue: a first-in-first-out store of keys, shared by training and offline testing.

Shapes: K length of the queue, D dimensions of a key, B keys pushed at once (``hetcl/types.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hetcl.draws import seed_of


class KeyQueue(nn.Module):
    """A ring of the last K keys with the index of the image each came from (paper section 3.1; MoCo section 3.2).

    ``state_dict`` saves it whole: the buffers ``keys [K, D]`` and ``index int64 [K]`` (-1 where no real key has been
    written), and the integers ``pointer`` and ``seen`` (how many keys were ever pushed).

    Args:
        length: K, any positive number; it need not be a multiple of the batch.
        dims: dimensions of each part in the order they are concatenated, e.g. ``{"semantic": 128, "spatial": 196}``.
        seed: where the random unit vectors come from that fill the queue at the start (each part of unit length).
    """

    def __init__(self, length: int, dims: dict[str, int], *, seed: int = 0) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue needs at least one place, not {length}")
        self.length, self.dims = length, dict(dims)
        draw = torch.Generator().manual_seed(seed_of(seed, "queue"))
        parts = [torch.randn(length, d, generator=draw) for d in dims.values()]
        keys = torch.cat([nn.functional.normalize(p, dim=1) for p in parts], dim=1)
        self.keys: Tensor
        self.index: Tensor
        self.register_buffer("keys", keys)
        self.register_buffer("index", torch.full((length,), -1, dtype=torch.int64))
        # Plain integers, not tensors: reading them must not wait for the device.
        self.pointer = 0
        self.seen = 0

    @property
    def filled(self) -> float:
        """Share of the queue that holds real keys, 0 to 1."""
        return min(1.0, self.seen / self.length)

    @torch.no_grad()
    def push(self, keys: Tensor, index: Tensor) -> None:
        """Write ``keys [B, D]`` of images ``index [B]`` over the oldest ones; of B > K keys the last K stay."""
        self.seen += len(keys)
        start = self.pointer + max(0, len(keys) - self.length)
        keys, index = keys[-self.length :], index[-self.length :]
        places = (torch.arange(len(keys), device=self.keys.device) + start) % self.length
        self.keys[places] = keys.to(self.keys.dtype)
        self.index[places] = index.to(self.index.device)
        self.pointer = (start + len(keys)) % self.length

    def get_extra_state(self) -> dict[str, int]:
        """Pointer and count travel with ``state_dict``."""
        return {"pointer": self.pointer, "seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.pointer, self.seen = int(state["pointer"]), int(state["seen"])

    def extra_repr(self) -> str:
        return f"length={self.length}, dims={self.dims}"
