"""What a rehearsal concludes from what the runs left, what it may cost, and that the docs ask the same questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from infra.config import Installation
from infra.operate.planning import catalog
from infra.operate.planning.prices import dated_prices
from infra.operate.rehearsal.evidence import LoggedLine, compare_steps, lines_that_differ, resumed
from infra.operate.rehearsal.questions import UNTRIED, Verdict, answers_of
from infra.operate.rehearsal.scope import NOTICE_USD, REHEARSAL_USD, Scope, late_usd, make_scope, rehearsal_of
from tests import ROOT
from trainer.contract import UserError

ALL_TYPES = [*Installation().instance_types.split(","), *Installation().prepare_instance_types.split(",")]


def scope_of(*types: str, installation: Installation | None = None, has_notice: bool = False) -> Scope:
    return make_scope(
        rehearsal_of(installation or Installation()), types, dated_prices(ALL_TYPES), has_notice=has_notice
    )


def row(step: int, **values: Any) -> dict[str, Any]:
    given = {"train/loss": 2.5 / step, "train/lr": 0.1} | {name.replace("_", "/", 1): v for name, v in values.items()}
    return {"step": step, "time": 1e9 + step, "speed/images_per_second": 100.0 * step} | given


def lines(*steps: int) -> list[LoggedLine]:
    return [LoggedLine("rehearsal/i-1/1", 1e9, f"step {step}/100  epoch 0.1") for step in steps]


def test_the_same_numbers_on_both_machines_are_the_same_bits_whatever_the_time_and_the_speed() -> None:
    lost = [row(step) for step in range(1, 9)]
    redone = [row(step) | {"time": 5.0, "speed/images_per_second": 1.0} for step in range(5, 12)]
    found = compare_steps(lost, redone)
    assert (found.steps, found.values, found.different) == ((5, 6, 7, 8), 8, ())


def test_one_bit_in_one_number_is_told_with_its_step_and_both_values() -> None:
    lost, redone = [row(5), row(6)], [row(5), row(6, train_loss=2.5 / 6 + 2**-54)]
    (said,) = compare_steps(lost, redone).different
    assert said == f"train/loss of step 6: {2.5 / 6} and {2.5 / 6 + 2**-54}"


def test_a_number_that_only_one_machine_has_is_a_difference() -> None:
    assert len(compare_steps([row(5, val_top1=0.5)], [row(5)]).different) == 1


def test_an_attempt_says_from_which_step_of_which_attempt_it_went_on() -> None:
    begin = resumed([{"step": 40, "event": "start", "attempt": 2, "origin": 1}, row(41)])
    assert begin is not None
    assert (begin.step, begin.origin) == (40, 1)
    assert resumed([]) is None


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ([22, 44, 66], []),
        ([22, 66], ["step 44: 0 times"]),
        ([22, 44, 44, 66], ["step 44: 2 times"]),
        ([22, 44, 66, 88], []),  # the machine was lost before it told of step 88
    ],
)
def test_a_line_that_is_missing_or_came_twice_is_found(came: Sequence[int], said: list[str]) -> None:
    rows = [row(step) for step in (22, 44, 66)] + [{"step": 67, "train/loss": 1.0}]  # the last one prints nothing
    assert lines_that_differ(rows, lines(*came)) == (3, said)


@pytest.mark.parametrize("type", Installation().instance_types.split(","))
@pytest.mark.parametrize("has_notice", [False, True])
def test_no_type_makes_it_cost_more_than_fifty_cents(type: str, has_notice: bool) -> None:
    scope = Scope(
        installation=rehearsal_of(Installation()), types=(type,), has_notice=has_notice,
        usd_per_hour={one: catalog.TYPES[one].usd_per_hour + 0.05 for one in ALL_TYPES},
    )  # fmt: skip
    assert scope.most_usd <= REHEARSAL_USD + (NOTICE_USD if has_notice else 0) + 1e-9
    asked = scope.preparation("s3://b", 0.4).budget_usd + scope.training("", 0.4).budget_usd
    assert asked + late_usd(scope.usd_per_hour[type]) < scope.most_usd


def test_it_takes_the_cheapest_type_and_refuses_one_for_which_the_dollars_are_too_few() -> None:
    assert scope_of().types == ("g6.xlarge",)
    with pytest.raises(UserError, match=r"TYPES=g6e\.4xlarge costs .* name a smaller type, for example TYPES=g6"):
        scope_of("g6e.4xlarge")


def test_a_rehearsal_is_another_installation_with_a_bucket_of_its_own() -> None:
    mine = Installation(bucket_name="my-imagenet", disk_gib="200")
    rehearsed = rehearsal_of(mine)
    assert (rehearsed.name, rehearsed.bucket_name, rehearsed.disk_gib) == ("resnet-spot-rehearsal", "", "200")
    long = [rehearsal_of(Installation(name=f"a-rather-long-name-{end}")).name for end in ("a", "b")]
    assert len(set(long)) == 2
    assert all(len(name) == 24 and name.endswith("-rehearsal") for name in long)


def test_the_docs_list_what_a_rehearsal_answers_in_the_same_words() -> None:
    section = (ROOT / "docs/aws.md").read_text().partition("\n## What was never tried\n")[2]
    listed = re.findall(r"^- (.*)$", section.partition("`make rehearse`")[0], re.MULTILINE)
    assert listed == list(UNTRIED.values())


def test_every_question_has_an_answer_and_a_reason_where_nothing_was_seen() -> None:
    found = answers_of({"spot": Verdict(True, "g6.xlarge")})
    assert list(found) == list(UNTRIED)
    assert [name for name, one in found.items() if one.is_seen] == ["spot"]
    assert all(one.said for one in found.values())
