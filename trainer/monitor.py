"""What a person and the uploader see of a running trainer, and what they may tell it: progress, phase, stop signals."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

from trainer.channel import write_json
from trainer.contract import Phase

STATUS_SECONDS = 1.0


class Interrupted(BaseException):
    """A stop was asked for in a place where nothing needs to be saved. Like KeyboardInterrupt, no error to handle."""


class Interruption:
    """What signals ask for, looked at everywhere: SIGTERM and SIGINT to save and end, SIGUSR1 to save and go on."""

    def __init__(self) -> None:
        self.requested = self.raising = self.save_requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)
        signal.signal(signal.SIGUSR1, self.handle_save)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.raising:
            raise Interrupted

    def handle_save(self, number: int, frame: FrameType | None) -> None:
        self.save_requested = True

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self.save_requested = self.save_requested, False
        return asked

    @contextmanager
    def raises(self) -> Iterator[None]:
        """Inside, a stop raises Interrupted at once: for work that holds nothing worth saving."""
        self.raising = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self.raising = False


class Status:
    """`status.json`, from which the uploader makes the heartbeat: phase, step, and a counter that must move."""

    def __init__(self, path: Path, *, writes: bool):
        self.path, self.writes, self.lock = path, writes, threading.Lock()
        self.phase, self.step, self.progress, self.written = Phase.STARTING, 0, 0, 0.0

    def enter(self, phase: str) -> None:
        self.phase, self.progress, self.written = phase, 0, 0.0
        self.tick(0)

    def tick(self, amount: int = 1) -> None:
        """Count progress of the phase, from any thread; written at most once a second."""
        with self.lock:
            self.progress += amount
            if self.writes and (now := time.monotonic()) >= self.written + STATUS_SECONDS:
                status = {"phase": self.phase, "step": self.step, "progress": self.progress}
                with suppress(OSError):  # a full disk is no reason to stop
                    write_json(self.path, status)
                self.written = now


class Console:
    """A live bar on a terminal; elsewhere one plain line per log event. Only the main process speaks.

    A terminal that was closed (OSError) is no reason to stop.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, *, speaks: bool):
        self.speaks, self.total, self.per_epoch = speaks, total_steps, steps_per_epoch
        self.live = speaks and sys.stderr.isatty()
        self.bar: tqdm[NoReturn] | None = None
        self.started, self.first_step = 0.0, 0

    def start(self, step: int) -> None:
        """The clock starts, and on a terminal the bar appears."""
        self.started, self.first_step = time.monotonic(), step
        if self.live:
            self.bar = tqdm(
                total=self.total, initial=step, dynamic_ncols=True, leave=False, smoothing=0.1,
                bar_format="{desc} {percentage:3.0f} % |{bar}| step {n_fmt}/{total_fmt} [{elapsed}, ETA {remaining}{postfix}]",  # noqa: E501
            )  # fmt: skip

    def step(self, step: int) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(step - self.bar.n)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Loss, top-1 and speed of the steps since the last log event."""
        epoch = step / self.per_epoch
        text = (
            f"loss {values['train/loss']:.3f}  top-1 {100 * values['train/top1']:.1f} %  "
            f"{values['speed/images_per_second']:,.0f} images/s"
        )
        if self.bar is not None:
            self.bar.set_description_str(f"epoch {epoch:.1f}", refresh=False)
            self.bar.set_postfix_str(text, refresh=False)
        else:
            left = (time.monotonic() - self.started) / max(1, step - self.first_step) * (self.total - step)
            self.say(f"step {step}/{self.total}  epoch {epoch:.2f}  {text}  ETA {clock(left)}")

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """The result of a validation, of the model and of its average."""
        parts = [
            f"{title}top-1 {100 * scores[f'{name}/top1']:.2f} %  top-5 {100 * scores[f'{name}/top5']:.2f} %  "
            f"loss {scores[f'{name}/loss']:.3f}"
            for name, title in (("val", ""), ("val_ema", "EMA "))
            if f"{name}/top1" in scores
        ]
        self.say(f"epoch {step / self.per_epoch:g} validated: {'; '.join(parts)}")

    def say(self, line: str) -> None:
        """A line that stays, above the bar on a terminal."""
        with suppress(OSError):
            if self.live:
                tqdm.write(line, file=sys.stderr)
            elif self.speaks:
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
