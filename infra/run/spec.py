"""What one run on AWS is asked to do: `runs/<run_id>/spec.json`, written once by `launch` or `prepare`.

Boot reads it on the machine, the guard in its function, the operator's commands on the laptop. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from trainer.contract import UserError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Times are Unix seconds, money is US dollars."""

    run_id: str
    kind: str = "train"  # or "prepare"
    recipe: str = ""  # of a training
    arguments: tuple[str, ...] = ()  # of `trainer.process.supervise`, the recipe first; or of `trainer.prepare`
    data: str = ""  # TRAINER_DATA: s3://<bucket>/datasets/<name>/<version>, a Hugging Face id, "" for the recipe's own
    nodes: int = 1
    market: str = "spot"  # or "on-demand"
    types: tuple[str, ...] = ()  # only these instance types; () for the installation's, by dollars per image
    on_demand_after_minutes: float = 0.0  # without any machine for so long: the guard changes to on-demand; 0: never
    budget_usd: float
    hours: float
    created: float
    deadline: float  # created + hours, unless a later launch moved it: the tag on the group counts
    prices: dict[str, float] = field(default_factory=dict)  # on-demand dollars per hour and machine, by type
    prices_source: str = ""
    extras_usd_per_hour: float = 0.05  # a machine's disk and public address

    @property
    def launched(self) -> float:
        """The newest launch of the run: each sets another deadline."""
        return self.deadline - self.hours * 3600

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Spec:
        """Raises UserError where it is no spec of a run on AWS (a local `make train` writes a shorter one)."""
        try:
            value = json.loads(body)
            known = {f.name for f in fields(cls)}
            spec = cls(**{name: content for name, content in value.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"spec.json is not that of a run on AWS ({error}): start the run with `make launch`, under another RUN="
            ) from error
        for name in ("arguments", "types"):
            object.__setattr__(spec, name, tuple(getattr(spec, name)))
        return spec
