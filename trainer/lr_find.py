"""The command that tries learning rates: `python -m trainer.lr_find digits`, or `make lr-find RECIPE=digits`.

Smith's range test (arXiv:1506.01186): the rate rises from step to step, and the loss shows which rates train. It trains
with the run's own parts, from the run's own start. No run and no checkpoint is made.
"""

from __future__ import annotations

import os
import sys

from trainer.recipes.command_line import command_line_or_exit
from trainer.text import forgive_output

if __name__ == "__main__":  # before torch is imported, so that help and usage errors answer at once
    forgive_output()
    CONFIG = command_line_or_exit("python -m trainer.lr_find")

import json
import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.contract import Exit, MachineError, RunEnv, UserError
from trainer.learning.device import check_device, telling_what_fits
from trainer.learning.execution import Execution
from trainer.learning.schedule import Clock, Settings
from trainer.learning.state import make_state
from trainer.learning.step import train_step
from trainer.learning.world import World, join
from trainer.process.interruption import Interrupted, Interruption
from trainer.process.scratch import open_scratch
from trainer.recipes.config import Config
from trainer.recipes.fields import to_json
from trainer.setup import class_weights, find_mistakes, open_loader, resolved, set_backends, stage_data
from trainer.store import StoreError
from trainer.telemetry.status import Status
from trainer.text import say, tell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 200
LOWEST_RATE, HIGHEST_RATE = 1e-6, 10.0  # below them nothing moves, above them nothing learns
WIDTH_DECADES = 0.15  # of the bell that smooths the losses, over the logarithm of the rate
RULE = "up to this rate the smoothed loss falls, and beyond it rises: Smith's upper bound, so take it for a peak"
DIVERGED = 4.0  # times the lowest recent loss, and above the first: more steps would show nothing
RECENT_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What came out: one loss for each rate that was tried."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # of the training batch, finite
    ended: str = "all rates were tried"

    def smoothed(self) -> list[float]:
        """Each loss as the mean of its neighbours, weighted by a bell over the logarithm of the rate."""
        places = [math.log10(rate) for rate in self.rates]
        return [self._around(place, places) for place in places]

    def _around(self, place: float, places: Sequence[float]) -> float:
        weights = [math.exp(-0.5 * ((other - place) / WIDTH_DECADES) ** 2) for other in places]
        return sum(weight * loss for weight, loss in zip(weights, self.losses, strict=True)) / sum(weights)

    def suggestion(self) -> tuple[float | None, str]:
        """The learning rate by RULE, with two digits, and why; None where the losses do not show one."""
        smooth = self.smoothed()
        if len(smooth) < RECENT_STEPS:
            return None, f"{len(smooth)} steps are too few to show anything"
        turn = min(range(len(smooth)), key=smooth.__getitem__)
        noise = statistics.stdev(self.losses[:RECENT_STEPS])
        if smooth[0] - smooth[turn] <= noise:
            return None, "no rate lowers the loss by more than the first batches differ: the batches may be too small"
        if self.rates[turn] * 10**WIDTH_DECADES > self.rates[-1]:
            return None, f"the loss still falls at {self.rates[-1]:.2g}, so its turn is not seen"
        return float(f"{self.rates[turn]:.1e}"), RULE


