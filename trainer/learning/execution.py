"""How the two halves of a step are carried out: forward and backward of a micro-batch, and the update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trainer.learning.forward import Forward, Inputs
from trainer.learning.optimizer import set_lr
from trainer.learning.state import State
from trainer.learning.world import World, without_sync, wrap
from trainer.recipes.config import Config


@dataclass(kw_only=True)
class Execution:
    """Of one attempt."""

    state: State
    net: nn.Module  # `Forward` of the state's model: for several processes, or compiled
    accum: int  # micro-batches of a step

    @classmethod
    def of(cls, state: State, config: Config, world: World) -> Execution:
        net = wrap(Forward(state.model, config), world)
        return cls(state=state, net=net, accum=config.grad_accum_steps(world.size))

    def forward_backward(self, inputs: Inputs, *, is_last: bool) -> Tensor:
        """Add the gradients of a micro-batch; the last one of a step sends them to the other processes.

        Returns the sums of loss, top-1 hits, top-5 hits, and images: (4,) float32.
        """
        with without_sync(self.net, skip=not is_last):
            loss, sums = self.net(*inputs)
            self.state.scaler.scale(loss / self.accum).backward()
        found: Tensor = sums
        return found

    def update(self, lr: float) -> None:
        """One step of the optimizer with the gradients, which are gone after it."""
        set_lr(self.state.optimizer, lr)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.state.optimizer.zero_grad(set_to_none=True)
