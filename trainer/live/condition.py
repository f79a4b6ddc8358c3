"""How a run is, in one word and in one sentence. Decided here alone, so that all commands say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.contract import Exit, Phase
from trainer.live.documents import AttemptRecord
from trainer.live.facts import RunFacts
from trainer.text import show_duration

UNHEARD_SECONDS = 180.0  # a heartbeat comes every 30 s; the guard on AWS replaces a machine after as long
AHEAD_SECONDS = 60.0  # clocks of machines differ by less
CONTINUES = "the command that started it continues it"

Word = Literal[
    "missing", "waiting", "starting", "running", "silent", "interrupted", "stopped", "crashed", "failed", "finished"
]


@dataclass(frozen=True)
class Condition:
    """`word` for programs and tables, `text` for people. `is_active`: something is, or should be, at work."""

    word: Word
    text: str

    @property
    def is_active(self) -> bool:
        return self.word in ("starting", "running")

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of the run."""
        return self.word in ("finished", "failed")


def unheard_seconds(facts: RunFacts, now: float) -> float | None:
    """Since the newest sign of life, by the clock of the run's machine; None where there was none.

    Below 0 where that clock is ahead.
    """
    signs = [facts.pulse.time if facts.pulse else 0.0, facts.newest.started if facts.newest else 0.0]
    return now - max(signs) if any(signs) else None


def condition_of(facts: RunFacts, now: float, unchanged_seconds: float = 0.0) -> Condition:
    """How the run is at `now`, in Unix seconds.

    `unchanged_seconds`: for so long, by a clock of our own, its heartbeat has been the same. That tells a run that is
    silent from one whose machine's clock is wrong.
    """
    if facts.finish or facts.done:
        return Condition("finished", _of_finished(facts))
    if facts.failed:
        return Condition("failed", f"failed: {facts.failed.message or 'no reason was written'}")
    if not facts.exists:
        return Condition("missing", "there is no such run yet")
    if facts.newest and facts.newest.code is not None and not _is_held(facts):
        return _of_ended(facts.newest)
    heard = unheard_seconds(facts, now)
    if heard is None:
        return Condition("waiting", "no machine has begun to work on it yet")
    heard = max(heard, unchanged_seconds)
    last = f"last heard {show_duration(max(0.0, heard))} ago"
    if heard > UNHEARD_SECONDS:
        phase = f" while {facts.pulse.phase}" if facts.pulse and facts.pulse.phase else ""
        return Condition("silent", f"not running, or cut off: {last}{phase}; {CONTINUES}")
    if facts.pulse is None or facts.pulse.attempt < facts.attempts:
        return Condition("starting", f"starting, {last}")
    return Condition("running", f"{facts.pulse.phase or Phase.STARTING}, {last}")


def _of_finished(facts: RunFacts) -> str:
    finish = facts.finish
    if finish is None:
        return f"finished: {(facts.done and facts.done.message) or 'all is done'}"
    total = f" of {finish.total_steps:,}" if finish.total_steps and finish.total_steps != finish.steps else ""
    return f"finished: {finish.steps:,}{total} steps in {show_duration(finish.seconds)}"


def _is_held(facts: RunFacts) -> bool:
    """Whether the newest attempt only found that another one has the run, which may be at work still."""
    return facts.newest is not None and facts.newest.code == Exit.HELD and facts.pulse is not None


def _of_ended(attempt: AttemptRecord) -> Condition:
    """Of an attempt that has ended while the run has not."""
    why = f": {attempt.message}" if attempt.message else ""
    if attempt.code == Exit.INTERRUPTED:
        return Condition("interrupted", f"interrupted, all is saved{why}; {CONTINUES}")
    if attempt.code in (Exit.FINISHED, Exit.HELD, Exit.USER):
        return Condition("stopped", f"stopped{why}; {CONTINUES}")
    return Condition("crashed", f"crashed with exit code {attempt.code}{why}; {CONTINUES}")
