"""Branches and embedding: shapes, unit length, fused against vanilla, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcl.model.branches import ClassBranch, SemanticBranch, SpatialBranch
from hetcl.model.embedding import Embedding, cost_of, normalize
from hetcl.model.pyramid import build_pyramid
from tests.reference.moco import spatial_map

CHANNELS = (3, 4, 5, 6)


def maps_at(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    return [
        torch.randn(batch, c, max(1, height // s), max(1, width // s), dtype=torch.float64)
        for c, s in zip(CHANNELS, (1, 2, 4, 8), strict=True)
    ]


def spatial(side: int, *, fused: bool = True) -> SpatialBranch:
    branch = SpatialBranch(CHANNELS, width=7, side=side, fused=fused).double()
    for bias in (p for n, p in branch.named_parameters() if n.endswith("bias")):
        torch.nn.init.normal_(bias)  # zero at the start: would hide a bias that is pooled or added twice
    return branch


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_fused_and_vanilla_equal_pooling_after_the_lateral(side: int) -> None:
    maps = maps_at(16, 16)
    fused = spatial(side)
    vanilla = spatial(side, fused=False)
    vanilla.load_state_dict(fused.state_dict())
    state = {f"branches.spatial.{n}": p for n, p in fused.state_dict().items()}
    expected = spatial_map(state, maps, side).flatten(1)
    torch.testing.assert_close(fused(maps), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(vanilla(maps), expected, rtol=1e-11, atol=1e-11)


@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.integers(1, 20), fused=st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_size_and_side_pools_like_pooling_after_the_lateral(
    height: int, width: int, side: int, fused: bool
) -> None:
    """Against PyTorch's adaptive pooling and nearest upsampling, after the lateral and axis by axis."""
    maps = maps_at(height, width)
    branch = spatial(side, fused=fused)

    def to_grid(x: torch.Tensor) -> torch.Tensor:
        rows, columns = min(x.shape[2], side), min(x.shape[3], side)
        return F.interpolate(F.adaptive_avg_pool2d(x, (rows, columns)), size=(side, side))

    laterals = [conv(level) for conv, level in zip(branch.lateral, maps, strict=True)]
    if fused:
        total = sum(to_grid(x) for x in laterals)
    else:
        total = laterals[3]
        for finer in laterals[2::-1]:
            total = finer + F.interpolate(total, size=finer.shape[2:])
        total = to_grid(total)
    expected = branch.project(branch.smooth(total)).flatten(1)
    assert expected.shape == (2, side * side)
    torch.testing.assert_close(branch(maps), expected, rtol=1e-11, atol=1e-11)


def test_grid_is_flattened_row_by_row_and_keeps_its_place() -> None:
    branch = spatial(4)
    maps = [m.zero_() for m in maps_at(16, 16)]
    still = branch(maps)
    maps[0][:, :, 0, 15] = 5.0  # top right corner
    changed = (branch(maps) - still).abs().view(2, 4, 4)
    assert changed[:, 0, 3].min() > 0
    assert changed[:, 2:].max() == 0
    assert changed[:, :, :2].max() == 0


@pytest.mark.parametrize("fused", [True, False])
def test_parts_at_224_have_128_and_196_dimensions_and_unit_length(fused: bool) -> None:
    pyramid = build_pyramid("resnet18", seed=3)
    branches = {
        "semantic": SemanticBranch(512),
        "spatial": SpatialBranch(pyramid.spec.channels, fused=fused),
    }
    embedding = Embedding(pyramid, branches)
    assert list(embedding.dims.items()) == [("semantic", 128), ("spatial", 196)]
    parts = embedding(torch.randn(2, 3, 224, 224))
    assert {n: tuple(p.shape) for n, p in parts.items()} == {"semantic": (2, 128), "spatial": (2, 196)}
    for part in parts.values():
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2))
    row = embedding.concat({"spatial": parts["spatial"], "semantic": parts["semantic"]})
    torch.testing.assert_close(row, torch.cat([parts["semantic"], parts["spatial"]], dim=1), rtol=0, atol=0)


