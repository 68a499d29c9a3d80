"""Hostile and broken files: one clear line each, nothing executed, nothing written."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hetcl.cli import main
from hetcl.errors import InputError
from hetcl.weights.sources import load_backbone, read_weights
from tests.weights.files import bare, in_pyramid, resnet, same


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def refused(name: str) -> str:
    """The one line that reading ``name`` gives under every way to name it; the folder stays as it is."""
    before = {p: p.stat().st_size for p in Path().rglob("*")}
    said = ""
    for model in (f"torchvision:resnet18:{name}", f"moco:{name}", name):
        with pytest.raises(InputError) as error:
            load_backbone(model)
        said = str(error.value)
        assert len(said.splitlines()) == 1
        assert len(said) < 500
        assert name in said
    assert {p: p.stat().st_size for p in Path().rglob("*")} == before
    return said


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


CALLS = {
    "os.system": lambda: Call(os.system, "touch evil"),
    "eval": lambda: Call(builtins.eval, "open('evil', 'w')"),
    "exec": lambda: Call(builtins.exec, "open('evil', 'w')"),
    "subprocess": lambda: Call(subprocess.check_output, ["touch", "evil"]),
    "touch": lambda: Call(pathlib.Path.touch, Path("evil")),
    "open": lambda: Call(io.open, "evil", "w"),
    "getattr": lambda: Call(getattr, Path("evil"), "touch"),
    "torch.load": lambda: Call(torch.load, "evil"),
    "hub": lambda: Call(torch.hub.load, "evil", "evil"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_pickle_that_would_run_code(call: str, zipped: bool) -> None:
    content = {"state_dict": bare(resnet(1)), "extra": CALLS[call]()}
    torch.save(content, "x.pth", _use_new_zipfile_serialization=zipped)
    said = refused("x.pth")
    assert "it holds more than tensors (" in said
    assert "hetcl runs no code from files; save its state_dict alone" in said
    assert not Path("evil").exists()


@pytest.mark.parametrize("ending", ["pkl", "pth", "ckpt", "safetensors"])
def test_bare_pickles(ending: str) -> None:
    """detectron2's files are such; they are not opened, whatever they are called."""
    for protocol in (2, 4):
        content = {
            "model": {"stem.conv1.weight": np.zeros(3, np.float32)},
            "x": Call(os.system, "touch evil"),
        }
        Path(f"x.{ending}").write_bytes(pickle.dumps(content, protocol))
        said = refused(f"x.{ending}")
        assert ending == "safetensors" or "it is a bare pickle (detectron2's .pkl are)" in said
    assert not Path("evil").exists()


