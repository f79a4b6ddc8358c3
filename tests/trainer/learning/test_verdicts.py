"""How a process judges the others, with a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

from trainer.learning.verdicts import Judge, LastWord, Pace

PACE = Pace()


class World3:
    """Three processes as rank 0 sees them: each second all beat but those that are silent."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.judge = Judge(rank=0, size=3, place="10.0.0.1:29500", pace=PACE, clock=lambda: self.at)
        self.judge.hear({})
        self.words = {
            rank: LastWord(
                rank=rank, machine=f"10.0.0.{rank + 1}", phase="training", step=512, progress=3, batches=9,
                collectives=100,
            )
            for rank in range(3)
        }  # fmt: skip
        self.silent: set[int] = set()

    def say(self, rank: int, **changes: object) -> None:
        self.words[rank] = replace(self.words[rank], **changes)  # type: ignore[arg-type]

    def seconds(self, count: int) -> str:
        """Let time pass. Returns the message of the first verdict, or ""."""
        for _ in range(count):
            self.at += 1
            for rank in self.words.keys() - self.silent:
                self.say(rank, beat=self.words[rank].beat + 1)
            self.judge.hear(self.words)
            if (found := self.judge.verdict()) is not None:
                return found.message
        return ""


def test_a_process_is_lost_after_20_seconds_of_silence_and_not_before() -> None:
    world = World3()
    world.silent = {2}
    assert world.seconds(21) == ""  # the first of them brings its last beat
    assert world.seconds(1) == "rank 2 on 10.0.0.3 has not been heard of for 21 s; its last word was step 512, training"


def test_a_store_that_dies_between_two_beats_is_named_and_no_process_is() -> None:
    world = World3()
    world.seconds(10)
    world.at += 0.5
    world.judge.hear(world.words)  # an answer in which nobody's beat is new, and the last one
    for _ in range(40):
        world.at += 0.5
        assert all("does not answer" in one for one in world.judge.missing(0.9 * PACE.naming))
    assert world.judge.verdict() is None, "the others have been silent for 20.5 s, the store for 20"
    world.at += 0.5
    found = world.judge.verdict()
    assert found is not None
    assert found.message.startswith("the meeting point 10.0.0.1:29500 has not answered for 20 s")


def test_one_that_never_came_is_lost_too() -> None:
    world = World3()
    del world.words[1]
    assert world.seconds(30) == "rank 1 has never been heard of"


def test_a_pause_of_this_process_itself_is_nobodys_silence() -> None:
    world = World3()
    assert world.seconds(3) == ""
    world.at += 3600
    assert world.judge.verdict() is None
    world.at -= 7200
    assert world.seconds(60) == "", "nor is a clock that is set back"


def test_standstill_of_all_is_a_hang_of_the_one_that_is_behind_and_progress_of_one_is_none() -> None:
    world = World3()
    world.say(0, collectives=101)
    world.say(2, collectives=101)
    assert world.seconds(400) == ""
    world.say(1, progress=4)  # as one that prepares data for the others
    assert world.seconds(479) == ""
    assert world.seconds(10) == (
        "rank 1 on 10.0.0.2 (step 512, training) hangs: nothing has moved for 481 s, and the others wait there in "
        "collective 101; see the stacks in the store, under hangs/"
    )


def test_where_nobody_is_behind_all_hang() -> None:
    message = World3().seconds(600)
    assert message.startswith("all processes hang: nothing has moved for 481 s, and each has begun 100 collectives")


def test_one_that_waits_for_the_store_while_the_others_wait_for_it_is_no_hang() -> None:
    world = World3()
    for rank in range(3):
        world.say(rank, phase="waiting-for-store", collectives=100 + (rank > 0))
    assert world.seconds(2000) == ""
    world.say(0, collectives=101)
    assert world.seconds(600).startswith("all processes hang"), "once it waits for no store, but for the others"


def test_whoever_has_said_goodbye_is_neither_lost_nor_hung() -> None:
    world = World3()
    world.say(2, is_over=True)
    assert world.seconds(2) == ""
    world.silent = {2}
    for _ in range(20):
        world.say(0, step=world.words[0].step + 1)
        assert world.seconds(60) == ""


def test_the_verdict_of_another_is_followed_word_for_word() -> None:
    world = World3()
    world.say(1, verdict="rank 9 hangs", is_hang=True)
    assert world.seconds(1) == "rank 9 hangs"


def test_the_main_process_knows_that_others_get_on_while_it_waits() -> None:
    world = World3()
    world.seconds(30)
    assert not world.judge.others_moved(20)
    world.say(1, progress=4)
    world.seconds(1)
    assert world.judge.others_moved(20)
    world.say(0, progress=4)
    world.seconds(1)
    assert not world.judge.others_moved(20), "it gets on itself"
