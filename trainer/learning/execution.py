"""How the two halves of a step are carried out: forward and backward of a micro-batch, and the update.

Eager, compiled and captured in CUDA graphs are the same lines. At the first micro-batch of each resolution `make_ready`
compiles and captures them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.contract import UserError
from trainer.learning.forward import Forward, Inputs
from trainer.learning.graphs import Graph, check_graphs, hold_gradients, warm_up
from trainer.learning.optimizer import clip_gradients, hold_lr, set_lr
from trainer.learning.state import State
from trainer.learning.world import World, any_of, without_sync, wrap
from trainer.recipes.config import Config


@dataclass(kw_only=True)
class Execution:
    """Of one attempt."""

    config: Config
    state: State
    world: World
    eager: nn.Module  # `Forward` of the state's model, for several processes where there are
    net: nn.Module  # the same, or what torch.compile makes of it
    say: Callable[[str], None]
    ready_for: torch.Size | None = None  # the shape of images for which all is compiled and captured
    forward_graph: Graph | None = None
    update_graph: Graph | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        state: State,
        world: World,
        say: Callable[[str], None],
        class_weights: Tensor | None = None,
    ) -> Execution:
        """`say` prints a line for the user, `class_weights` are `Forward`'s.

        Raises UserError where --cuda-graphs cannot work.
        """
        check_graphs(config, state, world)
        forward = Forward(state.model, config, world.device, class_weights)
        eager = wrap(forward, world, bf16_gradients=config.bf16_gradients)
        net = eager
        if config.compile:  # one graph for each resolution: one for all of them is slower, and for good
            torch._dynamo.config.recompile_limit = len(config.resolutions()) + 2
            net = torch.compile(eager, dynamic=False)  # type: ignore[assignment]
        return cls(config=config, state=state, world=world, eager=eager, net=net, say=say)

    def forward_backward(self, inputs: Inputs, *, is_last: bool) -> Tensor:
        """Add the gradients of a micro-batch; the last one of a step sends them to the other processes.

        Returns the sums of loss, top-1 hits, top-5 hits, and images: (4,) float32, valid until the next call.
        """
        if inputs.images.shape != self.ready_for:
            self.make_ready(inputs)
        if self.forward_graph is not None:
            captured: Tensor = self.forward_graph(*inputs)
            return captured
        return self._forward_backward(*inputs, is_last=is_last)

    def update(self, lr: float) -> None:
        """One step of the optimizer with the gradients, which are gone after it."""
        set_lr(self.state.optimizer, lr)
        if self.update_graph is not None:
            self.update_graph()
        else:
            self._update()

    def make_ready(self, inputs: Inputs) -> None:
        """Compile and capture for images of this shape, before a step begins: nothing of the state changes.

        Raises UserError where compiling fails and --compile-strict asks for a stop.
        """
        is_first, self.ready_for = self.ready_for is None, inputs.images.shape
        if self.net is not self.eager:
            self._compile(inputs)
        if is_first and self.world.size > 1:
            self._settle_buckets(inputs)
        if self.config.cuda_graphs:
            self._capture(inputs)

    def _compile(self, inputs: Inputs) -> None:
        pixels, began, failure = inputs.images.shape[2], time.monotonic(), ""
        try:
            with self._leaving_no_trace(self.state.model.buffers()):
                self._forward_backward(*inputs, is_last=False)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # of the GPU, not of the compiler
            raise
        except Exception as error:  # noqa: BLE001  # a compiler may raise whatever it likes; an eager step shows the rest
            failure = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]
        if not any_of(bool(failure), self.world):
            self.say(f"kernels for {pixels} px are compiled ({time.monotonic() - began:.0f} s)")
            return
        failure = failure or "another process failed"
        if self.config.compile_strict:
            raise UserError(
                f"--compile-strict: the kernels for {pixels} px cannot be compiled ({failure}): leave --compile-strict "
                "out, and the run goes on uncompiled"
            )
        self.say(f"the kernels for {pixels} px cannot be compiled ({failure}): this attempt goes on uncompiled, slower")
        self.net = self.eager

    def _settle_buckets(self, inputs: Inputs) -> None:
        """Exchange gradients once, before they count.

        DistributedDataParallel orders its buckets anew after its first exchange, and with them the additions in a sum
        over three or more processes. An attempt that continues must add up as one that was not interrupted.
        """
        with self._leaving_no_trace(self.state.model.buffers()):
            self._forward_backward(*inputs, is_last=True)

    def _capture(self, inputs: Inputs) -> None:
        self.forward_graph = None  # its memory is free for the next one
        if self.update_graph is None:
            hold_gradients(self.state)
            hold_lr(self.state.optimizer)
        with self._leaving_no_trace(self.state.tensors().values()):
            warm_up(lambda: self._forward_backward(*inputs, is_last=True))
            if self.update_graph is None:
                warm_up(self._update)
        self.forward_graph = Graph(lambda *static: self._forward_backward(*static, is_last=True), inputs)
        if self.update_graph is None:
            self.update_graph = Graph(self._update)

    def _forward_backward(
        self, images: Tensor, flips: Tensor, labels: Tensor, targets: Tensor, *, is_last: bool
    ) -> Tensor:
        with without_sync(self.net, skip=not is_last):
            loss, sums = self.net(images, flips, labels, targets)
            # The mean over processes of what each adds up is then the mean over micro-batches, also where one has more.
            share = self.config.micro_batches / self.world.size
            self.state.scaler.scale(loss / share).backward()
        found: Tensor = sums
        return found

    def _update(self) -> None:
        if longest := self.config.optim.clip_norm:
            clip_gradients(self.state.optimizer, self.state.scaler, longest)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        """Gradients of a graph stay where they are, and become zeros."""
        self.state.optimizer.zero_grad(set_to_none=not self.config.cuda_graphs)

    @contextmanager
    def _leaving_no_trace(self, changed: Iterable[Tensor]) -> Iterator[None]:
        """For practice: what is `changed`, the loss scale and random numbers are put back, and gradients cleared."""
        tensors = list(changed)
        before, scaler, device = (
            [tensor.clone() for tensor in tensors],
            self.state.scaler.state_dict(),
            self.world.device,
        )
        try:
            with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
                yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
            if scaler:
                self.state.scaler.load_state_dict(scaler)
            self._clear_gradients()
