"""A GPU that torch cannot use, one that cannot compute what is asked for, and one that is too small: each is told.

torch.cuda's answers are stand-ins, since no test may need a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.contract import MachineError, Phase, UserError
from trainer.data.augment.batch import normalisation
from trainer.learning.device import batch_that_fits, check_device, device_for, telling_what_fits
from trainer.learning.model import build_model
from trainer.learning.state import make_state
from trainer.process.counts import torch_environ
from trainer.recipes.config import Config, ModelConfig, OptimConfig, RegularizeConfig
from trainer.recipes.finetune import finetune

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BATCH = {"recipe": "x", "global_batch_size": 64, "device_batch_size": 64}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that nvidia-smi lists so many GPUs, and that torch can use so many, of this kind."""

    def pretend(
        listed: int, usable: int, name: str = "NVIDIA A10G", capability: tuple[int, int] = (8, 6), memory: float = 24e9
    ) -> None:
        monkeypatch.setenv("TRAINER_GPUS", str(listed))
        monkeypatch.setenv("PATH", "/nowhere")
        for function, answer in {
            "is_available": usable > 0, "device_count": usable, "get_device_name": name,
            "get_device_capability": capability, "get_arch_list": ["sm_75", "sm_80", "sm_90", "compute_90"],
            "mem_get_info": (1e9, memory),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, function, lambda *arguments, answer=answer: answer)

    return pretend


@pytest.mark.parametrize(("listed", "usable"), [(1, 0), (4, 3)])
def test_a_gpu_that_torch_cannot_use_stops_this_machine_and_not_the_run(
    gpus: Callable[..., None], listed: int, usable: int
) -> None:
    gpus(listed, usable)
    for config in (Config(), finetune()):
        with pytest.raises(MachineError, match=rf"{listed} GPU.*can use {usable}.*another machine.*--device cpu"):
            check_device(config, device_for(config, 0))
    check_device(Config(device="cpu"), device_for(Config(device="cpu"), 0))


def test_imagenet_is_not_trained_on_a_cpu_unless_that_is_asked_for(
    gpus: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(0, 0)
    assert device_for(finetune(), 0) == CPU
    with pytest.raises(UserError, match=r"'finetune' needs a GPU, and this machine has none.*--device cpu"):
        check_device(finetune(), CPU)
    check_device(Config(), CPU)
    (driver := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MachineError, match="nvidia-smi lists none"
    ):  # it has fallen off the bus: the run goes on elsewhere
        check_device(finetune(), CPU)


def test_a_cpu_that_is_asked_for_is_taken_and_counts_no_gpu(gpus: Callable[..., None], tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    gpus(1, 1)
    assert device_for(Config(), 0) == CUDA
    assert device_for(Config(device="cpu"), 0) == CPU
    (driver := tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A10G (UUID: GPU-1)'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert torch_environ(BATCH | {"device": "auto"})["TRAINER_GPUS"] == "1"
    assert torch_environ(BATCH | {"device": "cpu"})["TRAINER_GPUS"] == "0"


@pytest.mark.parametrize(
    ("name", "capability", "precision", "said"),
    [
        ("Tesla T4", (7, 5), "bf16", r"Tesla T4 cannot compute in bf16.*7\.5.*--precision fp16"),
        ("Tesla T4", (7, 5), "fp16", ""),
        ("Tesla V100", (7, 0), "fp16", r"Tesla V100 has compute capability 7\.0.*kernels from 7\.5 on"),
        ("NVIDIA A10G", (8, 6), "bf16", ""),
    ],
)
def test_a_card_that_cannot_compute_what_is_asked_for_is_refused(
    gpus: Callable[..., None], name: str, capability: tuple[int, int], precision: str, said: str
) -> None:
    gpus(1, 1, name, capability)
    config = Config(precision=precision)  # type: ignore[arg-type]
    if not said:
        check_device(config, CUDA)
        return
    with pytest.raises(UserError, match=said):
        check_device(config, CUDA)


def test_a_gpu_that_is_too_small_is_told_with_the_batch_that_fits(gpus: Callable[..., None]) -> None:
    gpus(1, 1)
    config = Config(global_batch_size=1024, device_batch_size=512)
    with pytest.raises(UserError, match=r"512 images of 224 px \(24\.0 GB.*--device-batch-size 256$"):  # noqa: SIM117
        with telling_what_fits(config, CUDA, lambda: (Phase.TRAINING, 224)):
            raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(UserError, match=r"--val-batch-size 128$"):  # noqa: SIM117
        with telling_what_fits(config, CUDA, lambda: (Phase.EVALUATING, 224)):
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("model", "precision", "pixels", "memory", "fits"),
    [
        ("resnet50", "bf16", 224, 24e9, 256),  # 11.66 GB at 256 and 22.9 GB at 512, counted over the graph
        ("resnet50", "bf16", 160, 24e9, 256),
        ("resnet50", "fp32", 224, 24e9, 128),
        ("resnet50", "bf16", 224, 4e9, 32),
        ("resnet152", "bf16", 224, 80e9, 256),  # nobody has counted it
        ("resnet50", "bf16", 224, 1e9, 1),
    ],
)
def test_the_batch_that_fits_divides_the_global_batch(
    model: str, precision: str, pixels: int, memory: float, fits: int
) -> None:
    config = Config(
        global_batch_size=512, device_batch_size=512, precision=precision,  # type: ignore[arg-type]
        model=ModelConfig(name=model),
    )  # fmt: skip
    assert batch_that_fits(config, 512, pixels, memory) == fits


@pytest.mark.parametrize(("name", "fits"), [("sgd", 256), ("adamw", 128), ("lamb", 128)])
def test_the_second_moment_takes_its_part_of_the_memory(name: Any, fits: int) -> None:
    config = Config(global_batch_size=512, device_batch_size=512, optim=OptimConfig(name=name))
    assert batch_that_fits(config, 512, 224, 13.3e9) == fits


def test_a_run_may_continue_in_another_precision_whose_scaler_has_no_state() -> None:
    small = Config(precision="fp16", model=ModelConfig(name="shufflenet_v2_x0_5", num_classes=4),
                   regularize=RegularizeConfig())  # fmt: skip
    state = make_state(small, CPU, initialise=False)
    counters = state.counters()
    state.load_counters(counters | {"scaler": {}})  # of bf16
    assert state.scaler.state_dict() == counters["scaler"]


def test_the_classifier_computes_in_fp32_so_that_classes_do_not_tie() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="resnet18", num_classes=1000))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model.eval()(torch.randn(4, 3, 64, 64))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert "fc.weight" in model.state_dict()


def test_mean_and_deviation_serve_training_also_where_a_validation_asked_first() -> None:
    with torch.inference_mode():
        mean, std = normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), CPU)
    assert not mean.is_inference()
    assert not std.is_inference()


@pytest.mark.parametrize("index", [0, 1])
def test_gpus_of_different_kinds_are_told_once_and_train(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], index: int
) -> None:
    gpus(3, 3)
    names = ["NVIDIA A10G", "NVIDIA L4", "NVIDIA A10G"]
    monkeypatch.setattr(
        torch.cuda, "get_device_name", lambda device: names[device if isinstance(device, int) else device.index]
    )
    check_device(Config(), torch.device("cuda", index), 3)
    said = capfd.readouterr().err
    assert ("different kinds (NVIDIA A10G, NVIDIA L4)" in said) == (index == 0)
    check_device(Config(), torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    check_device(Config(), torch.device("cuda", 0), 3)
    assert capfd.readouterr().err == ""
