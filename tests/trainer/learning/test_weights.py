"""Weights as people have them: containers, prefixes, heads and types come out right and said, the rest is told."""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.learning.matching import load_matching
from trainer.learning.model import build_model
from trainer.recipes.config import ModelConfig

NAME, CLASSES = "shufflenet_v2_x0_5", 4
State = dict[str, Tensor]


def build(path: Path, classes: int = CLASSES, name: str = NAME) -> State:
    state: State = build_model(ModelConfig(name=name, num_classes=classes, weights=str(path))).state_dict()
    return state


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    made: State = build_model(ModelConfig(name=NAME, num_classes=CLASSES)).state_dict()
    return {key: t + 0.125 if t.is_floating_point() else t + 3 for key, t in made.items()}


@pytest.fixture(scope="module")
def average(state: State) -> State:
    return {key: t + 1 for key, t in state.items()}


def named(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def body_of(state: Mapping[str, Tensor]) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


FORMS: dict[str, tuple[Callable[[State, State], object], str]] = {
    "plain": (lambda s, e: s, ""),
    "without counters": (lambda s, e: {k: t for k, t in s.items() if "num_batches" not in k}, ""),
    "DDP": (lambda s, e: named("module.", s), "the prefix 'module.'"),
    "compiled": (lambda s, e: named("_orig_mod.", s), "the prefix '_orig_mod.'"),
    "both": (lambda s, e: named("_orig_mod.module.", s), "the prefix '_orig_mod.module.'"),
    "Lightning": (
        lambda s, e: {"state_dict": named("model.", s), "epoch": 3, "loops": {}, "hyper_parameters": {"lr": 0.1}},
        "taken from the mapping 'state_dict' and the prefix 'model.'",
    ),
    "PyTorch's examples": (
        lambda s, e: {"epoch": 90, "arch": NAME, "state_dict": named("module.", s), "best_acc1": np.float64(76.1)},
        "the mapping 'state_dict' and the prefix 'module.'",
    ),
    "torchvision's references": (
        lambda s, e: {"model": s, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {"exp_avg": e}}}},
        "taken from the mapping 'model'",
    ),
    "references with an average": (
        lambda s, e: {"model": s, "model_ema": named("module.", e) | {"n_averaged": torch.tensor(5)}},
        "taken from the mapping 'model'; not from the mapping 'model_ema' and the prefix 'module.', which fits, too",
    ),
    "timm": (
        lambda s, e: {"state_dict_ema": e, "state_dict": s, "metric": np.float32(79.1), "version": 2},
        "taken from the mapping 'state_dict'; not from the mapping 'state_dict_ema', which fits, too",
    ),
    "ema beside model": (
        lambda s, e: {"ema": e, "net": s}, "the mapping 'net'; not from the mapping 'ema', which fits, too"
    ),
    "only an average": (
        lambda s, e: {"ema_state_dict": named("module.", s)}, "the mapping 'ema_state_dict' and the prefix 'module.'"
    ),
    "torch's average": (
        lambda s, e: named("module.", s) | {"n_averaged": torch.tensor(5)}, "1 tensors beside them (n_averaged)"
    ),
    "a checkpoint of this trainer": (
        lambda s, e: named("ema.", e) | named("momentum.", e) | named("model.", s),
        "taken from the prefix 'model.'; not from the prefix 'ema.', which fits, too",
    ),
    "two equal copies": (lambda s, e: named("net.", s) | named("model.", s), "taken from the prefix 'net.'"),
    "thop": (lambda s, e: s | {"total_ops": torch.tensor(1.0), "conv5.total_params": torch.tensor(1.0)}, "total_ops"),
    "MoCo": (
        lambda s, e: {"state_dict": named("module.encoder_k.", e) | named("module.encoder_q.", s)},
        "taken from the mapping 'state_dict' and the prefix 'module.encoder_q.'; not from",
    ),
    "float16": (lambda s, e: {k: t.half() if t.is_floating_point() else t for k, t in s.items()}, "float16 become"),
    "float64": (lambda s, e: {k: t.double() for k, t in s.items()}, "float64 become float32"),
    "parameters": (lambda s, e: {k: nn.Parameter(t, requires_grad=False) for k, t in s.items()}, ""),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_people_save_comes_out_right_and_says_what_was_taken(
    form: str, state: State, average: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = FORMS[form]
    got = build(saved(tmp_path / "w.pth.tar", make(state, average)))
    exact = 0.01 if form == "float16" else 0
    for key, tensor in got.items():
        if form != "without counters" or "num_batches" not in key:
            torch.testing.assert_close(tensor, state[key], rtol=0, atol=exact)
    out = capsys.readouterr().out
    assert said in out
    assert out.count("\n") == bool(said)


@pytest.mark.parametrize("name", ["w.safetensors", "W.SAFETENSORS", "model.bin"])
def test_safetensors_are_known_by_their_content(name: str, state: State, tmp_path: Path) -> None:
    half = {key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    safetensors.torch.save_file(half, tmp_path / name, metadata={"format": "pt", "epoch": "3"})
    for key, tensor in build(tmp_path / name).items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=0.02)


def test_the_old_form_of_torch_save_is_read(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert all(torch.equal(tensor, state[key]) for key, tensor in build(tmp_path / "w.pth").items())


SMALL_VIT = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 1, "hidden_dim": 4, "mlp_dim": 4}
OLD_NAMES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "densenet121": (
        lambda: torchvision.models.densenet.DenseNet(growth_rate=2, block_config=(1, 1, 1, 1), num_init_features=4),
        {"norm1.": "norm.1.", "norm2.": "norm.2.", "conv1.": "conv.1.", "conv2.": "conv.2."},
    ),
    "vit_b_16": (
        lambda: torchvision.models.vision_transformer.VisionTransformer(**SMALL_VIT),
        {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."},
    ),
    "mnasnet0_5": (lambda: torchvision.models.mnasnet0_5(), {}),  # its own loader wants metadata
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_old_names_of_torchvisions_own_files_are_known_and_metadata_does_not_matter(name: str) -> None:
    make, names = OLD_NAMES[name]
    new = {key: tensor + 0.5 if tensor.is_floating_point() else tensor for key, tensor in make().state_dict().items()}
    old = {}
    for key, tensor in new.items():
        for part, before in names.items():
            key = key.replace(f".{part}", f".{before}") if "layer" in key else key
        old[key] = tensor
    assert (old.keys() != new.keys()) == bool(names)
    load_matching(model := make(), name, old, "w.pth")
    assert all(torch.equal(tensor, new[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({}, "the file has no head of this form, so the head starts at random"),
        ({"fc.weight": torch.ones(9, 1024), "fc.bias": torch.ones(9)}, "another number of classes and starts"),
        ({"fc.0.weight": torch.ones(9, 1024), "fc.2.bias": torch.ones(9)}, "left out: fc.0.weight, fc.2.bias"),
    ],
)  # fmt: skip
def test_without_a_head_that_fits_the_head_starts_at_random_and_it_is_said(
    head: State, said: str, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got = build(saved(tmp_path / "w.pth", {"state_dict": named("backbone.", body_of(state) | head)}))
    assert all(torch.equal(tensor, state[key]) for key, tensor in body_of(got).items())
    assert 0 < got["fc.weight"].std() < 0.1
    assert said in capsys.readouterr().out


def test_of_several_that_fit_none_is_taken_by_guess(state: State, average: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"student": state, "expert": average})
    with pytest.raises(UserError, match=r"several sets of weights that fit .*: the mapping 'student', the mapping"):
        build(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(
    value: float, state: State, tmp_path: Path
) -> None:
    bad = state["conv5.0.weight"].double()
    bad[0, 0] = value
    with pytest.raises(UserError, match=r"1 of the .* numbers of conv5\.0\.weight are not finite.*earlier checkpoint"):
        build(saved(tmp_path / "w.pth", {"model": state | {"conv5.0.weight": bad}}))
    head = state | {"fc.bias": torch.full((9,), value, dtype=torch.float64)}
    build(saved(tmp_path / "w.pth", head | {"fc.weight": torch.ones(9, 1024)}))  # a head that is not taken


@pytest.mark.parametrize("other", ["resnet34", "vgg13_bn", "mobilenet_v3_small"])
def test_what_does_not_fit_names_the_model_that_it_fits(other: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(other, num_classes=7).state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}  # in no memory
    with pytest.raises(UserError, match=rf"they fit {other}\b"):
        build(saved(tmp_path / "w.pth", {"state_dict": named("module.", state)}))


def test_what_fits_no_model_is_told_with_the_nearest_and_the_shapes(state: State, tmp_path: Path) -> None:
    gray = state | {"conv1.0.weight": state["conv1.0.weight"][:, :1].clone()}
    with pytest.raises(UserError) as caught:
        build(saved(tmp_path / "w.pth", gray))
    assert "conv1.0.weight: (24, 1, 3, 3) there, (24, 3, 3, 3) here" in str(caught.value)
    assert f"the nearest is {NAME}, with tensors that do not fit: 1" in str(caught.value)


def test_names_of_hugging_face_and_integers_are_refused_with_what_to_do(state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"named as in Hugging Face's transformers: timm's files"):
        build(saved(tmp_path / "w.pth", {"resnet.embedder.embedder.convolution.weight": torch.zeros(64, 3, 7, 7)}))
    quantised = state | {"conv5.0.weight": state["conv5.0.weight"].to(torch.int8)}
    with pytest.raises(UserError, match=r"conv5\.0\.weight: int8 there, not plain float32"):
        build(saved(tmp_path / "w.pth", quantised))


def zipped(name: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr(name, b"")
    return file.getvalue()


def tarred() -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("resnet50.pth"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty; download"),
        (b"\0" * 5000, "nothing but 5,000 zero bytes"),
        (b"\n<!DOCTYPE html><html>Sign in", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML, as a store answers with an error"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
        (b'{"metadata": {}, "weight_map": {"fc.weight": "a.safetensors"}}', "the index of weights in several files"),
        (b"Entry not found", "text that begins with 'Entry not found'"),
        (gzip.compress(b"weights", mtime=0), "compressed with gzip; unpack it"),
        (tarred(), "a tar archive; unpack it"),
        (zipped("resnet50.pth"), r"a zip archive without weights of PyTorch \(it has resnet50.pth\)"),
        (zipped("m/constants.pkl"), "a TorchScript archive; save torch.jit.load"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras"),
        (b"\x80\x04\x95 rubbish", "damaged"),
        (bytes(range(200)), "not what torch.save writes|damaged"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_weights_is_told_as_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.pth' is no state dict: it is .*({said})"):
        build(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "safetensors header"])
def test_a_download_that_was_cut_off_is_told_as_such(kind: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "w"
    if kind.startswith("safetensors"):
        path.write_bytes(safetensors.torch.save(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] if "header" in kind else whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match=r"it is (cut off|not what torch\.save writes).*download or copy it again"):
        build(path)


def test_a_whole_model_is_refused_with_the_way_to_its_weights(tmp_path: Path) -> None:
    model = build_model(ModelConfig(name=NAME, num_classes=2))
    with pytest.raises(UserError, match=r"it is a whole model, whose loading would run code.*found\.state_dict\(\)"):
        build(saved(tmp_path / "w.pth", model))
    content: dict[str, Any] = {"state_dict": model.state_dict(), "path": tmp_path}
    with pytest.raises(UserError, match=r"objects whose loading would run code \(pathlib\.PosixPath\)"):
        build(saved(tmp_path / "w.pth", content))


def test_an_address_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'https://host/resnet50\.pth' is an address: download the file"):
        build_model(ModelConfig(name=NAME, weights="https://host/resnet50.pth"))
