"""Frozen, tuned and synchronised batch norm, groups of the optimiser, precise statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hetcl.downstream.models import param_groups, precise_bn, segmenter
from hetcl.errors import InputError
from tests.downstream.models.making import batch, small, total

pytestmark = pytest.mark.usefixtures("light")


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_frozen_norms_do_not_move_and_the_rest_does(neck: str) -> None:
    torch.manual_seed(0)
    model = small(neck, norm="frozen")
    assert not any(isinstance(m, nn.BatchNorm2d) for n, m in model.named_modules() if "body" not in n)
    before = copy.deepcopy(model.state_dict())
    model.eval().train()
    groups = param_groups(model, 0.1, 1e-4)
    optimiser = torch.optim.SGD(groups)
    total(model(*batch())).backward()
    optimiser.step()
    after = model.state_dict()
    assert list(before) == list(after) == list(small(neck, norm="frozen").state_dict())
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    still = [k for k in after if k.rpartition(".")[0] in norms]
    assert still
    assert all(torch.equal(before[k], after[k]) for k in still)
    assert not torch.equal(before["backbone.body.conv1.weight"], after["backbone.body.conv1.weight"])


def test_names_of_the_backbone_do_not_depend_on_the_norm() -> None:
    names = [
        [k for k in small(norm=norm).state_dict() if k.startswith("backbone.body")]
        for norm in ("tuned", "frozen", "sync")
    ]
    assert names[0] == names[1] == names[2]


def test_tuned_norms_move_and_stand_in_the_fpn_but_not_in_the_heads() -> None:
    torch.manual_seed(0)
    model = small().train()
    model(*batch())
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert sum(n.startswith("backbone.fpn") for n in norms) == 8
    assert all(n.startswith("backbone.") for n in norms)
    assert all(m.num_batches_tracked == 1 for m in norms.values())


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18"])
def test_sync_norms_replace_all_others(arch: str) -> None:
    torch.manual_seed(0)
    model = small("c4", arch, norm="sync")
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert isinstance(model.roi_heads.box_head.norm, nn.SyncBatchNorm)
    total(model(*batch())).backward()  # one rank on a CPU: as plain batch norm


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"norm 'fixed'.*tuned, frozen, sync"):
        small(norm="fixed")


def test_norms_do_not_decay() -> None:
    for arch in ("resnet18", "timm:convnext_atto"):
        model = small(arch=arch)
        rest, norms = param_groups(model, 0.02, 1e-4)
        assert (rest["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
        assert rest["lr"] == norms["lr"] == 0.02
        kinds = (nn.BatchNorm2d, nn.LayerNorm)
        wanted = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
        assert wanted
        assert {id(p) for p in norms["params"]} == wanted
        ids = [id(p) for g in (rest, norms) for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters())
    frozen = param_groups(small(norm="frozen"), 0.02, 1e-4)
    assert len(frozen) == 1
    assert all(p.requires_grad for p in frozen[0]["params"])
    assert param_groups(nn.BatchNorm1d(3), 1.0, 1e-4, 0.5)[0]["weight_decay"] == 0.5


def toy() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.BatchNorm2d(4))
    for _ in range(2):
        model.train()(torch.randn(2, 3, 6, 6))
    model[3].eval()  # a mode to come back to
    return model


def test_precise_statistics_are_means_over_batches() -> None:
    model = toy()
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(3, 3, 6, 6) * (i + 1),) for i in range(4)]
    taken = iter(batches)
    assert precise_bn(model, taken, 3) == 3
    assert len(list(taken)) == 1  # no more were read
    inside = [model[0](b[0]) for b in batches[:3]]
    for layer in (1, 3):
        if layer == 3:
            plain = copy.deepcopy(model[1]).train()
            inside = [plain(x).relu() for x in inside]
        means = torch.stack([x.mean((0, 2, 3)) for x in inside]).mean(0)
        variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inside]).mean(0)
        torch.testing.assert_close(model[layer].running_mean, means)
        torch.testing.assert_close(model[layer].running_var, variances)
    after = model.state_dict()
    moved = {k for k in after if not torch.equal(before[k], after[k])}
    assert moved == {f"{i}.running_{s}" for i in (1, 3) for s in ("mean", "var")}
    assert [m.training for m in model] == [True, True, True, False]
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)
    assert all(p.grad is None for p in model.parameters())


def test_precise_statistics_without_a_batch_or_with_a_failure_leave_all_as_it_was() -> None:
    model = toy()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="no batches"):
        precise_bn(model, [], 5)
    with pytest.raises(InputError, match="no batches"):
        precise_bn(model, [(torch.randn(2, 3, 6, 6),)], 0)
    with pytest.raises(RuntimeError):
        precise_bn(model, [(torch.randn(2, 3, 6, 6),), (torch.randn(2, 5, 6, 6),)], 2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)


def test_precise_statistics_leave_frozen_norms() -> None:
    torch.manual_seed(0)
    model = segmenter("resnet18", classes=3, norm="frozen", seed=0)
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    precise_bn(model.eval(), [(images, labels)], 1)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert moved == {f"head.{i}.1.running_{s}" for i in (0, 1) for s in ("mean", "var")}
    assert not model.training
