"""What a run on AWS is to do, and its limits: `runs/<run_id>/spec.json`, which `launch` or `prepare` writes once.

Boot, the guard and the operator's commands read it. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from infra.run.values import check_number, check_text, check_texts
from trainer.contract import UserError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Times are Unix seconds, money is US dollars."""

    run_id: str
    kind: str = "train"  # or "prepare"
    recipe: str = ""  # "" for a preparation
    arguments: tuple[str, ...] = ()  # for `trainer.process.supervise`, the recipe first; or for `trainer.prepare`
    data: str = ""  # TRAINER_DATA: s3://<bucket>/datasets/<name>/<version>, a Hugging Face id, "" for the recipe's own
    nodes: int = 1
    market: str = "spot"  # or "on-demand"
    zone: str = ""  # only machines of this zone; "": of any, or with several nodes of the one that launch chooses
    types: tuple[str, ...] = ()  # only these instance types; (): the installation's, ordered by dollars per image
    on_demand_after_minutes: float = 0.0  # after so long without a machine, the guard changes to on-demand; 0: never
    keep_minutes: float = 0.0  # a machine on which the run fails stays on for so long, for `make shell`
    budget_usd: float
    hours: float
    created: float
    deadline: float  # created + hours; a later launch moves it, and then the group's tag counts
    prices: dict[str, float] = field(default_factory=dict)  # by instance type: on-demand dollars per machine and hour
    prices_source: str = ""
    extras_usd_per_hour: float = 0.05  # disk and public address of one machine

    @property
    def launched(self) -> float:
        """When the run was launched last: each launch sets a new deadline."""
        return self.deadline - self.hours * 3600

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Spec:
        """Raises UserError if it is not the spec of a run on AWS: a local `make train` writes a shorter one.

        Every number in it is finite and not negative. Whether so much is meant, the caller must ask.
        """
        try:
            value = json.loads(body)
            known = {f.name for f in fields(cls)}
            spec = cls(**{name: content for name, content in value.items() if name in known})
            _check_values(spec)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"spec.json is not that of a run on AWS ({error}): start the run with `make launch`, under another RUN="
            ) from error
        for name in ("arguments", "types"):
            object.__setattr__(spec, name, tuple(getattr(spec, name)))
        return spec


def _check_values(spec: Spec) -> None:
    for name in ("run_id", "recipe", "data", "zone", "prices_source"):
        check_text(name, getattr(spec, name))
    check_text("kind", spec.kind, ("train", "prepare"))
    check_text("market", spec.market, ("spot", "on-demand"))
    for name in ("arguments", "types"):
        check_texts(name, getattr(spec, name))
    amounts = ("on_demand_after_minutes", "keep_minutes", "budget_usd", "hours", "created", "deadline")
    for name in (*amounts, "extras_usd_per_hour"):
        check_number(name, getattr(spec, name))
    if check_number("nodes", spec.nodes, 99) != int(spec.nodes):
        raise ValueError(f"nodes is {spec.nodes!r}, not a whole number")
    for type, price in spec.prices.items():
        check_number(f"the price of {type}", price)
