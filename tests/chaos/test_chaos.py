"""A short, seeded slice of `make chaos`: real processes, real SIGKILLs, a proxy that harms what passes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import faults, kills, mutations, races
from tests.chaos.lab import Case, Lab, WrongError, open_lab, wait_for
from tests.chaos.tally import Tally, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str, aws_environ: dict[str, str]) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("chaos"), s3_endpoint, aws_environ) as made:
        yield made


# From the claim to the tags of what is superseded, before and after the call, of all victims.
@pytest.mark.parametrize("seed", [90, 126, 145, 152, 160])
def test_killed_at_a_call_to_the_store_nothing_is_lost_and_nothing_is_left(lab: Lab, seed: int) -> None:
    assert kills.kill_calls(lab, seed).injected == 1


@pytest.mark.parametrize("seed", [2, 4, 5])
def test_killed_at_a_random_time_of_a_commit_to_a_folder_nothing_is_lost(lab: Lab, seed: int) -> None:
    kills.kill_folder(lab, seed)


def test_no_changed_byte_is_loaded_in_silence(lab: Lab) -> None:
    loaded = [mutations.mutation(lab, seed).notes.get("loaded") for seed in range(20)]
    assert 1.0 in loaded, "where one checkpoint is damaged, another one can be read"


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("expired-token", "put-manifest"), ("black-hole", "put-lease"), ("lost-answer", "put-lease")],
)
def test_training_goes_on_through_a_fault_of_the_store_and_is_durable_soon_after(
    lab: Lab, kind: str, operation: str
) -> None:
    assert faults.fault(lab, faults.PAIRS.index((kind, operation))).injected > 0


def test_a_start_during_an_outage_never_begins_anew(lab: Lab) -> None:
    faults.fault(lab, faults.PAIRS.index(("500", "start")))


def test_of_two_trainers_that_start_at_once_exactly_one_trains(lab: Lab) -> None:
    races.race(lab, 1)


def test_an_owner_that_wakes_after_its_lease_commits_no_more(lab: Lab) -> None:
    races.sleeper(lab, 0)


def test_a_verdict_is_not_passed_by_what_is_wrong(lab: Lab) -> None:
    """The harness itself: a store whose newest checkpoint was removed by hand is noticed as a loss."""
    lab.new_try(s3=False)
    attempt = lab.start(last_step=4, lockstep=True)
    assert attempt.wait() == 0
    for path in Path(lab.uri).rglob("step-00000004*"):
        path.unlink()
    with pytest.raises(WrongError, match="lost: step 4 was acknowledged, step 3 is what can be read"):
        kills.verdict(lab, attempt, numbers=20_000, other_machine=False)


def test_the_tally_goes_on_where_it_was_and_keeps_wrong_cases_with_their_seed(tmp_path: Path) -> None:
    for seed in range(3):
        tally = Tally(tmp_path / "chaos.json")
        tally.begin()
        tally.add("races", seed, Case(wrong="lost: a step" if seed == 1 else "", notes={"seconds": seed}), 1.0)
    again = Tally(tmp_path / "chaos.json")
    assert again.of("races")["tries"] == 3
    assert again.of("races")["cases"] == [{"seed": 1, "wrong": "lost: a step"}]
    line = table(again, {"races": 100}).splitlines()[1]
    assert line.split()[:5] == ["races", "3/100", "3", "0", "1"]
    assert "seconds p50 1 p95 2 max 2" in line


def test_a_lab_leaves_no_process_behind(tmp_path: Path, s3_endpoint: str, aws_environ: dict[str, str]) -> None:
    with open_lab(tmp_path, s3_endpoint, aws_environ) as lab:
        lab.new_try(s3=False)
        attempt = lab.start(last_step=100_000)
        wait_for(lambda: attempt.events("saved"), 30, "a save")
        pids = attempt.pids()
        assert set(pids) == {"supervisor", "uploader", "trainer"}
    wait_for(lambda: not any(kills.is_alive(pid) for pid in pids.values()), 5, "the end of all processes")
