"""Which process of a run is lost, and which one hangs: a judgement from what each says of itself. There is no I/O here.

Time is this process's own: the monotonic clock between two looks, and no clock of another machine. A pause of this
process itself counts as a moment, since whoever was stopped knows nothing about the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from trainer.contract import Phase


@dataclass(frozen=True, kw_only=True)
class Pace:
    """In seconds."""

    beat: float = 2.0
    lost: float = 20.0  # of silence
    # Of standstill. The guard ends a run on AWS after 600 (infra/guard/rules.py) and hears with up to 90 of delay.
    hung: float = 480.0
    naming: float = 5.0  # two beats and a half, in which whoever is gone is missed


@dataclass(frozen=True, kw_only=True)
class LastWord:
    """What a process says of itself in one beat."""

    rank: int
    machine: str
    phase: str
    step: int
    progress: int
    batches: int  # micro-batches that it has taken
    collectives: int  # that it has begun
    beat: int = 0  # a counter, so that each beat is another
    is_over: bool = False  # its work has ended; it beats no more
    reason: str = ""  # its own error that ended it
    verdict: str = ""  # on which it leaves, and so should all
    is_hang: bool = False  # the verdict is about one that hangs

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> LastWord:
        values: dict[str, Any] = json.loads(body)
        return cls(**values)

    @property
    def mark(self) -> tuple[str, int, int, int, int]:
        """Changes while the process gets on."""
        return self.phase, self.step, self.progress, self.batches, self.collectives

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.machine}"

    @property
    def last(self) -> str:
        return f"step {self.step}, {self.phase}"


@dataclass(frozen=True)
class Judgement:
    message: str
    is_hang: bool = False


@dataclass(kw_only=True)
class Judge:
    """Of one process. One thread tells it what it hears, another one asks it."""

    rank: int
    size: int
    place: str  # host:port of the store
    pace: Pace
    clock: Callable[[], float] = time.monotonic
    words: dict[int, LastWord] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)  # when the last beat of each rank came
    moved: dict[int, float] = field(default_factory=dict)  # when its mark changed last
    answered: float = 0.0  # when the store did
    now: float = 0.0  # seconds in which this process has looked
    looked: float | None = None
    lock: Lock = field(default_factory=Lock)

    def hear(self, words: Mapping[int, LastWord]) -> None:
        """What the store has of all who have begun."""
        with self.lock:
            self._look()
            self.answered = self.now
            for rank, word in words.items():
                before = self.words.get(rank)
                if before is None or word.beat != before.beat:
                    self.heard[rank] = self.now
                if before is None or word.mark != before.mark:
                    self.moved[rank] = self.now
            self.words.update(words)

    def verdict(self) -> Judgement | None:
        """Why this process should leave; None while there is no reason. The first reason that fits counts."""
        with self.lock:
            self._look()
            return self._follow() or self._find_lost() or self._find_hung()

    def missing(self, seconds: float) -> list[str]:
        """Who is gone or has been silent for so long, each with its last word; the others alone."""
        with self.lock:
            self._look()
            if self.now - self.answered > seconds:
                return [f"the machine of the meeting point {self.place} does not answer"]
            over = [word for word in self.words.values() if word.is_over and word.rank != self.rank]
            silent = [self._tell(rank) for rank in self._silent(seconds)]
            failed = [f"{word.name} has ended: {word.reason}" for word in over if word.reason]
            left = [f"{word.name} was told to stop, or has finished ({word.last})" for word in over if not word.reason]
            return failed or silent or left

    def has_heard_why(self) -> bool:
        """Whether another process has told the error that ended it."""
        return any(word.reason for word in self.words.copy().values())

    def others_moved(self, seconds: float) -> bool:
        """Whether another process has got on within this time, and this one has not."""
        with self.lock:
            self._look()
            fresh = {rank for rank, at in self.moved.items() if self.now - at < seconds and not self._is_over(rank)}
            return bool(fresh) and self.rank not in fresh

    def _look(self) -> None:
        at = self.clock()
        self.now += min(max(0.0, at - self.looked), 2 * self.pace.beat) if self.looked is not None else 0.0
        self.looked = at

    def _is_over(self, rank: int) -> bool:
        return rank in self.words and self.words[rank].is_over

    def _silent(self, seconds: float) -> list[int]:
        """Whom nobody has heard for so long, while the store answered: a dead store silences all of them."""
        others = (rank for rank in range(self.size) if rank != self.rank and not self._is_over(rank))
        heard = ((rank, self.heard.get(rank, 0.0)) for rank in others)
        while_answered = max(seconds - self.pace.beat, 1.25 * self.pace.beat)
        return [rank for rank, at in heard if self.now - at > seconds and self.answered - at > while_answered]

    def _tell(self, rank: int) -> str:
        if (word := self.words.get(rank)) is None:
            return f"rank {rank} has never been heard of"
        silence = self.now - self.heard[rank]
        return f"{word.name} has not been heard of for {silence:.0f} s; its last word was {word.last}"

    def _follow(self) -> Judgement | None:
        """Another one leaves, and says why; or it has failed, and this process has had a moment to notice."""
        for word in self.words.values():
            if word.rank != self.rank and word.verdict:
                return Judgement(word.verdict, word.is_hang)
        for word in self.words.values():
            if word.rank != self.rank and word.reason and self.now - self.heard[word.rank] > 1.5 * self.pace.beat:
                return Judgement(f"{word.name} has ended: {word.reason}")
        return None

    def _find_lost(self) -> Judgement | None:
        if (silence := self.now - self.answered) > self.pace.lost:
            if any(word.is_over for word in self.words.values()):  # it keeps the store, and the run ends
                return None
            return Judgement(
                f"the meeting point {self.place} has not answered for {silence:.0f} s: its machine is lost, or this "
                "one is cut off"
            )
        lost = self._silent(self.pace.lost)
        return Judgement("; ".join(self._tell(rank) for rank in lost)) if lost else None

    def _find_hung(self) -> Judgement | None:
        words = [word for word in self.words.values() if not word.is_over]
        last = max((self.moved[word.rank] for word in words), default=self.now)
        if len(self.words) < self.size or (stands := self.now - last) <= self.pace.hung:
            return None
        fewest = min(word.collectives for word in words)
        behind = [word for word in words if word.collectives == fewest]
        if len(behind) < len(words) and all(word.phase == Phase.WAITING_FOR_STORE for word in behind):
            return None  # a slow store is no hang: the uploader decides how long it is waited for
        how_long = f"nothing has moved for {stands:.0f} s"
        if len(behind) == len(words):
            said = f"all processes hang: {how_long}, and each has begun {fewest} collectives; {words[0].last}"
        else:
            names = "; ".join(f"{word.name} ({word.last})" for word in behind)
            hang = "hangs" if len(behind) == 1 else "hang"
            said = f"{names} {hang}: {how_long}, and the others wait there in collective {fewest + 1}"
        return Judgement(f"{said}; see the stacks in the store, under hangs/", is_hang=True)
