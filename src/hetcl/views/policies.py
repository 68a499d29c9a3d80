"""The published augmentations by name (FACTS.md, "Pre-training" and "Offline contrastive testing"). Free of torch."""

from __future__ import annotations

from dataclasses import replace

from hetcl.types import ViewPolicy

_PLAIN = ViewPolicy(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, flip_p=0.0)

POLICIES: dict[str, ViewPolicy] = {
    # MoCo-v1: gray first, then strong jitter on every view, no blur.
    "moco-v1": ViewPolicy(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, grayscale_first=True, blur_p=0.0),
    # MoCo-v2, and HCL's stage 1.
    "moco-v2": ViewPolicy(),
    # HCL's stage 2: no flip (paper section 4.3.3: with it, COCO AP falls by 0.4).
    "hcl": ViewPolicy(flip_p=0.0),
    # Figure 2 of the paper: two crops, no flip, no colour change.
    "crop": _PLAIN,
    # Figure 4 of the paper: crop, flip and colour jitter. NOTE(paper): it gives no strengths; MoCo-v2's.
    "crop-flip-jitter": replace(_PLAIN, jitter_p=0.8, flip_p=0.5),
    # Training with labels (torchvision's reference recipe).
    "supervised": replace(_PLAIN, area=(0.08, 1.0), flip_p=0.5),
    # The whole picture, squeezed (or its central part where it is longer than 4:3); nothing random.
    "none": replace(_PLAIN, area=(1.0, 1.0)),
}
"""Policies by name."""