def test_gradients_of_each_part_reach_every_stage_and_parameter() -> None:
    pyramid = build_pyramid("resnet18", seed=4)
    branches = {"semantic": SemanticBranch(512), "spatial": SpatialBranch(pyramid.spec.channels, side=4)}
    embedding = Embedding(pyramid, branches).double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for name in branches:
        embedding.zero_grad()
        part = embedding(images)[name]
        (part * torch.randn_like(part)).sum().backward()
        other = next(n for n in branches if n != name)
        for parameter, value in embedding.named_parameters():
            if parameter.startswith(f"branches.{other}."):
                assert value.grad is None
            else:
                assert value.grad is not None, parameter
                assert value.grad.abs().max() > 0, parameter


def test_the_spatial_branch_listens_to_every_level() -> None:
    maps = [m.requires_grad_() for m in maps_at(32, 32)]
    branch = spatial(8)
    branch(maps).square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().min() > 0 for m in maps)


def test_semantic_branch_is_the_linear_or_the_mlp_head() -> None:
    maps = maps_at(16, 16)
    pooled = maps[3].mean((2, 3))
    linear = SemanticBranch(6, dim=9, mlp=False).double()
    torch.testing.assert_close(linear(maps), pooled @ linear.fc.weight.T + linear.fc.bias)
    mlp = SemanticBranch(6, dim=9).double()
    assert [tuple(p.shape) for p in mlp.parameters()] == [(6, 6), (6,), (9, 6), (9,)]
    assert list(mlp.state_dict()) == ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]
    hidden = (pooled @ mlp.fc[0].weight.T + mlp.fc[0].bias).clamp(min=0)
    torch.testing.assert_close(mlp(maps), hidden @ mlp.fc[2].weight.T + mlp.fc[2].bias)
    assert SemanticBranch(6, hidden=11).fc[0].out_features == 11


def test_class_branch_gives_logits() -> None:
    assert ClassBranch(6, 10).double()(maps_at(16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: SemanticBranch(8, seed=seed),
        lambda seed: SpatialBranch(CHANNELS, width=5, seed=seed),
        lambda seed: ClassBranch(8, 3, seed=seed),
    ],
)
def test_branch_weights_are_a_function_of_the_seed(make) -> None:
    a, b, c = (torch.nn.utils.parameters_to_vector(make(s).parameters()) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_normalizing_is_done_in_fp32_under_autocast() -> None:
    x = torch.randn(5, 300, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = normalize(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.norm(dim=1), torch.ones(5), rtol=1e-6, atol=1e-6)
    assert normalize(x.double()).dtype == torch.float64
    assert normalize(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_encoder_under_autocast_gives_fp32_unit_vectors() -> None:
    pyramid = build_pyramid("resnet18", seed=0)
    embedding = Embedding(pyramid, {"spatial": SpatialBranch(pyramid.spec.channels, width=8, side=4)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        part = embedding(torch.randn(2, 3, 64, 64))["spatial"]
    assert part.dtype == torch.float32
    torch.testing.assert_close(part.norm(dim=1), torch.ones(2), rtol=1e-6, atol=1e-6)


def test_the_spatial_branch_costs_what_facts_say() -> None:
    """docs/facts.md: 115 M laterals and 115 M smoothing at 224, 5.6% of ResNet-50's 4.1 G multiply-adds."""
    pyramid = build_pyramid("resnet50")
    images = (1, 3, 224, 224)
    alone = cost_of(pyramid, *images)
    spatial = Embedding(pyramid, {"spatial": SpatialBranch(pyramid.spec.channels)})
    vanilla = Embedding(pyramid, {"spatial": SpatialBranch(pyramid.spec.channels, fused=False)})
    assert alone.parameters == sum(p.numel() for p in pyramid.parameters())
    assert alone.multiply_adds == pytest.approx(4.1e9, rel=0.02)
    extra = (cost_of(spatial, *images).multiply_adds - alone.multiply_adds) / alone.multiply_adds
    assert extra == pytest.approx(0.056, abs=0.001)
    more = (cost_of(vanilla, *images).multiply_adds - alone.multiply_adds) / alone.multiply_adds
    assert more == pytest.approx(0.122, abs=0.002)
