"""What a benchmark promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """What must hold."""

    what: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def holds(self) -> bool:
        return self.least <= self.value <= self.most

    def row(self) -> dict[str, Any]:
        bound = {"least": self.least} if self.least > -math.inf else {"most": self.most}
        return {"what": self.what, "value": round(self.value, 3), **bound, "holds": self.holds}

    def __str__(self) -> str:
        bound = f"at least {self.least:g}" if self.least > -math.inf else f"at most {self.most:g}"
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what:66} {self.value:8.3f}   must be {bound}"
