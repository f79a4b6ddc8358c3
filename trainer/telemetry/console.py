"""What a person and the uploader see of a running trainer, and what they may tell it: progress, phase, stop signals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from tqdm import tqdm

from trainer.text import show_lines, show_time_left, tell


class Console:
    """A live bar on a terminal; elsewhere one plain line per log event. Only the main process speaks.

    A terminal that was closed (OSError) is no reason to stop.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, *, speaks: bool):
        self.speaks, self.total, self.per_epoch = speaks, total_steps, steps_per_epoch
        self.live = speaks and sys.stderr.isatty()
        self.bar: tqdm[NoReturn] | None = None
        self.started, self.first_step, self.newest = 0.0, 0, 0

    def start(self, step: int) -> None:
        """The clock starts, and on a terminal the bar appears."""
        self.started, self.first_step, self.newest = time.monotonic(), step, step
        if self.live:
            self.bar = tqdm(
                total=self.total, initial=step, dynamic_ncols=True, leave=False, smoothing=0.1,
                bar_format="{desc} {percentage:3.0f} % |{bar}| step {n_fmt}/{total_fmt} [{elapsed}, ETA {remaining}{postfix}]",  # noqa: E501
            )  # fmt: skip

    def step(self, step: int) -> None:
        self.newest = step
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(step - self.bar.n)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Loss, top-1 and speed of the steps since the last log event. On a GPU they come one log event later."""
        epoch = step / self.per_epoch
        text = (
            f"loss {values['train/loss']:.3f}  top-1 {100 * values['train/top1']:.1f} %  "
            f"{values['speed/images_per_second']:,.0f} images/s"
        )
        if self.bar is not None:
            self.bar.set_description_str(f"epoch {epoch:.1f}", refresh=False)
            self.bar.set_postfix_str(text, refresh=False)
        else:
            newest = max(step, self.newest)
            left = (time.monotonic() - self.started) / max(1, newest - self.first_step) * (self.total - newest)
            self.say(f"step {step}/{self.total}  epoch {epoch:.2f}  {text}  ETA {show_time_left(left)}")

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """The result of a validation, of the model and of its averages."""
        parts = [
            f"{title}top-1 {100 * scores[f'{name}/top1']:.2f} %  top-5 {100 * scores[f'{name}/top5']:.2f} %  "
            f"loss {scores[f'{name}/loss']:.3f}"
            for name, title in (("val", ""), ("val_ema", "EMA "), ("val_swa", "SWA "))
            if f"{name}/top1" in scores
        ]
        self.say(f"epoch {step / self.per_epoch:g} validated: {'; '.join(parts)}")

    def say(self, line: str) -> None:
        """A line that stays, above the bar on a terminal."""
        with suppress(OSError):
            if self.live:
                tqdm.write(show_lines(line), file=sys.stderr)
            elif self.speaks:
                tell(line, sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()
