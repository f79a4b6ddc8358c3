"""`python -m trainer.prepare` as a process: what it says, killed at any point, twice at once, a store that fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import PATIENCE, ROOT
from tests.emulator.s3 import FaultyProxy, Forward, refuse
from tests.images import image_folder, parquet_folder
from trainer.data.format import Copies, read_index
from trainer.data.making.prepare import prepare
from trainer.store import open_store

pytestmark = pytest.mark.slow

# Its processes are forked from one that has imported what they need, which takes longer than what they do.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "trainer.data.making.prepare", "trainer.store.s3", __name__])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_the_command_prints_where_the_shards_are_and_how_to_train_from_them(tmp_path: Path) -> None:
    done = run("--data", str(image_folder(tmp_path / "folder")), "--store", str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    where, train = done.stdout.splitlines()
    folder = Path(where.removeprefix("prepared: "))
    assert train == f"train from it: make train DATA={folder}"
    assert read_index(folder).splits["train"].images == 12
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_help_shows_every_option_quickly_and_without_the_heavy_libraries() -> None:
    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 0
    assert time.monotonic() - start < 10
    for option in (
        "--data",
        "--store",
        "--train-sides",
        "--val-sides",
        "--quality",
        "--workers",
        "--max-broken-share",
        "--secrets-dir",
    ):
        assert option in done.stdout
    assert "(default: 480 256 128)" in done.stdout


@pytest.mark.parametrize("wrong", [["--dta", "x"], ["--quality", "many"], ["--quality", "101"], ["--store", "ftp://x"]])
def test_wrong_options_exit_with_78_and_no_traceback(wrong: list[str], tmp_path: Path) -> None:
    done = run("--data", "digits", "--store", str(tmp_path), *wrong)
    assert done.returncode == 78, done.stderr
    assert wrong[0].strip("-") in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder", train=400, side=96)
    arguments = ["--data", str(folder), "--store", str(tmp_path / "store"), "--train-sides", "64", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.prepare", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "preparing" not in process.stderr.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert run(*arguments).returncode == 0


# Killed, or twice at once.


def prepare_many_shards(data: str, store: str, workers: int | str) -> None:
    """Of two copies; the command itself makes large shards only."""
    prepare(data, open_store(store), Copies((96, 48), (120,), 90), workers=int(workers), images_per_shard=20)


def many_shards(data: Path, store: str, workers: int) -> subprocess.Popen[str]:
    """It in an interpreter of its own."""
    code = f"import sys; from {__name__} import prepare_many_shards; prepare_many_shards(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(data), store, str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def forked_shards(data: Path, store: str, workers: int) -> BaseProcess:
    """It in a process that is there at once."""
    process = FORKS.Process(target=in_environment, args=(dict(os.environ), str(data), store, workers))
    process.start()
    return process


def in_environment(environ: dict[str, str], data: str, store: str, workers: int) -> None:
    os.environ.update(environ)  # the server that forks has that of its own start
    prepare_many_shards(data, store, workers)


def stored(uri: str) -> dict[str, str]:
    store = open_store(uri)
    return {info.key: hashlib.sha256(store.get(info.key)).hexdigest() for info in store.list("datasets/")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough work for a second or so: 468 images, 20 + 5 parts."""
    return image_folder(tmp_path_factory.mktemp("photos") / "photos", train=128, val=28, side=180)


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted preparation by one thread leaves."""
    store = tmp_path_factory.mktemp("expected")
    prepare_many_shards(str(photos), str(store), 1)
    return stored(str(store))


@pytest.fixture(params=["directory", "S3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty store."""
    if request.param == "S3":
        return str(request.getfixturevalue("s3_uri"))
    (tmp_path / "store").mkdir()
    return str(tmp_path / "store")


def test_killed_at_any_point_it_continues_to_the_same_bytes(place: str, photos: Path, expected: dict[str, str]) -> None:
    kept, store = set[str](), open_store(place)
    for workers in (1, 2, 3):
        process = forked_shards(photos, place, workers)
        while process.is_alive() and len(list(store.list("datasets/"))) <= len(kept):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.08))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "no work was left: give it more images"
        now = {key for key, digest in stored(place).items() if expected[key] == digest}
        assert now == set(stored(place)), "half a shard, or another one"
        assert now >= kept
        kept = now
    last = forked_shards(photos, place, 2)
    last.join(60)
    assert last.exitcode == 0
    assert stored(place) == expected


