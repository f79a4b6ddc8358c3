"""A simulated day, many times: with all guards nothing goes wrong; without any, money runs; and what each is for.

`make simulate`, which CI runs once a week, goes on to a thousand seeds and writes down what came of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from functools import cache, partial

import pytest

from infra.guard.rules import OVERDUE_SECONDS
from tests import ROOT
from tests.simulate.cloud import Instance, Weather, within
from tests.simulate.machine import SAVE_SECONDS, STEPS_PER_SECOND
from tests.simulate.trouble import RECLAIMED, YOUNG, Trouble
from tests.simulate.world import BEGAN, INSTALLATION, OUTER_GUARDS, Result, World, simulate

pytestmark = pytest.mark.slow
SEEDS = range(100)
FEW = range(50)
LATE, IDLE, DEAR = "alive past the deadline", "idle", "over budget"
VAIN = "replaced in vain"


@cache
def wrong(seed: int, without: frozenset[str]) -> tuple[str, ...]:
    return simulate(seed, without).wrong


def failing(*without: str, seeds: Collection[int] = FEW) -> dict[str, list[int]]:
    """The seeds by what goes wrong in them."""
    found: dict[str, list[int]] = {}
    for seed in seeds:
        for what in wrong(seed, frozenset(without)):
            found.setdefault(what, []).append(seed)
    return found


def is_missed(what: str, *without: str, seeds: Collection[int] = FEW) -> bool:
    """Whether it goes wrong in any seed."""
    return any(what in wrong(seed, frozenset(without)) for seed in seeds)


def test_with_all_guards_no_budget_is_broken_and_no_machine_is_late_or_idle() -> None:
    results = [simulate(seed) for seed in SEEDS]
    assert {result.seed: result.wrong for result in results if result.wrong} == {}
    # A simulation in which nothing happens shows nothing.
    assert {result.ending for result in results} >= {"finished", "failed", "stopped"}
    assert sum(result.machines for result in results) > 1.5 * len(results)
    assert any(result.lost_steps for result in results)
    assert any(result.usd > 0.9 * result.budget_usd for result in results)


def test_without_any_guard_the_money_runs_in_every_seed() -> None:
    found = failing(*OUTER_GUARDS, seeds=range(20))
    # Machines that die young follow each other at once, and none of them may be there when LATE is asked: 300 s late.
    assert {*found[LATE], *found[DEAR]} == {*range(20)}
    assert min(len(found[LATE]) - 18, len(found[DEAR]) - 10) > 0


# Without this one guard: what goes wrong, or which others cover it, so that without those, too, it goes wrong.
SINGLE = [
    ("guard", "", DEAR),
    ("budget_spent", "", DEAR),
    ("hung", "", IDLE),
    ("died_young", "", VAIN),
    ("apart", "", IDLE),
    ("unwanted", "", DEAR),
    ("deadline-timer", "schedule guard", LATE),
    ("schedule", "deadline-timer guard", LATE),
    ("past_deadline", "deadline-timer schedule", LATE),
    ("exit-path", "finished failed", IDLE),
    ("finished", "exit-path", IDLE),
    ("failed", "exit-path", IDLE),
]


def is_left_to_the_timer(seed: int) -> bool:
    """Whether the group keeps its machines, whatever the schedule sets, and the guard is away at the deadline."""
    world = World(seed)
    world.run()
    return world.weather.is_sticky and within(world.weather.guard_outages, world.deadline + OVERDUE_SECONDS)


@pytest.mark.parametrize(("guard", "covering", "goes_wrong"), SINGLE, ids=[guard for guard, *_ in SINGLE])
def test_a_removed_guard_is_missed_unless_others_cover_it(guard: str, covering: str, goes_wrong: str) -> None:
    seeds = range(100) if guard == "unwanted" else FEW
    if not covering:
        assert is_missed(goes_wrong, guard, seeds=seeds), f"no seed misses {guard}"
        return
    found = failing(guard, seeds=seeds)
    unlucky = found.pop(LATE, []) if guard == "deadline-timer" else []
    assert found == {}
    assert all(is_left_to_the_timer(seed) for seed in unlucky)
    assert is_missed(goes_wrong, guard, *covering.split()), f"no seed misses {guard}, not even without {covering}"


def clear_world(weather: Weather, trouble: Trouble, *without: str, nodes: int = 1) -> World:
    """A run of a dollar for each machine and half a day, in which only this goes wrong."""
    world = World(1, without, nodes=nodes)
    world.weather = world.cloud.weather = replace(weather, share=world.weather.share)
    world.training.trouble = trouble
    world.spec = replace(world.spec, budget_usd=1.0 * nodes, hours=12.0, market="spot", on_demand_after_minutes=0.0)
    return world


@pytest.mark.parametrize("kind", YOUNG)
def test_machines_that_die_young_stop_the_run_and_without_the_rules_the_budget_goes(kind: str) -> None:
    trouble = Trouble(young=kind)
    well = clear_world(Weather(), trouble).run()
    assert well.wrong == ()
    assert 4 <= well.machines <= 6
    assert well.usd < 0.35
    rules = ("died_young", "hung_too_often") if kind == "no route" else ("died_young",)
    ill = clear_world(Weather(), trouble, *rules).run()
    assert VAIN in ill.wrong
    assert ill.machines > 12
    assert ill.usd > 0.85


@pytest.mark.parametrize("kind", YOUNG)
def test_where_every_second_machine_dies_young_a_run_of_four_goes_on_with_those_that_live(kind: str) -> None:
    """Half of them, and the zone or the type that they come from is always the same: the first two live."""
    world = clear_world(Weather(), Trouble(), nodes=4)
    launched = world.launched

    def third_dies(instance: Instance) -> None:
        world.training.trouble.young = kind if len(world.cloud.instances) > 2 else ""
        launched(instance)

    world.cloud.on_launch = third_dies
    result = world.run()
    assert (result.ending, result.wrong) == ("finished", ())
    assert 2 + 8 <= result.machines <= 2 + 8 + 8  # those that came before the guard saw the eighth death
    assert world.cloud.groups[INSTALLATION.train_group].shape["MaxSize"] == 2
    alone = clear_world(Weather(), Trouble(), "replaced_in_vain", nodes=4)
    launched, alone.cloud.on_launch = alone.launched, third_dies
    world = alone
    ill = alone.run()
    assert VAIN in ill.wrong
    assert ill.machines >= result.machines + 7


def test_a_machine_that_never_reaches_the_others_is_replaced_three_times_and_then_the_run_goes_on_alone() -> None:
    world = clear_world(Weather(), Trouble(loner_share=1.0), nodes=2)
    result = world.run()
    assert (result.ending, result.wrong, result.machines) == ("finished", (), 5)
    *lives, _ = sorted(one.ended - one.launched for one in world.cloud.instances)  # the longest is the head's
    assert all(15 * 60 <= life < 19 * 60 for life in lives)
    ill = clear_world(Weather(), Trouble(loner_share=1.0), "apart", "replaced_in_vain", nodes=2).run()
    assert (ill.machines, ill.wrong) == (2, (IDLE,))
    assert ill.usd > 1.2 * result.usd


def lose(world: World, place: int) -> None:
    world.cloud.terminate(world.cloud.instances[place], RECLAIMED)


def test_the_loss_of_a_machine_costs_a_run_of_four_a_re_form_and_less_than_a_minute_of_work() -> None:
    """Whichever machine it is, the head or another one: the rest goes on, and the next one joins them."""
    for place in range(4):
        world = clear_world(Weather(), Trouble(), nodes=4)
        world.clock.at(BEGAN + 1800, partial(lose, world, place))
        result = world.run()
        assert (result.ending, result.wrong, result.machines) == ("finished", (), 5)
        speed = 4 * max(STEPS_PER_SECOND.values())
        assert 0 < result.lost_steps <= SAVE_SECONDS * speed
        assert world.training.attempts <= 4 + 2 + 1  # the first four join, one is lost, one joins


def test_an_hour_without_capacity_anywhere_costs_nothing_and_the_run_goes_on_after_it() -> None:
    black = [(BEGAN, BEGAN + 3600)]
    world = clear_world(Weather(blackouts=black), Trouble())
    result = world.run()
    assert (result.ending, result.wrong, result.machines) == ("finished", (), 1)
    assert world.cloud.instances[0].launched >= BEGAN + 3600
    assert result.usd == pytest.approx(clear_world(Weather(), Trouble()).run().usd, rel=0.5)


@pytest.mark.parametrize("kind", ["", *YOUNG])
def test_a_minute_in_which_every_api_refuses_delays_the_guard_by_a_minute_and_no_more(kind: str) -> None:
    """A minute of each ten, from the launch on; the bound of the budget grows by the minute that no guard can use."""
    silences = [(BEGAN + at, BEGAN + at + 60) for at in range(0, 12 * 3600, 600)]
    world = clear_world(Weather(silences=silences), Trouble(young=kind))
    result = world.run()
    assert result.wrong == ()
    assert world.gap <= 120
    assert result.ending == ("stopped" if kind else "finished")
    assert result.machines <= 7


@pytest.mark.parametrize("guard", ["deadline-timer", "schedule", "guard"])
def test_each_guard_of_the_deadline_is_enough_where_it_works_at_all(guard: str) -> None:
    others = {"deadline-timer", "schedule", "guard"} - {guard}
    late = failing(*sorted(others)).get(LATE, [])
    assert len(late) < len(FEW) / 4
    for seed in late:  # named, and each with its reason
        world = World(seed)
        is_away = bool(world.weather.guard_outages) and guard == "guard"
        is_stuck = world.weather.is_sticky and guard == "schedule"
        is_frozen = world.training.trouble.frozen_share > 0 and guard == "deadline-timer"
        trouble = world.training.trouble
        never_boots = (trouble.boot_hangs > 0 or bool(trouble.young)) and guard == "deadline-timer"
        assert is_away or is_stuck or is_frozen or never_boots, f"seed {seed} is late with {guard} alone"


def test_without_any_spot_machine_a_run_ends_on_the_machines_of_the_on_demand_group() -> None:
    world = World(7, nodes=2)
    world.spec = replace(world.spec, market="spot", on_demand_after_minutes=20.0, budget_usd=100.0, hours=24.0)
    world.weather.droughts = {pool: [(BEGAN, BEGAN + 48 * 3600)] for pool in world.weather.droughts}
    world.weather.on_demand_droughts, world.training.trouble = [], Trouble()
    result = world.run()
    assert (result.ending, result.wrong) == ("finished", ())
    assert [instance.market for instance in world.cloud.instances] == ["on-demand"] * 2
    assert world.cloud.instances[0].launched - BEGAN == pytest.approx(20 * 60, abs=3 * 60)


def test_a_seed_is_the_same_every_time() -> None:
    first, second = (World(7).run() for _ in range(2))
    assert isinstance(first, Result)
    assert first == second


def test_the_command_tells_what_it_found_and_fails_where_something_is_wrong() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.simulate", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    well = run("--seeds", "3")
    assert well.returncode == 0, well.stderr
    assert "nothing wrong" in well.stdout
    assert "dollars" in well.stdout
    ill = run("--seeds", "3", *(word for guard in OUTER_GUARDS for word in ("--without", guard)))
    assert ill.returncode == 1
    assert "WRONG: alive past the deadline: 3 seeds: 0 1 2" in ill.stdout
    one = run("--seed", "1")
    assert "min  i-0 " in one.stdout