def rates_of(steps: int) -> tuple[float, ...]:
    """Learning rates from the lowest to the highest; each is the one before times the same factor."""
    return tuple(LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (i / (steps - 1)) for i in range(steps))


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the recent losses say that larger rates show nothing new. The last one may be NaN or infinite."""
    if not math.isfinite(losses[-1]):
        return True
    means = [statistics.fmean(losses[i : i + RECENT_STEPS]) for i in range(len(losses) - RECENT_STEPS + 1)]
    return bool(means) and means[-1] > max(DIVERGED * min(means), losses[0])


def try_rates(
    config: Config, env: RunEnv, world: World, interruption: Interruption, steps: int = STEPS
) -> tuple[Config, RangeTest]:
    """Train so many steps, each with a larger learning rate, until the loss diverges or a signal ends it.

    Images have the size that the run begins with. Returns the config as it was trained. Raises Interrupted where
    nothing was tried yet, UserError, StoreError, MachineError.
    """
    if world.size > 1:
        raise UserError(
            f"lr_find takes one process, and here are {world.size}: start it as `python -m trainer.lr_find`, or with "
            "`make lr-find`"
        )
    check_device(config, world.device, world.size)
    losses: list[float] = []
    with ExitStack() as resources:
        with interruption.raises():
            set_backends(config)
            waits = partial(tell, file=sys.stderr)
            find_mistakes(config, env, waits, is_new=True)
            data = stage_data(config, env, world, Status(Path(), writes=False), waits)
            config = resolved(config, data.index)
            images = data.index.splits["train"].images
            epochs = max(config.epochs, -(-steps // Clock.of(config, images).steps_per_epoch))
            pixels = config.resolution_at(0)
            config = replace(
                config, epochs=epochs, data=replace(config.data, resolution=pixels, start_resolution=pixels)
            )
            clock = Clock.of(config, images)
            state = make_state(config, world.device, initialise=True)
            execution = Execution.of(config, state, world, say, class_weights(config, data))
            batches = iter(resources.enter_context(open_loader(config, data, clock, world, range(clock.total_steps))))
        resources.enter_context(telling_what_fits(config, world.device, lambda: ("training", pixels)))
        for step, rate in enumerate(rates := rates_of(steps)):
            settings = Settings(epoch=step / clock.steps_per_epoch, lr=rate, resolution=pixels)
            loss, _, _, count = train_step(state, execution, batches, config, settings, world).tolist()
            losses.append(loss / count)
            if step % config.log_every_steps == 0:
                say(f"step {step + 1}/{steps}  learning rate {rate:.1e}  loss {losses[-1]:.3f}")
            if has_diverged(losses):
                return config, _found(rates, losses, f"the loss diverged at {rate:.2g}")
            if interruption.requested:
                return config, _found(rates, losses, f"stopped at {rate:.2g}")
    return config, _found(rates, losses)


def _found(rates: Sequence[float], losses: Sequence[float], ended: str = RangeTest.ended) -> RangeTest:
    tried = [(rate, loss) for rate, loss in zip(rates, losses, strict=False) if math.isfinite(loss)]
    return RangeTest(rates=tuple(r for r, _ in tried), losses=tuple(v for _, v in tried), ended=ended)


def draw_rates(found: RangeTest, rate: float | None, title: str, path: Path) -> None:
    """The losses over the learning rate, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis: Axes = figure.subplots()
    axis.plot(found.rates, found.losses, color="0.75", linewidth=1, label="loss")
    axis.plot(found.rates, found.smoothed(), linewidth=2, label="smoothed")
    if rate is not None:
        axis.axvline(rate, color="tab:red", linestyle="--", label=f"suggestion {rate:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    if found.losses:  # what diverges may leave the picture
        low, high = min(found.losses), max(found.losses[: max(RECENT_STEPS, len(found.losses) // 2)])
        axis.set_ylim(low - 0.05 * (high - low or 1), high + 0.3 * (high - low or 1))
    axis.legend()
    figure.savefig(path, dpi=150)


def write_found(config: Config, found: RangeTest, folder: Path) -> str:
    """Plot and figures into the folder. Returns what to tell the user."""
    folder.mkdir(parents=True, exist_ok=True)
    rate, why = found.suggestion()
    plot, figures = folder / f"{config.recipe}.png", folder / f"{config.recipe}.json"
    draw_rates(found, rate, f"{config.recipe}: {config.optim.name}, {config.global_batch_size} images a step", plot)
    body = asdict(found) | {"smoothed": found.smoothed(), "suggestion": rate, "why": why, "config": to_json(config)}
    figures.write_text(json.dumps(body, indent=1) + "\n")
    advice = f"suggestion: --optim.peak-lr {rate:.2g}\nbecause: {why}" if rate else f"no suggestion: {why}"
    return f"{found.ended}\n{advice}\nplot: {plot}\nfigures: {figures}"


def find_rate(config: Config, env: RunEnv, world: World, interruption: Interruption, steps: int = STEPS) -> int:
    """The whole command; returns its exit code."""
    scratch = open_scratch(env.scratch_dir)
    trained, found = try_rates(config, env, world, interruption, steps)
    tell(write_found(trained, found, scratch / "lr-find"))
    return Exit.FINISHED


def main(config: Config) -> int:
    try:
        env, interruption = RunEnv.from_environ(os.environ), Interruption()
        with join(config) as world:
            return find_rate(config, env, world, interruption)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except Interrupted:
        say("stopped before the first step: there is nothing to show")
        return Exit.INTERRUPTED
    except (StoreError, MachineError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main(CONFIG))
