"""The same training by 1 to 8 processes: losses, images, weights. With momentum, dropout, mixup and CutMix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.learning.made_worlds import CONFIG, ROUNDED, STEPS, TOGETHER, TWICE, Group, Part, train_together
from trainer.learning.world import World, wrap

HALF, LATER = 20, 35
KEPT = (HALF, STEPS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all trainings leave their files in."""
    folder = tmp_path_factory.mktemp("worlds")
    for group in (
        Group(size=1, parts=[Part(name="one"), Part(name="twice", config=TWICE)], scored="one"),
        Group(size=8, scored="one", on_each=2, parts=[
            Part(name="eight", keep=KEPT), Part(name="eight-again", start="eight", first=HALF, look_every=7),
        ]),
        Group(size=4, scored="one", on_each=2, parts=[
            Part(name="four"), Part(name="shrunk", start="eight", first=HALF, last=LATER, keep=(LATER,)),
        ]),
        Group(size=2, scored="one", parts=[
            Part(name="together", config=TOGETHER), Part(name="rounded", config=ROUNDED),
            Part(name="two"),
        ]),
        Group(size=8, on_each=4, head=1, parts=[
            Part(name="grown", start="shrunk", first=LATER), Part(name="eight-moved", start="eight", first=HALF),
        ]),
        Group(size=3, scored="one", parts=[
            Part(name="three", keep=KEPT), Part(name="three-again", start="three", first=HALF, look_every=7),
        ]),
    ):  # fmt: skip
        train_together(folder, group)
    return folder


def left(folder: Path, part: str) -> list[dict[str, Any]]:
    """What each process of a part left, by rank."""
    count = len(list(folder.glob(f"{part}.[0-9].json")))
    return [json.loads((folder / f"{part}.{rank}.json").read_text()) for rank in range(count)]


def losses(folder: Path, part: str) -> dict[int, float]:
    every = [{int(step): loss for step, loss in one["losses"].items()} for one in left(folder, part)]
    assert all(one == every[0] for one in every), "each process reads the same sums"
    return every[0]


def images(folder: Path, part: str) -> list[list[int]]:
    """The micro-batches of all processes, by their number."""
    count, ranks = CONFIG.micro_batches, [iter(one["images"]) for one in left(folder, part)]
    steps = len(losses(folder, part))
    ordered = [next(ranks[number % len(ranks)]) for _ in range(steps) for number in range(count)]
    assert all(not list(rank) for rank in ranks)
    return ordered


@pytest.mark.parametrize("name", ["two", "three", "four", "eight"])
def test_any_number_of_processes_has_the_losses_and_the_images_of_one(found: Path, name: str) -> None:
    one, several = losses(found, "one"), losses(found, name)
    assert sorted(several) == sorted(one) == list(range(1, STEPS + 1))
    worst = max(abs(several[step] - loss) / loss for step, loss in one.items())
    assert worst <= 1e-5
    assert one[STEPS] < 0.9 * one[1], "it has learned something in between"
    assert images(found, name) == images(found, "one")


def test_8_processes_that_become_4_and_8_again_go_on_with_the_same_images_and_losses(found: Path) -> None:
    one, changed = losses(found, "one"), losses(found, "shrunk") | losses(found, "grown")
    assert sorted(changed) == list(range(HALF + 1, STEPS + 1))
    assert max(abs(loss - one[step]) / one[step] for step, loss in changed.items()) <= 1e-5
    expected = images(found, "one")[HALF * CONFIG.micro_batches :]
    assert images(found, "shrunk") + images(found, "grown") == expected


@pytest.mark.parametrize("name", ["three-again", "eight-again", "eight-moved"])
def test_at_the_same_number_of_processes_a_continued_run_has_every_bit_of_one_that_was_not_interrupted(
    found: Path, name: str
) -> None:
    """Also where another machine owns the run, as in `eight-moved`."""
    whole = name.split("-")[0]
    expected, tensors = (torch.load(found / f"{part}.{STEPS}.pt") for part in (whole, name))
    assert expected.keys() == tensors.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, tensors[key]), key
    before = losses(found, whole)
    assert losses(found, name) == {step: before[step] for step in range(HALF + 1, STEPS + 1)}


def test_the_main_process_is_on_the_machine_that_owns_the_run(found: Path) -> None:
    assert [one["rank"] for one in left(found, "four")] == ["0", "1", "2", "3"]
    assert [one["rank"] for one in left(found, "grown")] == ["4", "5", "6", "7", "0", "1", "2", "3"]
    assert {one["nodes"] for one in left(found, "grown")} == {2}
    assert {one["nodes"] for one in left(found, "three")} == {1}


