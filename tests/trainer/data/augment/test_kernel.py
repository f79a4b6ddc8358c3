"""The fused kernel of preprocessing: on a CPU through Triton's interpreter, and as code for GPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from trainer.data.augment import batch
from trainer.data.augment.batch import fused_kernel, normalisation, to_input
from trainer.recipes.config import DataConfig

DATA = DataConfig()
GPUS = [80, 90]  # compute capabilities: A100; H100, H200


def fresh_kernel() -> ModuleType:
    """The module once more: whether a kernel is interpreted is decided where it is defined."""
    spec = importlib.util.spec_from_file_location("fresh_kernel", Path(batch.__file__).with_name("kernel.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpreted(images: Tensor, flips: Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        found: Tensor = fresh_kernel().flip_and_normalise(
            images, flips, *normalisation(DATA.mean, DATA.std, images.device), dtype
        )
    return found


@pytest.mark.parametrize("size", [(6, 8), (3, 7), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_gives_the_bits_of_torchs_lines(
    size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    flips = torch.tensor([True, False, True])
    found = interpreted(images, flips, dtype, monkeypatch)
    assert torch.equal(found, to_input(images, flips, DATA, dtype=dtype))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_every_value_of_every_channel_is_right_and_bf16_is_that_value_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, 256, 1, 3)
    flips = torch.tensor([False])
    wanted = to_input(images, flips, DATA)
    assert torch.equal(interpreted(images, flips, torch.float32, monkeypatch), wanted)
    # The interpreter cuts what bf16 has no bits for; a GPU rounds, as the instructions below say.
    cut = (wanted.view(torch.int32) & ~0xFFFF).view(torch.float32)
    assert torch.equal(interpreted(images, flips, torch.bfloat16, monkeypatch).float(), cut)


@pytest.mark.parametrize("capability", GPUS)
def test_on_a_gpu_division_and_bf16_are_rounded_to_nearest(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"images": "*u8", "flips": "*u8", "mean": "*fp32", "std": "*fp32", "result": "*bf16"}
    source = ASTSource(
        fn=fresh_kernel().normalise_row, constexprs={"block": 1024},
        signature=pointers | {"height": "i32", "width": "i32", "block": "constexpr"},
    )  # fmt: skip
    target = GPUTarget("cuda", capability, 32)
    code = compile_kernel(source, target=target, options={"enable_fp_fusion": False}).asm["ptx"]
    assert "div.rn.f32" in code
    assert "div.full" not in code
    assert "div.approx" not in code
    assert "cvt.rn.bf16" in code


def test_a_kernel_that_does_not_work_is_told_and_torchs_lines_do_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fused_kernel.cache_clear()
    assert fused_kernel() is None  # there is no GPU, and nothing to tell
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fused_kernel.__wrapped__() is None  # the GPU is not there after all
    assert "images are normalised by torch, in six kernels instead of one: Triton does not work" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_in_half_precision_are_those_of_float32_rounded(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8)[None, :, None, None].expand(1, 256, 1, 3)
    flips = torch.tensor([True])
    assert torch.equal(to_input(images, flips, DATA, dtype=dtype), to_input(images, flips, DATA).to(dtype))
