"""hetcl's own safetensors: facts in the header, and a CRC-32 of facts and weights, since the format has no checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ENTRY = "hetcl"
"""The one entry of the header: several are written in an order that changes from process to process."""


def seal(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file: ``state`` (contiguous, on the host) and ``facts`` (as JSON holds them).

    Equal weights and facts give equal bytes. Of weights that share memory (tied layers) each gets its own bytes, since
    the format knows no sharing.
    """
    from safetensors.torch import save

    whole = {**facts, "crc32": crc_of(state, facts)}
    return save(untied(state), {ENTRY: json.dumps(whole, sort_keys=True)})


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values; a tensor in memory that an earlier one has is a copy."""
    taken, apart = set[int](), dict[str, Tensor]()
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if memory in taken else value
        taken.add(memory)
    return apart


def seal_backbone(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A backbone's weights as :func:`seal` gives them, floating numbers in fp32."""
    float32 = {n: (v.float() if v.is_floating_point() else v).contiguous() for n, v in state.items()}
    return seal(float32, facts)


def unseal(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The facts in a header; empty for a file that is not hetcl's.

    Raises:
        ValueError: what was sealed has changed, or the header is none of hetcl's.
    """
    if ENTRY not in metadata and any('"crc32"' in text for text in metadata.values()):
        raise ValueError("its header has another name")
    facts = json.loads(metadata.get(ENTRY, "{}"))
    if not isinstance(facts, dict):
        raise ValueError("the facts in its header are not hetcl's")
    stated = facts.pop("crc32", None)
    if stated is not None and stated != crc_of(state, facts):
        raise ValueError("its bytes do not match their checksum")
    return facts


def crc_of(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """CRC-32 of the facts and of names, types, shapes and bytes (3 GB a second of one core): 8 hexadecimal digits."""
    crc = zlib.crc32(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().contiguous()
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)};".encode(), crc)
        if value.numel():
            crc = zlib.crc32(value.flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