def test_every_number_of_processes_scores_each_image_once(found: Path) -> None:
    """Of 7 images, in batches of 2."""
    (one,) = left(found, "scores.1")
    for size in (2, 3, 4, 8):
        for scores in left(found, f"scores.{size}"):
            assert scores["val/top1"] == one["val/top1"]
            assert scores["val/top5"] == one["val/top5"]
            assert scores["val/loss"] == pytest.approx(one["val/loss"], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_what_one_process_wants_all_hear_of_in_the_same_round(found: Path, size: int) -> None:
    for rank in range(size):
        heard = json.loads((found / f"wishes.{size}.{rank}.json").read_text())
        assert heard == [[True, False]] * (size + 1)


SIZES = (2, 3, 4, 8)  # of two processes on each machine: a, b, c, d


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fact", ["--seed", "code", "torch", "device", "image", "data", "one process of the last"])
def test_a_machine_that_differs_from_the_leading_one_is_refused_and_the_others_go_on(
    found: Path, size: int, fact: str
) -> None:
    for rank in range(size):
        told = json.loads((found / f"differ.{size}.{rank}.json").read_text())
        assert "nothing" not in told
        if size == 2:
            assert (fact in told) == (fact == "one process of the last"), "there is one machine, whose own differ"
            continue
        kind, said = told[fact]
        wrong = "bcd"[: (size - 1) // 2] if fact == "--seed" else "abcd"[(size - 1) // 2]
        assert said.startswith("the processes of this run would not train the same. ")
        if "abcd"[rank // 2] in wrong:
            assert (kind, "a leads the run: give this machine" in said) == ("RefusedError", True)
        else:
            assert (kind, said.endswith(f"goes on without {', '.join(wrong)}, since a leads it")) == (
                "LostPartnerError",
                True,
            )
        name = "--seed" if fact.startswith("one") else fact
        assert said.count(f" {name}: ") == 1
        assert said.count("rank ") == size, "nothing else differs"
        assert f"rank {size - 1} on {'abcd'[(size - 1) // 2]}" in said


@pytest.mark.parametrize("size", SIZES)
def test_a_leading_machine_whose_own_processes_differ_ends_all(found: Path, size: int) -> None:
    for rank in range(size):
        kind, said = json.loads((found / f"differ.{size}.{rank}.json").read_text())["the leader's own"]
        assert kind == "RefusedError"
        assert said.endswith("Give every machine the same code, options, data and kind of GPU, and start again")
        assert "--seed: 0 (rank 0 on a" in said


def test_norms_of_two_processes_together_are_those_of_one_micro_batch_of_twice_the_size(found: Path) -> None:
    one, two = losses(found, "twice"), losses(found, "together")
    assert max(abs(two[step] - loss) / loss for step, loss in one.items()) <= 1e-5
    ours, theirs = (torch.load(found / f"{part}.{STEPS}.pt") for part in ("together", "twice"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)  # rounding adds up over the steps
    alone = losses(found, "two")
    assert abs(two[1] - alone[1]) / alone[1] > 1e-4, "each alone finds other statistics"


def test_gradients_in_bf16_change_the_losses_by_their_rounding_and_all_processes_alike(found: Path) -> None:
    exact, rounded = losses(found, "two"), losses(found, "rounded")
    assert rounded[1] == exact[1], "the first loss comes before the first exchange"
    assert 1e-6 < max(abs(rounded[step] - loss) / loss for step, loss in exact.items()) < 0.05


@pytest.mark.parametrize("name", ["two", "three", "four", "eight"])
def test_a_step_of_several_micro_batches_exchanges_its_gradients_once_and_nothing_else(found: Path, name: str) -> None:
    """No buffers either. The gradients lie in the one bucket that was exchanged, and not beside it once more."""
    for one in left(found, name):
        assert one["exchanges"][1:] == [1] * (STEPS - 1)  # the first one settles the order of the buckets, too
        assert one["storages"] == [1]


def test_one_process_trains_the_bare_network(found: Path) -> None:
    """Nothing of DistributedDataParallel is in its way, so it costs nothing."""
    net = nn.Linear(2, 2)
    assert wrap(net, World(0, 0, 1, torch.device("cpu"))) is net
    assert [one["layers"] for one in left(found, "one")] == ["Forward"]
    assert [one["layers"] for one in left(found, "two")] == ["DistributedDataParallel"] * 2
