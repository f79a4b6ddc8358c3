"""The kernels of `trainer.learning.kernels`: what they compute, in Triton's interpreter, and their code for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import PATIENCE, ROOT


@pytest.mark.slow
def test_the_kernels_compute_what_torch_does_in_float64() -> None:
    """The cases are in these files. The interpreter has to be asked for before Triton is imported."""
    environ = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    files = [str(Path(__file__).with_name(f"interpreted_{kernel}.py")) for kernel in ("norm", "convolution")]
    ran = subprocess.run(
        [*command, *files], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=10 * PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 60


TILE = {"tile_rows": 32, "tile_channels": 64}
PRODUCT = {"tile_rows": 128, "tile_channels": 64, "tile_outputs": 128}
ACTIVATIONS = {"x_ptr", "residual_ptr", "y_ptr", "dy_ptr", "g_ptr", "dx_ptr"}
ALIGNED = {"channels", "outputs", "stripe_rows"}
KERNELS = [
    *(("pointwise_kernel", PRODUCT | {"prologue": prologue}) for prologue in (0, 1)),
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
    """The code reads 16 bytes at once, or feeds the tensor cores; it rounds to nearest, and has no atomics."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.learning.kernels import convolution_passes, norm_passes

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    is_product = name == "pointwise_kernel"
    kernel = getattr(convolution_passes if is_product else norm_passes, name)
    halves = ACTIVATIONS | ({"weight_ptr"} if is_product else set())
    types = dict.fromkeys(kernel.arg_names, "i32") | {"momentum": "fp32", "eps": "fp32"}
    types |= {one: "*bf16" if one in halves else "*fp32" for one in kernel.arg_names if one.endswith("_ptr")}
    types = {one: "constexpr" if one in constants else types[one] for one in kernel.arg_names}
    aligned = [i for i, one in enumerate(kernel.arg_names) if types[one][0] == "*" or one in ALIGNED]
    source = ASTSource(
        fn=kernel, signature=types,
        constexprs={(kernel.arg_names.index(one),): value for one, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )  # fmt: skip
    built = build(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 8 if is_product else 4, "enable_fp_fusion": True},
    )
    ptx = built.asm["ptx"]
    assert "wgmma.mma_async" in ptx if is_product else "ld.global.v4" in ptx
    assert not re.search(r"\b(atom|red)\.", ptx)
    if is_product or name in ("normalise_kernel", "input_gradient_kernel"):
        assert "st.global.v4" in ptx
        assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", ptx)