def test_classes_that_trainers_save_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a harmless class is replaced: its code is not run, its values are forgotten."""
    made = []

    class Config:
        def __init__(self, *_: Any) -> None:
            made.append("init")

        def __setstate__(self, state: Any) -> None:
            made.append("state")

        def __reduce__(self) -> Any:
            return Config, (1,), {"a": 2}

    Config.__module__, Config.__qualname__ = "yacs.made_up", "Config"
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    module = types.ModuleType("yacs.made_up")
    module.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs.made_up", module)
    torch.save({"state_dict": bare(resnet(1)), "config": Config()}, "x.pth")
    made.clear()
    assert same(read_weights("x.pth").query, in_pyramid(resnet(1)))
    assert made == []


# ---- broken ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_cut_short(zipped: bool) -> None:
    torch.save({"state_dict": bare(resnet(1))}, "whole.pth", _use_new_zipfile_serialization=zipped)
    whole = Path("whole.pth").read_bytes()
    for share in (1e-5, 0.001, 0.3, 0.9, 0.999999):
        Path("x.pth").write_bytes(whole[: int(len(whole) * share)])
        assert "cannot read x.pth as weights" in refused("x.pth")


def test_a_byte_changed_never_breaks_the_reader() -> None:
    small = {"conv1.weight": torch.randn(4), "layer1.0.conv1.weight": torch.randn(3)}
    for name in ("x.pth", "x.safetensors"):
        torch.save({"state_dict": small, "epoch": 3}, name) if name == "x.pth" else save_file(small, name)
        whole = bytearray(Path(name).read_bytes())
        rng = torch.Generator().manual_seed(1)
        for place in torch.randint(len(whole), (60,), generator=rng).tolist():
            damaged = whole.copy()
            damaged[place] ^= 0x5A
            Path(name).write_bytes(damaged)
            with pytest.raises(InputError):
                load_backbone(f"torchvision:resnet18:{name}")


def tar() -> None:
    with tarfile.open("x.pth", "w") as archive:
        Path("inside").write_text("x")
        archive.add("inside")


def script() -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "x.pth")


def zipped(name: str) -> None:
    with zipfile.ZipFile("x.pth", "w") as archive:
        archive.writestr(name, "x")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Path("x.pth").write_text("import os\n" * 300), "it is a text file, not weights"),
        (
            lambda: Path("x.pth").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "a git-lfs pointer",
        ),
        (lambda: Path("x.pth").write_text("<!doctype html><html>Not found</html>"), "it is a text file"),
        (lambda: Path("x.pth").write_bytes(b""), "the file is empty"),
        (
            lambda: Path("x.pth").write_bytes(bytes(range(256)) * 9),
            "it is damaged, cut short or of another kind",
        ),
        (lambda: Path("x.pth").write_bytes(gzip.compress(b"x" * 999)), "it is packed with gzip"),
        (tar, "it is a tar archive"),
        (script, "it is a TorchScript archive, which is code"),
        (lambda: zipped("photo.jpg"), "it is a zip, but not one of torch.save"),
        (lambda: torch.save({}, "x.pth"), "x.pth holds no state dict (names with tensors), or an empty one"),
        (lambda: torch.save({"state_dict": {}}, "x.pth"), "or an empty one"),
        (lambda: torch.save(torch.zeros(3), "x.pth"), "x.pth holds no state dict"),
        (lambda: torch.save([torch.zeros(3)], "x.pth"), "x.pth holds no state dict"),
        (lambda: torch.save({"a": torch.zeros(3), "b": 7}, "x.pth"), "'b' is of type int"),
        (lambda: torch.save({3: torch.zeros(3)}, "x.pth"), "holds no state dict (names with tensors): 3 is"),
        (lambda: torch.save({"a": {"b": {"c": torch.zeros(3)}}}, "x.pth"), "'a' is of type dict"),
        (
            lambda: torch.save({"a": torch.zeros(3).to_sparse()}, "x.pth"),
            "a is no plain tensor (torch.sparse_coo",
        ),
        (lambda: torch.save({"a": torch.zeros(3, device="meta")}, "x.pth"), "a is no plain tensor"),
        (lambda: torch.save({"conv1.weight": torch.zeros(3)}, "x.pth"), "does not"),
    ],
)
def test_files_that_are_something_else(make: Callable[[], None], said: str) -> None:
    make()
    assert said in refused("x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float) -> None:
    state = bare(resnet(1))
    state["layer3.1.bn2.running_mean"][5] = value
    torch.save(state, "x.pth")
    assert "x.pth holds values that are not finite, e.g. in layer3.1.bn2.running_mean" in refused("x.pth")


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_zip_bomb() -> None:
    with zipfile.ZipFile("x.pth", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as f:
        for _ in range(300):
            f.write(bytes(1 << 20))
    assert Path("x.pth").stat().st_size < 1 << 20
    assert "that claims to hold 314572800; weights do not pack like that" in refused("x.pth")


def test_tensors_larger_than_the_file() -> None:
    """Strides of nothing over one number, as large as one likes: fine to save, deadly to look at."""
    torch.save(bare(resnet(1)) | {"huge": torch.zeros(1).expand(1 << 40)}, "x.pth")
    assert "huge claims more bytes than the file has" in refused("x.pth")


@pytest.mark.parametrize("numel", [1001, 100_000_000])
def test_a_storage_that_lies_about_its_length(numel: int) -> None:
    torch.save({"conv1.weight": torch.arange(1000).float()}, "honest.pth")
    with zipfile.ZipFile("honest.pth") as honest, zipfile.ZipFile("x.pth", "w") as liar:
        for entry in honest.infolist():
            data = honest.read(entry)
            if entry.filename.endswith("data.pkl"):
                said, claims = b"M" + struct.pack("<H", 1000), b"J" + struct.pack("<i", numel)
                assert data.count(said) == 2  # length of the storage, length of the tensor
                data = data.replace(said, claims)
            liar.writestr(entry.filename, data)
    assert "x.pth" in refused("x.pth")


@pytest.mark.parametrize(
    "header",
    [
        {"conv1.weight": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}},
        {"conv1.weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 4]}},
        {"conv1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        {"conv1.weight": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"conv1.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"__metadata__": {"hetcl": "[1, 2"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"hetcl": "[1, 2]"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {
            "__metadata__": {"hetcl": '{"arch": 3}'},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        {
            "__metadata__": {"hetcl": '{"arch": "x"}'},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        [1, 2, 3],
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_a_safetensors_file_with_a_lying_header(header: Any, name: str) -> None:
    text = json.dumps(header).encode()
    for length in (len(text), 1 << 26, 1 << 62):
        Path(name).write_bytes(struct.pack("<Q", length) + text + bytes(4))
        refused(name)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_nothing_is_written_and_the_status_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.zeros(1), "b": Call(os.system, "touch evil")}, "x.pth")
    argv = ["pretrain", "--data", "scenes:64", "--out", "run", "--recipe", "demo", "--init", "moco:x.pth"]
    assert main([*argv, "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "moco:x.pth" in said or "x.pth" in said
    assert sorted(p.name for p in Path().iterdir()) == ["x.pth"]
