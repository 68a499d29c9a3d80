"""hetcl's own safetensors: the format has no checksum, so the header gets one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from hetcl.errors import InputError
from hetcl.weights.sealed import seal
from hetcl.weights.unpack import open_file
from tests.damage import DAMAGES, Damage, spoil

FACTS = {"arch": "torchvision:resnet18", "mean": [0.5, 0.5, 0.5], "size": None, "method": ["hcl"]}


def state() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=draw),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(30, generator=draw).half(),
        "empty": torch.zeros(0, 3),
    }


def test_what_was_sealed_comes_back_and_equal_things_give_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(seal(state(), FACTS))
    content, facts = open_file(path)
    assert facts == FACTS
    assert (
        load(path.read_bytes()).keys() == content.keys() == state().keys()
    )  # any other reader reads it, too
    assert all(torch.equal(content[n], v) for n, v in state().items())
    assert seal(dict(reversed(state().items())), dict(reversed(FACTS.items()))) == path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32))
def test_damage_is_refused_or_changes_nothing(tmp_path: Path, damage: Damage, seed: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(seal(state(), FACTS))
    spoil(path, damage, seed)
    try:
        content, facts = open_file(path)
    except InputError as e:
        why = str(e)
    else:
        assert content.keys() == state().keys()
        assert all(torch.equal(content[n], v) for n, v in state().items())
        assert {k: facts.get(k) for k in FACTS} == FACTS
        return
    assert "\n" not in why
    assert str(path) in why


@pytest.mark.parametrize(
    "changed", [{"arch": "torchvision:resnet34"}, {"mean": [0.5, 0.5, 0.4]}, {"crc32": "00000000"}]
)
def test_facts_are_part_of_it(changed: dict[str, object], tmp_path: Path) -> None:
    import json

    path = tmp_path / "a.safetensors"
    path.write_bytes(seal(state(), FACTS))
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        said = json.loads(f.metadata()["hetcl"])
    path.write_bytes(save(state(), {"hetcl": json.dumps(said | changed)}))
    with pytest.raises(InputError, match="do not match their checksum"):
        open_file(path)


def test_files_of_others_and_older_ones_have_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}, {"hetcl": '{"arch": "torchvision:resnet18"}'}):
        path.write_bytes(save(state(), metadata))
        assert open_file(path)[0].keys() == state().keys()
