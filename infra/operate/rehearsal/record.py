"""What a rehearsal saw, as it goes on: its steps with their seconds, the answers, and `rehearsal.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.operate.rehearsal.hiding import hide_account
from infra.operate.rehearsal.questions import UNTRIED, Verdict, answers_of
from infra.operate.session import AwsError
from infra.operate.terminal import RenderableType, show_line, styled, table
from infra.operate.text import duration
from trainer.contract import UserError

REHEARSAL_FORMAT = 1  # of rehearsal.json


class UnseenError(Exception):
    """A step of the rehearsal did not do what it should. The message says what was seen instead."""


@dataclass(frozen=True)
class Act:
    """A step of the rehearsal that is over."""

    name: str
    seconds: float
    is_good: bool
    said: str


@dataclass
class Record:
    """Everything that a rehearsal found out. `facts` go into the file as they are."""

    account: str  # which no file names
    began: float = field(default_factory=time.time)
    acts: list[Act] = field(default_factory=list)
    answers: dict[str, Verdict] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    left: list[str] | None = None  # None: AWS was not asked, or did not answer
    is_whole: bool = False  # it was neither interrupted nor cut off by an error

    def act(self, name: str, do: Callable[[], str]) -> bool:
        """Do one step, which returns what it saw, and say it. Returns False if it failed."""
        show_line(f"\n{name} …")
        began, is_good = time.monotonic(), True
        try:
            said = do()
        except (UnseenError, AwsError, UserError, ValueError) as error:
            said, is_good = str(error), False
        self.acts.append(Act(name, round(time.monotonic() - began, 1), is_good, said))
        show_line(f"{name}: {'' if is_good else 'FAILED: '}{said}")
        return is_good

    def see(self, question: str, said: str) -> None:
        self.answers[question] = Verdict(True, said)

    def miss(self, question: str, said: str) -> None:
        self.answers[question] = Verdict(False, said)

    @property
    def is_good(self) -> bool:
        return self.is_whole and self.left == [] and all(act.is_good for act in self.acts)

    def write(self, file: Path) -> None:
        """Write the file whole. What could tell whose account it is becomes words, see hiding."""
        document = {
            "format": REHEARSAL_FORMAT,
            "began": datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.began),
            "good": self.is_good,
            "whole": self.is_whole,
            "left": self.left,
            **self.facts,
            "steps": [asdict(act) for act in self.acts],
            "answers": [
                {"question": UNTRIED[name], "seen": answer.is_seen, "said": answer.said}
                for name, answer in answers_of(self.answers).items()
            ],
        }
        new = file.with_name(f".{file.name}")
        new.write_text(json.dumps(hide_account(document, self.account), indent=1) + "\n")
        new.replace(file)

    def shown(self) -> RenderableType:
        rows = [
            (UNTRIED[name], styled("seen", "green") if one.is_seen else styled("not seen", "yellow"), one.said)
            for name, one in answers_of(self.answers).items()
        ]
        return table(rows, ("never tried before", "", "what was seen"))

    def took(self) -> str:
        return duration(time.time() - self.began)
