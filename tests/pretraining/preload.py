"""What the fork server of ``processes.py`` imports before it forks."""

import timm  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import hetcl.cli
import hetcl.pretraining.run  # noqa: F401
