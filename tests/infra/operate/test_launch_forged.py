"""launch of a run whose files somebody forged in the bucket: nothing of theirs is planned without being asked for."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from infra.operate.commands import launch
from infra.operate.planning.options import Request
from infra.operate.session import Aws as Operator
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.infra.deployed import Deployed
from tests.infra.operate.launches import INSTALLATION, begin, group, plan, stop
from tests.infra.operator import session
from trainer.contract import UserError, run_key

pytestmark = pytest.mark.usefixtures("served")
NOT_NUMBERS: tuple[Any, ...] = (float("nan"), float("inf"), -1, 1e300, "7", None, True, [1])


@pytest.fixture
def mine(place: Deployed) -> Spec:
    spec = begin(place, Request(recipe="digits", run_id="mine"))
    stop(place)
    return spec


def forge(place: Deployed, spec: Spec, **values: Any) -> None:
    place.put(run_key("mine", "spec.json"), json.loads(spec.to_json()) | values)


def test_a_forged_spec_plans_no_dearer_machine_no_longer_time_and_no_larger_sum(place: Deployed, mine: Spec) -> None:
    forged: list[tuple[dict[str, Any], str]] = [
        ({"types": ["p5.4xlarge"]}, r"was started on p5\.4xlarge, which the installation does not name: .*TYPES=p5"),
        ({"hours": 100_000}, "HOURS=100000 is out of range: more than 0 and at most 168"),
        ({"budget_usd": 1e7}, r"BUDGET=1e\+07 is out of range: more than 0 and at most 100,000"),
        ({"nodes": 8}, "NODES=8"), ({"nodes": 1.5}, "nodes is 1.5, not a whole number"),
        ({"market": "reserved"}, "market is 'reserved', not spot or on-demand"),
        ({"arguments": "rm"}, "arguments is 'rm', not a list"), ({"prices": {"g5": -1}}, "price of g5 is -1"),
        ({"run_id": "other"}, "is of another run, 'other'"), ({"types": [7]}, "types is 7, not a text"),
    ]  # fmt: skip
    for values, said in forged:
        forge(place, mine, **values)
        with pytest.raises(UserError, match=said):
            plan(Request(run_id="mine"))
    for name in ("budget_usd", "hours", "created", "deadline", "extras_usd_per_hour", "on_demand_after_minutes"):
        for value in NOT_NUMBERS:
            forge(place, mine, **{name: value})
            with pytest.raises(UserError, match=rf"{name} is .*, not a number from 0 to 1e"):
                plan(Request(run_id="mine"))
    place.put(run_key("mine", "spec.json"), b"[" * 100_000)
    with pytest.raises(UserError, match=r"spec\.json is not that of a run on AWS"):
        plan(Request(run_id="mine"))


def test_a_limit_above_the_defaults_is_asked_for_again(
    place: Deployed, mine: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(place, mine, budget_usd=90_000, hours=150)

    def again(**asked: Any) -> int:
        return launch.launch(Operator(session()), INSTALLATION, Request(run_id="mine", **asked), is_checked=True)

    with pytest.raises(UserError, match=r"no terminal to ask at: .*make launch RUN=mine BUDGET=90000 HOURS=150"):
        again()
    with pytest.raises(UserError, match=r"make launch RUN=mine HOURS=150$"):
        again(budget_usd=90_000.0)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer in ("", "no"):
        monkeypatch.setattr("builtins.input", lambda said, answer=answer: answer)
        with pytest.raises(UserError, match=r"not confirmed: nothing was started"):
            again()
    assert group(place).desired == 0
    monkeypatch.setattr("builtins.input", lambda said: "y")
    assert again() == 0
    assert group(place).desired == 1


def test_a_run_with_the_default_limits_goes_on_without_a_question(place: Deployed, mine: Spec) -> None:
    assert plan(Request(run_id="mine")).inherited == ""


def test_a_forged_tally_is_refused(place: Deployed, mine: Spec) -> None:
    machine = Machine(id="i-1", type="g5.xlarge", zone="a", market="spot", launched=0.0, ended=7200, usd_per_hour=1.0)
    honest = json.loads(Spend(at=7200, machines=(machine,)).to_json())
    with pytest.raises(ValueError, match=r"at is nan"):
        Spend.from_json(json.dumps(honest | {"at": float("nan")}).encode())
    for name in ("launched", "ended", "usd_per_hour", "usd_before", "priced"):
        for value in NOT_NUMBERS:
            (forged,) = honest["machines"]
            place.put(run_key("mine", "spend.json"), honest | {"machines": [forged | {name: value}]})
            with pytest.raises(UserError, match=rf"spend\.json is damaged .*{name} is"):
                plan(Request(run_id="mine"))
    place.put(run_key("mine", "spend.json"), honest | {"machines": [forged | {"priced": 9_000_000.0}]})
    with pytest.raises(UserError, match=r"priced is 9000000.0, not a number from 0 to 7800"):
        plan(Request(run_id="mine"))