def test_two_at_once_into_one_place_both_end_well_with_the_same_bytes(
    place: str, photos: Path, expected: dict[str, str]
) -> None:
    both = [forked_shards(photos, place, workers) for workers in (1, 2)]
    for process in both:
        process.join(90)
        assert process.exitcode == 0
    assert stored(place) == expected


# A store that fails.


def pass_on(forward: Forward) -> tuple[int, dict[str, str], bytes]:
    return forward()


def arguments_for(folder: Path, store: str) -> Sequence[str]:
    return "--data", str(image_folder(folder)), "--store", store, "--train-sides", "32", "16", "--val-sides", "32"


def test_s3_that_fails_now_and_then_is_asked_again(tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy) -> None:
    arguments = arguments_for(tmp_path / "images", s3_uri)
    s3_proxy.plan("PUT", pass_on, refuse(503, "SlowDown"), pass_on, refuse(500, "InternalError"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert not s3_proxy.faults["PUT"]


def test_s3_that_keeps_failing_ends_with_1_and_the_shards_so_far_are_kept(
    tmp_path: Path, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    arguments = arguments_for(tmp_path / "images", s3_uri)
    # The probe, a shard and the file beside it, then no more.
    s3_proxy.plan("PUT", pass_on, pass_on, pass_on, *[refuse(503, "SlowDown")] * 20)
    failed = run(*arguments)
    assert failed.returncode == 1, failed.stderr
    assert "train-16px-00000.arrow: SlowDown" in failed.stderr
    assert "the shards written so far are kept, run the same command again" in failed.stderr
    assert "Traceback" not in failed.stderr
    kept = {key: digest for key, digest in stored(s3_uri).items() if key.endswith(".arrow")}
    assert [Path(key).name for key in kept] == ["train-32px-00000.arrow"]
    s3_proxy.faults.clear()
    s3_proxy.requests.clear()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    asked = [request.split()[0] for request in s3_proxy.requests if request.endswith("train-32px-00000.arrow")]
    assert set(asked) == {"HEAD"}  # neither written nor downloaded again
    assert kept.items() < stored(s3_uri).items()


@pytest.fixture
def hanging_put(s3_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """S3 takes a shard and does not answer: longer than the client waits for it, several times."""
    end = threading.Event()

    def no_answer(forward: object) -> None:
        end.wait(PATIENCE)

    s3_proxy.plan("PUT", *[no_answer] * 10)
    yield s3_proxy
    end.set()


def until_put(process: subprocess.Popen[str], proxy: FaultyProxy) -> None:
    while process.poll() is None and not any(request.startswith("PUT") for request in proxy.requests):
        time.sleep(0.01)


def test_ctrl_c_ends_at_once_while_a_shard_is_on_its_way_to_a_slow_store(
    photos: Path, s3_uri: str, hanging_put: FaultyProxy
) -> None:
    process = many_shards(photos, s3_uri, 2)
    until_put(process, hanging_put)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)  # of the 60 that the store takes
    assert process.returncode == -signal.SIGINT
    assert said.endswith("KeyboardInterrupt\n")


def test_an_error_ends_at_once_while_a_shard_is_on_its_way_to_a_slow_store(
    tmp_path: Path, s3_uri: str, hanging_put: FaultyProxy
) -> None:
    data = parquet_folder(tmp_path / "data", train=40)  # one part, and the damaged one
    file = data / "data" / "train-00001-of-00002.parquet"
    body = file.read_bytes()
    file.write_bytes(body[:4] + bytes(36) + body[40:])  # the head of the first image page
    process = many_shards(data, s3_uri, 2)
    until_put(process, hanging_put)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "train-00001-of-00002.parquet is damaged in row group 0" in said


def test_a_disk_that_is_full_ends_with_78_and_with_room_the_same_command_continues(tmp_path: Path) -> None:
    arguments = arguments_for(tmp_path / "images", str(tmp_path / "store"))
    limit = 10_000  # bytes that a file may have: less than the large shard needs
    command = [sys.executable, "-m", "trainer.prepare", *arguments]
    full = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert full.returncode == 78, full.stderr
    assert "train-32px-00000.arrow: File too large; free disk space (or quota)" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "store").rglob("*.arrow"))
    assert run(*arguments).returncode == 0
