"""Detectors and segmenters over any pyramid: torchvision's modules, detectron2's numbers where figures hang on them.

``detectors.py`` puts Faster and Mask R-CNN together (FPN or C4); ``scaling.py`` scales images and pastes masks;
``anchors.py`` lays anchors; ``proposals.py`` has RPN and RoI pooling; ``heads.py`` the box and mask heads;
``segmenters.py`` the FCN; ``norms.py`` batch norm and the optimiser's groups; ``weights.py`` carries backbones.
"""

from hetcl.downstream.models.detectors import detector
from hetcl.downstream.models.norms import param_groups, precise_bn
from hetcl.downstream.models.segmenters import segmenter
from hetcl.downstream.models.weights import load_fpn, load_pyramid, pyramid_state

__all__ = [
    "detector",
    "load_fpn",
    "load_pyramid",
    "param_groups",
    "precise_bn",
    "pyramid_state",
    "segmenter",
]
