"""Compiled and captured steps: the same lines, the same numbers, and a loud way back where they fail.

No test has a GPU: a stand-in replays a capture by doing the work again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.data.reading.loader import Batch
from trainer.learning import execution as module
from trainer.learning import graphs
from trainer.learning.execution import Execution
from trainer.learning.graphs import check_graphs
from trainer.learning.schedule import Settings
from trainer.learning.state import State, make_state
from trainer.learning.step import train_step
from trainer.learning.world import World
from trainer.recipes.config import Config, ModelConfig, OptimConfig, RegularizeConfig

CPU = World(0, 0, 1, torch.device("cpu"))
CONFIG = Config(
    global_batch_size=8, device_batch_size=4, precision="fp32", model=ModelConfig(name="small", num_classes=4),
    optim=OptimConfig(peak_lr=0.1), regularize=RegularizeConfig(ema_decay=0.9),
)  # fmt: skip


class Small(nn.Sequential):
    """A network that compiles in an instant. It has dropout, so that a step that is repeated for practice shows."""

    def __init__(self) -> None:
        layers = OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, 2, bias=False), bn1=nn.BatchNorm2d(8), relu=nn.ReLU(), drop=nn.Dropout(0.5),
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(8, 4),
        )  # fmt: skip
        super().__init__(layers)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr("trainer.learning.state.build_model", lambda config, initialise: Small())


class Lab:
    """Steps of one state in one way, with what was said."""

    def __init__(self, config: Config, world: World = CPU):
        self.config, self.world, self.said = config, world, list[str]()
        self.state = make_state(config, torch.device("cpu"), initialise=True)
        self.execution = Execution.of(config, self.state, world, self.said.append)

    def step(self, pixels: int, lr: float = 0.125) -> Tensor:
        step, config = self.state.step, self.config
        return train_step(
            self.state, self.execution, self.batches(pixels, step), config, Settings(0, lr, pixels, 0.9), self.world
        )

    def batches(self, pixels: int, step: int) -> Iterator[Batch]:
        rng = np.random.default_rng(step)
        while True:
            images, labels = rng.integers(0, 256, (4, pixels, pixels, 3), dtype=np.uint8), rng.integers(0, 4, 4)
            flips = torch.from_numpy(rng.random(4) < 0.5)
            yield Batch(torch.from_numpy(images), torch.from_numpy(labels), flips, np.empty((4, 0)))

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state.tensors().items()}


def trained(config: Config, *pixels: int) -> tuple[Lab, list[list[float]]]:
    lab = Lab(config)
    return lab, [lab.step(side).tolist() for side in pixels]


def assert_same(ours: Lab, theirs: Lab) -> None:
    expected = theirs.tensors()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., nn.Module]], None]:
    """Put another compiler in the place of torch's."""
    return lambda compile: monkeypatch.setattr(torch, "compile", compile)


class Failing(nn.Module):
    """Compiles as a machine without a compiler does: the forward pass runs, and then there is an error."""

    def __init__(self, net: nn.Module, error: Exception):
        super().__init__()
        self.net, self.error = net, error

    def forward(self, *inputs: Tensor) -> Tensor:
        self.net(*inputs)
        raise self.error


def test_the_first_compiled_step_of_each_resolution_leaves_no_trace_of_its_practice(
    compiler: Callable[..., None],
) -> None:
    compiler(lambda net, dynamic: nn.Sequential() if dynamic else Same(net))
    theirs, expected = trained(CONFIG, 32, 32, 48, 32)
    ours, found = trained(replace(CONFIG, compile=True), 32, 32, 48, 32)
    assert found == expected
    assert_same(ours, theirs)
    assert [line.partition(" (")[0] for line in ours.said] == [
        f"kernels for {side} px are compiled" for side in (32, 48, 32)
    ]


class Same(nn.Module):
    """What a compiler makes that changes nothing."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Any:
        return self.net(*inputs)


def test_a_compiler_that_fails_is_told_and_the_attempt_goes_on_with_the_same_numbers(
    compiler: Callable[..., None],
) -> None:
    compiler(lambda net, dynamic: Failing(net, RuntimeError("no Triton here\nand a long trace")))
    theirs, expected = trained(CONFIG, 32, 48)
    ours, found = trained(replace(CONFIG, compile=True), 32, 48)
    assert found == expected
    assert_same(ours, theirs)
    failed = "the kernels for 32 px cannot be compiled (RuntimeError: no Triton here)"
    assert ours.said == [f"{failed}: this attempt goes on uncompiled, slower"]


def test_compile_strict_stops_instead(compiler: Callable[..., None]) -> None:
    compiler(lambda net, dynamic: Failing(net, RuntimeError("")))
    with pytest.raises(UserError, match=r"32 px cannot be compiled \(RuntimeError: no reason given\): leave"):
        trained(replace(CONFIG, compile=True, compile_strict=True), 32)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_the_gpu_says_is_no_failure_of_the_compiler(compiler: Callable[..., None], kind: type[Exception]) -> None:
    compiler(lambda net, dynamic: Failing(net, kind("CUDA error")))
    with pytest.raises(kind):
        trained(replace(CONFIG, compile=True, compile_strict=True), 32)


def test_all_processes_go_on_uncompiled_where_the_compiler_of_one_fails(
    compiler: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(lambda net, dynamic: Same(net))
    monkeypatch.setattr(module, "any_of", lambda flag, world: True)
    ours, _ = trained(replace(CONFIG, compile=True), 32)
    assert ours.execution.net is ours.execution.eager
    assert "(another process failed)" in ours.said[0]


def test_each_resolution_has_one_graph_however_many_there_are(compiler: Callable[..., None]) -> None:
    """torch's own compiler up to the graphs, with more resolutions than its limit of eight, and no code generated."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiler(partial(torch.compile, backend="eager"))
    sides = range(32, 32 + 10 * 4, 4)
    data = replace(CONFIG.data, start_resolution=32, resolution=68, resolution_multiple=4, ramp_end_epoch=9)
    config = replace(CONFIG, compile=True, compile_strict=True, epochs=10, data=data)
    assert config.resolutions() == set(sides)
    trained(config, *sides, *sides)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == len(sides)
    assert not counters["graph_break"]


