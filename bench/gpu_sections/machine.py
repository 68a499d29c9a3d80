"""The card, the versions, and the two ceilings as measured: copying memory and multiplying matrices."""

from __future__ import annotations

import os

import torch

from gpu_sections.roof import ceilings, copy_bandwidth, product_rate
from gpu_sections.section import Section
from hetcl.runs.folder import machine

GIB = 2**30


def run(section: Section) -> None:
    """One row of facts, then one of rates."""
    cuda = torch.cuda.is_available()
    facts = {k: v for k, v in machine().items() if k != "commit"}
    section.row("facts", cuda=cuda, **facts, memory_gib=_memory())
    if not (cuda or section.toy):
        return
    from hetcl.training.devices import device_name  # (loads much, for nothing where there is no GPU)

    device = section.device
    gpu = device.type == "cuda"
    name = device_name(device)
    section.row(
        "card",
        device=name,
        gpu_memory_gib=torch.cuda.get_device_properties(device).total_memory / GIB if gpu else None,
        torch_cuda=torch.version.cuda if gpu else None,
        cudnn=torch.backends.cudnn.version() if gpu else None,
    )
    bandwidth, peak, source = ceilings(device)
    section.row("ceilings", bandwidth=bandwidth, peak=peak, source=source)
    section.row("copy", copy=copy_bandwidth(device, GIB if gpu else 2**24))
    section.row("product", product=product_rate(device, 8192 if gpu else 256))


def _memory() -> float | None:
    """Of the host."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
