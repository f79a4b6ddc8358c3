"""`--fused-norm`: what its kernels compute (in Triton's interpreter), that they compile for GPUs, what is refused."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests import PATIENCE, ROOT
from trainer.contract import UserError
from trainer.learning.batch_counts import take_over_counts
from trainer.learning.device import check_device
from trainer.learning.fused_norm import fuse_norms
from trainer.learning.state import make_state
from trainer.recipes.config import Config, ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.slow
def test_the_kernels_compute_what_torch_does_in_float64() -> None:
    """The cases are in interpreted_norm.py. The interpreter has to be asked for before Triton is imported."""
    environ = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    file = Path(__file__).with_name("interpreted_norm.py")
    ran = subprocess.run(
        [*command, str(file)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=10 * PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 30


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_names_and_tensors_of_a_fused_model_stay(name: str) -> None:
    with torch.device("meta"):
        plain = torchvision.models.get_model(name)
    model = copy.deepcopy(plain)
    counts = take_over_counts(model)
    fuse_norms(model)
    assert [*model.state_dict()] == [*plain.state_dict()]
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]
    assert len(counts) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds >= {"NormReLU", "Norm", "Identity"}
    assert not kinds & {"BatchNorm2d", "UncountedBatchNorm"}


def test_the_state_of_a_run_has_them() -> None:
    state = make_state(Config(fused_norm=True, model=ModelConfig(name="resnet18"), device="cpu"), CPU, initialise=True)
    assert type(state.model.bn1).__name__ == "NormReLU"
    plain = make_state(Config(model=ModelConfig(name="resnet18"), device="cpu"), CPU, initialise=True)
    assert all(torch.equal(plain.tensors()[name], tensor) for name, tensor in state.tensors().items())


def test_another_network_is_no_resnet() -> None:
    with torch.device("meta"), pytest.raises(TypeError, match="SqueezeNet is no ResNet"):
        fuse_norms(torchvision.models.get_model("squeezenet1_0"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compile": True}, "--fused-norm is True: it must be off with --compile, which fuses these layers itself"),
        ({"channels_last": False}, "--fused-norm is True: it must be off with --no-channels-last"),
        ({"model": ModelConfig(name="vgg11")}, "--fused-norm is True: it must be off with --model.name vgg11"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, reason: str) -> None:
    Config(fused_norm=True).validate()
    Config(**options).validate()
    with pytest.raises(UserError, match=re.escape(reason)):
        Config(fused_norm=True, **options).validate()


def test_a_machine_that_cannot_run_the_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(fused_norm=True, device="cpu")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="--fused-norm needs a GPU, and this run is on the cpu: leave it out"):
        check_device(config, CPU)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="needs a C compiler, and this machine has none: install gcc"):
        check_device(config, CUDA)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check_device(config, CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Triton, and this environment lacks it: install triton"):
        check_device(config, CUDA)


TILE = {"tile_rows": 32, "tile_channels": 64}
ACTIVATIONS = {"x_ptr", "residual_ptr", "y_ptr", "dy_ptr", "g_ptr", "dx_ptr"}
KERNELS = [
    ("statistics_kernel", TILE),
    ("combine_kernel", {"tile_rows": 128, "tile_channels": 8}),
    *(("normalise_kernel", TILE | {"add": add, "relu": relu}) for add, relu in ((0, 0), (0, 1), (1, 1))),
    *(("gradient_sums_kernel", TILE | {"add": add, "relu": relu}) for add, relu in ((0, 0), (0, 1), (1, 1))),
    *(("input_gradient_kernel", TILE | {"mask": mask, "training": 1}) for mask in (0, 1)),
    *(("input_gradient_kernel", TILE | {"mask": mask, "training": 0}) for mask in (0, 1)),
]


@pytest.mark.parametrize(("name", "constants"), KERNELS, ids=lambda value: "" if isinstance(value, dict) else value)
def test_each_kernel_compiles_for_a_hopper(
    name: str, constants: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine code reads 16 bytes at once, rounds to nearest, and has no atomics."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.learning.kernels import norm_passes

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(norm_passes, name)
    types = {
        one: "constexpr" if one in constants else "*bf16" if one in ACTIVATIONS else "*fp32" if one.endswith("_ptr")
        else "fp32" if one in ("momentum", "eps") else "i32"
        for one in kernel.arg_names
    }  # fmt: skip
    aligned = [
        i for i, one in enumerate(kernel.arg_names) if types[one][0] == "*" or one in ("channels", "stripe_rows")
    ]
    source = ASTSource(
        fn=kernel, signature=types,
        constexprs={(kernel.arg_names.index(one),): value for one, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )  # fmt: skip
    built = build(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "enable_fp_fusion": True})
    ptx = built.asm["ptx"]
    assert "ld.global.v4" in ptx
    assert "atom" not in ptx
    assert "red.global" not in ptx
    if {"y_ptr", "dx_ptr"} & set(kernel.arg_names) and "partial_ptr" not in kernel.arg_names:
        assert "st.global.v4" in ptx
        assert "cvt.rn.bf16x2.f32" in ptx