class Replayed:
    """A CUDA graph's stand-in: it keeps its inputs and output in place, and each replay does the work again."""

    captures: list[Replayed]

    def __init__(self, work: Callable[..., Tensor | None], inputs: tuple[Tensor, ...] = ()):
        self.work, self.inputs, self.output = work, [tensor.clone() for tensor in inputs], torch.zeros(4)
        self.captures.append(self)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for into, new in zip(self.inputs, inputs, strict=True):
            into.copy_(new)
        found = self.work(*self.inputs)
        return self.output if found is None else self.output.copy_(found)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    Replayed.captures = []
    monkeypatch.setattr(module, "Graph", Replayed)
    monkeypatch.setattr(module, "check_graphs", lambda *arguments: None)
    monkeypatch.setattr(module, "warm_up", lambda work: [work() for _ in range(3)])
    return Replayed.captures


@pytest.mark.parametrize(
    ("precision", "optim"),
    [
        ("fp32", CONFIG.optim),
        ("fp16", CONFIG.optim),
        ("fp32", OptimConfig(name="lamb", peak_lr=0.25)),
        ("fp16", OptimConfig(name="adamw", peak_lr=0.25, clip_norm=0.5)),
        ("fp16", OptimConfig(peak_lr=0.25, decoupled_decay=True, head_lr_multiplier=4)),
    ],
)
def test_replayed_steps_are_those_of_the_eager_loop_with_one_capture_for_each_resolution(
    captures: list[Replayed], precision: Any, optim: OptimConfig
) -> None:
    config = replace(CONFIG, precision=precision, optim=optim)
    theirs, expected = trained(config, 32, 32, 48, 48, 32)
    ours, found = trained(replace(config, cuda_graphs=True), 32, 32, 48, 48, 32)
    assert found == expected
    assert_same(ours, theirs)  # 0.125 is the same in float32
    assert len(captures) == 4, "forward and backward of 32, the update, 48, and 32 again"
    assert id(ours.execution.update_graph) == id(captures[1])


def test_a_graph_reads_and_writes_the_same_addresses_at_each_step(captures: list[Replayed]) -> None:
    lab = Lab(replace(CONFIG, cuda_graphs=True))
    lab.step(32)
    held = [p.grad.data_ptr() for p in lab.state.model.parameters() if p.grad is not None]
    assert len(held) == len(list(lab.state.model.parameters()))
    rates = [group["lr"].data_ptr() for group in lab.state.optimizer.param_groups]
    lab.step(48, lr=0.5)
    assert [p.grad.data_ptr() for p in lab.state.model.parameters() if p.grad is not None] == held
    assert [group["lr"].data_ptr() for group in lab.state.optimizer.param_groups] == rates
    assert lab.state.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("world", "draws", "reason"),
    [
        (CPU, False, "it needs a GPU"),
        (World(0, 0, 2, torch.device("cuda", 0)), False, "it works for one process, and there are 2"),
        (World(0, 0, 1, torch.device("cuda", 0)), True, "small draws random numbers"),
    ],
)
def test_graphs_that_cannot_work_are_refused_with_the_reason(world: World, draws: bool, reason: str) -> None:
    config = replace(CONFIG, cuda_graphs=True)
    state: State = make_state(config, torch.device("cpu"), initialise=True)
    state.draws = draws
    with pytest.raises(UserError, match=rf"--cuda-graphs: {reason}.*--no-cuda-graphs"):
        Execution.of(config, state, world, print)
    check_graphs(CONFIG, state, world)


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_step_that_cannot_be_captured_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    @contextmanager
    def refusing(*arguments: Any, **options: Any) -> Iterator[None]:
        yield
        raise kind("operation not permitted when stream is capturing\nand advice")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refusing)
    monkeypatch.setattr(graphs, "capture_stream", object)
    expected = kind if kind is torch.OutOfMemoryError else UserError
    with pytest.raises(expected) as caught:
        graphs.Graph(lambda: None)
    if expected is UserError:
        assert "(operation not permitted when stream is capturing): pass --no-cuda-graphs" in str(caught.value)
