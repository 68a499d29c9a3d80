"""What the fork server of ``processes.py`` imports before it forks, and small heads for the detectors trained there."""

import pytest
import timm  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import hetcl.analysis.contrast.run
import hetcl.cli
import hetcl.downstream.finetune
import hetcl.downstream.scores
import hetcl.pretraining.run  # noqa: F401
from tests.downstream.light import small_heads

small_heads(pytest.MonkeyPatch())
