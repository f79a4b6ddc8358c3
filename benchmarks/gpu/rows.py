"""Every row of the bench, in the order of its value: what is cut off by a limit is what matters least.

Plain data, without torch: the driver reads it, and a worker imports the functions that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Rows of one kind that follow each other share a process. A fault costs one row, and the process.
EAGER, COMPILED, WARM, DETERMINISTIC, RUNS = "eager", "compiled", "warm", "deterministic", "runs"
ENVIRON = {DETERMINISTIC: {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}}
PIXELS = 224


@dataclass(frozen=True)
class Row:
    """One measurement. `function` is a module of this package and a name in it; it gets a `Place` and the options."""

    name: str
    function: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    process: str = EAGER
    seconds: int = 60  # what it may take
    pixels: int = PIXELS
    needs: str = ""  # "cuda": cannot be tried on a CPU


def _rate(name: str, what: str, options: Mapping[str, Any], pixels: int = PIXELS) -> Row:
    return Row(name, "steps.rate", what, options, pixels=pixels)


def _compiled(name: str, what: str, options: Mapping[str, Any], pixels: int = PIXELS) -> Row:
    return Row(name, "steps.rate", what, {"compile": True, **options}, COMPILED, 150, pixels)


def _graph(name: str, what: str, options: Mapping[str, Any], pixels: int = PIXELS) -> Row:
    return Row(name, "steps.rate", what, {"cuda_graphs": True, **options}, COMPILED, 150, pixels, "cuda")


def _peer(name: str, what: str, options: Mapping[str, Any]) -> Row:
    return Row(name, "peers.plain", what, options)


FP16 = {"precision": "fp16"}
NHWC16 = {"precision": "fp16", "channels_last": True}

ROWS = (
    Row("run_digits", "runs.whole", "digits through the supervisor with --deterministic: does it run at all",
        process=RUNS, seconds=100),
    Row("run_interrupted", "runs.interrupted", "the same with a SIGTERM in an epoch, and resumed: the same bits?",
        process=RUNS, seconds=150),
    Row("machine", "machine.describe", "what torch chooses on this card"),
    Row("ceilings", "ceilings.measure", "bandwidth of copies, TFLOP/s of products, PCIe", needs="cuda"),
    _rate("ours_bf16", "the product's step as it is", {}),
    _rate("ours_fp16", "the same in fp16", FP16),
    _peer("peer_amp_nhwc_fp16", "plain loop, torchvision's net, fp16, channels last", NHWC16),
    Row("peer_ffcv", "peers.ffcv", "FFCV's loop: fp16, channels last, normalised on the GPU"),
    _peer("peer_timm", "plain loop, timm's net, bf16, channels last",
          {"precision": "bf16", "channels_last": True, "timm": True}),
    Row("waits", "waits.find", "hidden waits for the GPU in a step, with file and line"),
    Row("snapshot", "snapshots.disturbance", "what a save takes from the steps around it", seconds=75),
    Row("torn", "snapshots.torn", "saves whose bytes are not those of their step; a second Checkpointer", seconds=100),
    _compiled("compile_bf16", "--compile; its first step is cold unless kernels are there already", {}),
    _compiled("compile_fp16", "--compile in fp16", FP16),
    Row("peer_compile_nhwc_bf16", "peers.plain", "plain loop, torchvision's net compiled, bf16, channels last",
        {"precision": "bf16", "channels_last": True, "compiled": True}, COMPILED, 150),
    _graph("graph_bf16", "--cuda-graphs", {}),
    _graph("compile_graph_bf16", "--compile --cuda-graphs", {"compile": True}),
    _graph("compile_graph_fp16", "--compile --cuda-graphs in fp16", {"compile": True, **FP16}),
    _graph("compile_graph_stem", "the same in bf16 with the stem over blocks",
           {"compile": True, "model__blocked_stem": True}),
    _graph("compile_graph_bf16@112", "--compile --cuda-graphs", {"compile": True}, 112),
    _graph("graph_bf16@112", "--cuda-graphs", {}, 112),
    Row("norm_bf16", "steps.rate", "normalisation, ReLU and addition as one kernel", {"fused_norm": True}, COMPILED,
        needs="cuda"),
    _graph("graph_norm_stem_bf16", "--cuda-graphs --fused-norm --model.blocked-stem",
           {"fused_norm": True, "model__blocked_stem": True}),
    Row("norm_fp16", "steps.rate", "the same in fp16", {"fused_norm": True, **FP16}, COMPILED, needs="cuda"),
    Row("compile_warm", "steps.rate", "--compile again in a new process: its first step is warm", {"compile": True},
        WARM, 150),
    Row("loader", "loading.shares", "decoded images, as a share of random ones", seconds=75),
    Row("loader@112", "loading.shares", "decoded images, as a share of random ones", seconds=75, pixels=112),
    _rate("ours_bf16@112", "the product's step as it is", {}, 112),
    _rate("ours_bf16@160", "the product's step as it is", {}, 160),
    _rate("stem_bf16", "the first convolution as an exact one over blocks", {"model__blocked_stem": True}),
    Row("profile_bf16", "kernels.profile_step", "the kernels that take the most time"),
    Row("profile_fp16", "kernels.profile_step", "the same in fp16", FP16),
    Row("memory", "steps.memory", "peak memory by batch size; out of memory", seconds=75),
    Row("evaluation", "evaluation.rates", "images/s of a validation, without its loader"),
    _rate("policy", "TrivialAugment and erasing", {"regularize__augment": "trivial",
          "regularize__erasing_probability": 0.1}),
    _rate("rand", "RandAugment", {"regularize__augment": "rand"}),
    Row("mixing", "steps.several", "mixup and cutmix", {"variants": {
        "mixup": {"regularize__mixup_alpha": 0.2}, "cutmix": {"regularize__cutmix_alpha": 1.0}}}),
    Row("host", "steps.host", "4 images of 32 px: what the processor needs for a step"),
    Row("deterministic", "determinism.price", "--deterministic against the same without", process=DETERMINISTIC),
    Row("bitwise", "determinism.bitwise", "five steps twice: the same bits?", process=DETERMINISTIC, seconds=75),
    Row("run_photographs", "runs.photographs", "ResNet-50 at 224 px from photographs through the supervisor",
        process=RUNS, seconds=90),
    Row("profile_compiled", "kernels.profile_step", "the kernels of a step with --compile", {"compile": True},
        COMPILED, 150),
    Row("evaluation_compiled", "evaluation.rates", "a validation, compiled", {"compiled": True}, COMPILED, 150),
    Row("resolutions_static", "steps.resolutions", "a compiled step over several resolutions, a graph for each",
        {"dynamic": False}, COMPILED, 240),
    Row("resolutions_dynamic", "steps.resolutions", "the same as torch chooses: symbolic sizes", {"dynamic": None},
        COMPILED, 240),
    Row("reference_amp_nhwc", "peers.reference", "torchvision's loop with --amp, channels last",
        {"amp": True, "channels_last": True}),
    _peer("peer_amp_nhwc_bf16", "plain loop in bf16, channels last", {"precision": "bf16", "channels_last": True}),
    _peer("peer_amp_nchw_fp16", "plain loop in fp16, channels first", {"precision": "fp16", "channels_last": False}),
    Row("reference_amp_nchw", "peers.reference", "torchvision's loop with --amp",
        {"amp": True, "channels_last": False}),
    Row("reference_fp32_nhwc", "peers.reference", "torchvision's loop in fp32, channels last",
        {"amp": False, "channels_last": True}),
    Row("reference_fp32_nchw", "peers.reference", "torchvision's loop in fp32",
        {"amp": False, "channels_last": False}),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
EAGER_PEERS = tuple(row.name for row in ROWS if row.function.startswith("peers.") and row.process == EAGER)
EAGER_OURS = ("ours_bf16", "ours_fp16", "stem_bf16")  # at 224 px, without --compile, --cuda-graphs and --fused-norm


def chosen(only: str) -> list[Row]:
    """The rows of `a,b` in the order of their value; all for "". Raises ValueError for a name that is none."""
    names = [name for name in only.split(",") if name]
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(f"--only {','.join(unknown)}: no row has this name; --list shows them all")
    return [row for row in ROWS if not names or row.name in names]
