"""The tally: never less than what AWS will bill, nothing twice, whatever EC2 shows and hides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.run.spend import LOST_SECONDS, Machine, Spend

HOUR = 3600.0
MACHINE = Machine(id="i-1", type="g6.xlarge", zone="a", market="spot", launched=1000.0, usd_per_hour=0.5)


def test_a_machine_costs_its_hours_times_its_price() -> None:
    spend = Spend().tally([MACHINE], 1060.0, {})
    assert spend.usd_at_most(1000.0 + 2 * HOUR) == pytest.approx(1.0)
    assert spend.usd_per_hour() == 0.5
    ended = spend.tally([replace(MACHINE, ended=1000.0 + HOUR)], 1000.0 + 3 * HOUR, {})
    assert ended.usd(1000.0 + 9 * HOUR) == pytest.approx(0.5)
    assert ended.usd_per_hour() == 0.0


def test_a_machine_that_ec2_forgot_after_its_end_stays_in_the_tally() -> None:
    spend = Spend().tally([replace(MACHINE, ended=1000.0 + HOUR)], 1000.0 + HOUR, {})
    later = spend.tally([], 1000.0 + 5 * HOUR, {})
    assert later.machines == spend.machines
    assert later.usd(1000.0 + 9 * HOUR) == pytest.approx(0.5)


def test_a_machine_missing_from_one_answer_bills_on() -> None:
    seen = Spend().tally([MACHINE], 1060.0, {})
    missing = seen.tally([], 1120.0, {})
    assert missing.usd(1120.0) == seen.usd(1120.0)
    assert missing.usd_per_hour() == 0.5
    again = missing.tally([MACHINE], 1180.0, {})
    assert again.usd_at_most(1000.0 + HOUR) == pytest.approx(0.5)
    assert again.machines == seen.machines


def test_a_machine_that_stays_missing_had_ended_when_it_was_first_missing() -> None:
    spend = Spend().tally([MACHINE], 1000.0 + HOUR - 60, {}).tally([], 1000.0 + HOUR, {})
    spend = spend.tally([], 1000.0 + HOUR + LOST_SECONDS, {})
    assert spend.usd(1000.0 + 9 * HOUR) == pytest.approx(0.5)


def test_a_machine_taken_for_ended_that_is_shown_running_was_billing_all_the_time() -> None:
    spend = Spend().tally([MACHINE], 1060.0, {}).tally([], 1120.0, {}).tally([], 1120.0 + LOST_SECONDS, {})
    assert spend.usd_per_hour() == 0.0
    back = spend.tally([MACHINE], 1000.0 + 4 * HOUR, {})
    assert back.usd(1000.0 + 4 * HOUR) == pytest.approx(2.0)
    assert back.usd_per_hour() == 0.5


def test_ec2_s_own_time_of_the_end_counts_once_it_is_told() -> None:
    spend = Spend().tally([MACHINE], 1060.0, {}).tally([], 1120.0, {}).tally([], 1120.0 + LOST_SECONDS, {})
    told = spend.tally([replace(MACHINE, ended=1000.0 + 2 * HOUR)], 1000.0 + 3 * HOUR, {})
    assert told.usd(1000.0 + 9 * HOUR) == pytest.approx(1.0)


def test_another_price_counts_from_the_last_look_if_it_is_higher_and_from_this_one_if_it_is_lower() -> None:
    spend = Spend().tally([MACHINE], 1000.0, {}).tally([MACHINE], 1000.0 + HOUR, {})
    dearer = spend.tally([replace(MACHINE, usd_per_hour=1.0)], 1000.0 + 2 * HOUR, {})
    assert dearer.usd(1000.0 + 2 * HOUR) == pytest.approx(0.5 + 1.0)
    assert dearer.usd_at_most(1000.0 + 3 * HOUR) == pytest.approx(2.5)
    cheaper = spend.tally([replace(MACHINE, usd_per_hour=0.1)], 1000.0 + 2 * HOUR, {})
    assert cheaper.usd(1000.0 + 2 * HOUR) == pytest.approx(0.5 + 0.5)
    assert cheaper.usd_at_most(1000.0 + 3 * HOUR) == pytest.approx(1.1)


def test_a_machine_that_ended_unseen_is_charged_the_higher_price_since_the_last_look() -> None:
    spend = Spend().tally([MACHINE], 1000.0, {}).tally([MACHINE], 1000.0 + HOUR, {})
    ended = spend.tally([replace(MACHINE, usd_per_hour=1.0, ended=1000.0 + 1.5 * HOUR)], 1000.0 + 2 * HOUR, {})
    assert ended.usd(1000.0 + 9 * HOUR) == pytest.approx(0.5 + 0.5)
    assert ended.tally([replace(MACHINE, usd_per_hour=9.0, ended=1000.0 + 1.5 * HOUR)], 9e3, {}).usd(9e3) == ended.usd(
        9e3
    )


def test_two_machines_at_once_both_cost() -> None:
    spend = Spend().tally([MACHINE, replace(MACHINE, id="i-2")], 1060.0, {})
    assert spend.usd_at_most(1000.0 + HOUR) == pytest.approx(1.0)
    assert spend.usd_per_hour() == 1.0


def test_each_start_costs_a_minute_at_least_as_aws_bills_it() -> None:
    for machine, now in ((MACHINE, 900.0), (MACHINE, 1010.0), (replace(MACHINE, ended=1005.0), 1000.0 + HOUR)):
        assert Spend().tally([machine], now, {}).usd_at_most(now) == pytest.approx(0.5 / 60)
    assert Spend().tally([replace(MACHINE, ended=1090.0)], 2000.0, {}).usd(2000.0) == pytest.approx(0.5 / 40)


def test_the_time_before_the_first_look_costs_the_most_that_the_price_has_been_since_the_launch() -> None:
    spend = Spend().tally([MACHINE], 1000.0 + HOUR, {"i-1": 0.8})
    assert spend.usd(1000.0 + HOUR) == pytest.approx(0.8)
    assert spend.usd_at_most(1000.0 + 2 * HOUR) == pytest.approx(0.8 + 0.5)
    ended = Spend().tally([replace(MACHINE, ended=1000.0 + HOUR)], 1000.0 + 2 * HOUR, {"i-1": 0.8})
    assert ended.usd(1000.0 + 2 * HOUR) == pytest.approx(0.8)


def test_a_price_that_rose_and_fell_between_two_looks_costs_what_it_was_at_most() -> None:
    spend = Spend().tally([MACHINE], 1000.0, {}).tally([MACHINE], 1000.0 + HOUR, {"i-1": 0.5})
    assert spend.machines == (MACHINE,)  # nothing to write down
    peaked = spend.tally([MACHINE], 1000.0 + 2 * HOUR, {"i-1": 0.9})
    assert peaked.usd(1000.0 + 2 * HOUR) == pytest.approx(0.5 + 0.9)
    assert peaked.usd_per_hour() == 0.5


def test_a_price_that_rose_while_ec2_did_not_show_the_machine_counts() -> None:
    seen = Spend().tally([MACHINE], 1000.0 + HOUR, {})
    missed = seen.tally([], 1060.0 + HOUR, {"i-1": 0.9})  # rose in the minute before
    assert missed.usd(1060.0 + HOUR) == pytest.approx(0.5 + 0.9 / 60)
    for later in (replace(MACHINE, usd_per_hour=0.9), replace(MACHINE, usd_per_hour=0.9, ended=1000.0 + 2 * HOUR)):
        taken_for_ended = seen.tally([], 1060.0 + HOUR, {}).tally([], 1060.0 + HOUR + LOST_SECONDS, {})
        assert taken_for_ended.priced_until("i-1", 1000.0) == 1060.0 + HOUR
        shown = taken_for_ended.tally([later], 1000.0 + 2 * HOUR, {"i-1": 0.9})
        assert shown.usd(1000.0 + 2 * HOUR) == pytest.approx(0.5 + 0.5 / 60 + 0.9 * 59 / 60)


def test_prices_are_asked_for_since_the_last_look_at_the_machine() -> None:
    spend = Spend().tally([MACHINE], 5000.0, {})
    assert spend.priced_until("i-1", 1000.0) == 5000.0
    assert spend.priced_until("i-2", 4000.0) == 4000.0


def test_days_without_a_look_bill_a_missing_machine_for_the_longest_that_it_can_have_lived() -> None:
    """EC2 would still show it if it had been there in the last hour; and no machine lives long past its deadline."""
    back = 1060.0 + 72 * HOUR
    for deadline, ended in ((0.0, back - HOUR), (1000.0 + 10 * HOUR, 1000.0 + 10 * HOUR + 600), (1000.0, 1060.0 + 540)):
        spend = Spend().tally([replace(MACHINE, deadline=deadline)], 1060.0, {}).tally([], back, {})
        assert spend.machines[0].ended == ended
        assert spend.usd(back) == pytest.approx((ended - 1000.0) / HOUR * 0.5)
        again = spend.tally([MACHINE], back + 60, {})  # EC2 had only left it out
        assert again.usd(back + 60) == pytest.approx((back + 60 - 1000.0) / HOUR * 0.5)


def test_half_an_hour_without_a_look_says_nothing_about_a_missing_machine() -> None:
    spend = Spend().tally([MACHINE], 1060.0, {}).tally([], 1060.0 + HOUR / 2, {})
    assert spend.usd(1060.0 + HOUR / 2) == pytest.approx((60 + HOUR / 2) / HOUR * 0.5)
    assert spend.open


def test_an_old_tally_is_read_as_what_was_seen_and_not_as_days_of_a_machine_that_may_be_gone() -> None:
    spend = Spend().tally([MACHINE], 1000.0 + HOUR, {})
    assert spend.usd(1000.0 + HOUR + 300) == pytest.approx(0.5 * (HOUR + 300) / HOUR)  # the guard stores it so often
    assert spend.usd(1000.0 + 72 * HOUR) == pytest.approx(0.5 * (HOUR + 600) / HOUR)
    assert spend.usd_at_most(1000.0 + 72 * HOUR) == pytest.approx(36.0)  # what a budget counts with


def test_the_file_holds_all_of_it() -> None:
    spend = (
        Spend()
        .tally([MACHINE], 1060.0, {})
        .tally([replace(MACHINE, usd_per_hour=1.0)], 2000.0, {})
        .tally([], 2060.0, {})
    )
    assert Spend.from_json(spend.to_json()) == spend
