"""What precision does to what goes into a model and to what is computed in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hetcl.training.devices import make_fabric


class Looking(nn.Module):
    """Keeps what it is given, and the type that a convolution computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.given = [*images, *(t["boxes"] for t in targets)]
        made = self.conv(images[0][None])
        self.computed = made.dtype
        return {"loss": made.sum()}


@pytest.mark.parametrize(("precision", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_boxes_reach_a_model_to_the_last_bit(precision: str, computed: torch.dtype) -> None:
    """Of 1,333 pixels bf16 would make 1,336."""
    fabric = make_fabric(device="cpu", devices=1, precision=precision, threads=0)
    module = Looking()
    model, _ = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    image, boxes = torch.rand(3, 8, 9), torch.tensor([[3.3, 301.7, 1333.0, 601.1]])
    loss = model([image], [{"boxes": boxes}])["loss"]
    assert module.computed == computed
    assert loss.dtype == torch.float32
    assert all(map(torch.equal, module.given, (image, boxes)))
    fabric.backward(loss)
    assert module.conv.weight.grad is not None
    assert module.conv.weight.grad.dtype == torch.float32
