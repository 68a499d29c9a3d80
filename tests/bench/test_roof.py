"""Bytes and kernels of a step, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_sections import roof, steps
from torch import Tensor, nn

SIDE, IN, MID, OUT = 8, 4, 6, 2
X, Y, O = (4 * c * SIDE * SIDE for c in (IN, MID, OUT))
"""Bytes of one image's input, of what the first convolution gives, and of what the second gives."""


def net_of(batch: int, *, backward: bool, dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """A convolution, batch norm, ReLU and another convolution, forward or both ways."""
    net = nn.Sequential(
        nn.Conv2d(IN, MID, 1, bias=False),
        nn.BatchNorm2d(MID),
        nn.ReLU(inplace=True),
        nn.Conv2d(MID, OUT, 1, bias=False),
    )
    x, gradient = torch.randn(batch, IN, SIDE, SIDE), torch.randn(batch, OUT, SIDE, SIDE)

    def step() -> None:
        with torch.set_grad_enabled(backward):
            out = net(x)
        if backward:
            out.backward(gradient)
            net.zero_grad()

    return step


def test_bytes_of_a_forward_pass() -> None:
    work = roof.work_of(lambda b: net_of(b, backward=False), (64, 128))
    # convolution X + Y, batch norm 2 Y + Y, ReLU Y + Y, convolution Y + O
    assert work.eager[0] == pytest.approx(X + 7 * Y + O)
    # convolution X + Y, statistics Y, normalisation with ReLU Y + Y, convolution Y + O
    assert work.fused[0] == pytest.approx(X + 5 * Y + O)
    assert work.flops[0] == 2 * SIDE * SIDE * (IN * MID + MID * OUT)
    assert work.of("eager", 64) > work.eager[0], "weights and statistics are there, whatever the batch"


def test_bytes_of_both_passes() -> None:
    work = roof.work_of(lambda b: net_of(b, backward=True), (64, 128))
    # convolution: gradient twice, input, gradient of the input; ReLU 3 Y; batch norm 2 (Y + Y) + Y; convolution Y + X
    assert work.eager[0] == pytest.approx((X + 7 * Y + O) + (2 * O + 2 * Y) + 3 * Y + 5 * Y + (Y + X))
    # The mask of ReLU follows from what batch norm reads anyway: its sums Y + Y, its gradient Y + Y + Y.
    assert work.fused[0] == pytest.approx((X + 5 * Y + O) + (2 * O + 2 * Y) + 2 * Y + 3 * Y + (Y + X))
    assert next(iter(work.kinds)) == "native_batch_norm_backward"


def test_pointwise_operations_cost_their_inputs_and_what_is_kept() -> None:
    def step_of(batch: int) -> Callable[[], Tensor]:
        a, b, c = (torch.randn(batch, 256) for _ in range(3))
        return lambda: torch.relu(a * b + c).sum(dim=1)

    work = roof.work_of(step_of, (8, 16))
    row, one = 4 * 256, 4
    assert work.eager[0] == pytest.approx((3 + 3 + 2 + 1) * row + one)
    assert work.fused[0] == pytest.approx((3 + 1 + 1) * row + one)


def test_views_and_expanded_tensors_move_nothing() -> None:
    x = torch.randn(6, 4)
    with roof.Record() as record:
        x.t().reshape(4, 6).unsqueeze(0).expand(3, 4, 6)[0].detach()
        torch.empty(100)
    assert not record.ops
    assert roof.size_of(x[:1].expand(6, 4)) == 16


def test_cards_are_known_by_their_names() -> None:
    known = {
        name: roof.card_of(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-80GB")
    }
    assert [rates[0] / 1e12 for rates in known.values() if rates] == [3.35, 4.8, 2.04]
    assert roof.card_of("NVIDIA H100 PCIe") == (2.04e12, 756e12)
    for other in ("a card to come", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert roof.card_of(other) is None
    bandwidth, peak, source = roof.ceilings(torch.device("cpu"))
    assert source == "measured"
    assert min(bandwidth, peak) > 0


def test_idle_time_is_what_no_kernel_covers() -> None:
    assert steps.idle([(0, 4), (1, 2), (3, 6), (8, 10)]) == pytest.approx(0.2)
    assert steps.idle([]) is None


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<...>", "batch norm"),
        ("triton_red_fused__native_batch_norm_legit_functional_5", "batch norm"),
        ("triton_poi_fused_native_batch_norm_backward_relu_clone_7", "pointwise"),
        ("void at::native::(anonymous namespace)::indexSelectLargeIndex<...>", "copy"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "conv, gemm"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "conv, gemm"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<...>>", "pointwise"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<...>", "pointwise"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>", "copy"),
        ("void at::native::reduce_kernel<512, 1, ...>", "other"),
    ],
)
def test_kernels_are_told_by_their_names(kernel: str, kind: str) -> None:
    assert steps.class_of(kernel) == kind
