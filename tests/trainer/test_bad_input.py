"""What users get wrong: one clear message with value, rule and fix, exit code 78, and no work is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.emulator.s3 import FaultyProxy, refuse
from tests.images import CLASSES, image_folder
from tests.runs import NETWORK, QUICK, Run
from trainer.contract import Exit, RefusedError, RunEnv, UserError
from trainer.learning.world import join
from trainer.process.channel import attempt_dir
from trainer.process.interruption import Interruption
from trainer.recipes.command_line import command_line
from trainer.setup import check_room
from trainer.store import open_store
from trainer.train import train

NewRun = Callable[..., Run]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit"], ["'digit' is unknown", "digits, finetune"]),
        (["digits", "--epoch", "3"], ["--epoch", "digits --help"]),
        (["digits", "--epochs", "many"], ["many", "--epochs"]),
        (["digits", "--optim.pct-start", "1.5"], ["--optim.pct-start is 1.5", "between 0 and 1"]),
        (["digits", "--device-batch-size", "48"], ["global_batch_size=32", "48", "--device-batch-size"]),
        ([], ["digits", "--help"]),
    ],
)
@pytest.mark.parametrize("module", ["trainer.process.supervise", "trainer.train"])
def test_a_mistyped_command_is_refused_before_anything_is_touched(
    module: str, arguments: list[str], said: list[str], new_run: NewRun
) -> None:
    run = new_run()
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=run.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == Exit.USER
    for words in said:
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not run.stored()
    assert not run.local().exists()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TRAINER_RUN_ID": "My Run"}, ["TRAINER_RUN_ID='My Run'", "lower case"]),
        ({"TRAINER_STORE": "s3:/bucket"}, ["s3:/bucket"]),
        ({"TRAINER_STORE": "/dev/null/store"}, ["/dev/null/store"]),
        ({"TRAINER_SCRATCH_DIR": "/dev/null/scratch"}, ["TRAINER_SCRATCH_DIR='/dev/null/scratch'", "SCRATCH="]),
    ],
)
def test_a_place_that_cannot_be_used_is_found_at_the_start(
    environ: dict[str, str], said: list[str], new_run: NewRun
) -> None:
    run = new_run()
    assert run.run(**environ) == Exit.USER
    for words in said:
        assert words in run.output
    assert "Traceback" not in run.output


def test_a_bucket_that_is_missing_is_found_by_the_probe(new_run: NewRun, aws_environ: dict[str, str]) -> None:
    run = new_run()
    assert run.run(TRAINER_STORE="s3://no-such-bucket-here/x", **aws_environ) == Exit.USER
    assert "no-such-bucket-here" in run.output
    assert "Traceback" not in run.output


def test_a_bucket_that_lets_nobody_put_is_found_at_the_start_and_not_after_an_hour(
    new_run: NewRun, s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    s3_proxy.plan("PUT", *[refuse(403, "AccessDenied")] * 20)
    run = new_run(s3_uri, **aws_variables())
    assert run.run() == Exit.USER, run.output
    assert "allow the role or user to list, get and put there" in run.output
    assert "Traceback" not in run.output
    assert not run.stored()


def aws_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.mark.parametrize("prefix", ["runs", "checkpoints"])
def test_a_run_directory_that_is_something_else_is_found_at_the_start(
    prefix: str, new_run: NewRun, tmp_path: Path
) -> None:
    run = new_run()
    (tmp_path / "store" / prefix).mkdir()
    (tmp_path / "store" / prefix / "quick").write_text("somebody's notes")
    assert run.run() == Exit.USER, run.output
    assert str(tmp_path / "store" / prefix / "quick") in run.output
    assert "something on this path is a file" in run.output


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., UserError]]:
    """What the trainer refuses before its first step, said in this process: starting another takes seconds."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers, precision = [signal.getsignal(number) for number in numbers], torch.get_float32_matmul_precision()

    def refuse_to_train(run: Run, *arguments: str) -> UserError:
        for name, value in run.environ.items():
            monkeypatch.setenv(name, value)
        env = RunEnv.from_environ(run.environ | {RunEnv.variable("attempt"): "1"})
        attempt_dir(env).mkdir(parents=True, exist_ok=True)
        config = command_line("python -m trainer.train", arguments)
        with join(config) as world, pytest.raises(UserError) as error:
            train(config, env, world, Interruption())
        return error.value

    yield refuse_to_train
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--global-batch-size", "8192"], ["--global-batch-size 8192", "1438 training images"]),
        (["--model.num-classes", "7"], ["--model.num-classes is 7", "has 10 classes", "--model.num-classes 10"]),
        (["--device", "cuda"], ["'digits' needs a GPU", "this machine has none", "--device cpu"]),
        (["--model.weights", "/no/such/weights.pth"], ["--model.weights '/no/such/weights.pth' cannot be read"]),
    ],
)
def test_a_config_that_cannot_work_stops_before_the_first_step_with_the_rule_and_the_fix(
    options: list[str], said: list[str], new_run: NewRun, refusal: Callable[..., UserError]
) -> None:
    error = refusal(new_run(), *QUICK, *options)
    for words in said:
        assert words in str(error)
    assert not isinstance(error, RefusedError), "it is the run that failed, not a second command for it"


def test_data_in_a_bucket_that_is_missing_is_named_with_the_fix(
    new_run: NewRun, refusal: Callable[..., UserError], aws_environ: dict[str, str]
) -> None:
    data = "s3://no-such-bucket-here/datasets/x/1"
    assert "no-such-bucket-here" in str(refusal(new_run(TRAINER_DATA=data, **aws_environ), *QUICK))


def test_a_loss_that_is_not_finite_stops_with_the_rule_and_the_fix(new_run: NewRun) -> None:
    run = new_run()
    assert run.run(*QUICK, "--optim.peak-lr", "1e30", "--log-every-steps", "1") == Exit.USER, run.output
    assert re.search(r"the loss of step \d+ is (nan|inf)", run.output)
    for words in ("finite", "--optim.peak-lr"):
        assert words in run.output
    assert "Traceback" not in run.output
    assert run.json("failed.json")["exit"] == Exit.USER
    assert run.json("failed.json")["message"] in run.output


def test_after_a_mistake_that_was_found_late_the_corrected_command_may_use_the_same_name(new_run: NewRun) -> None:
    run = new_run()
    assert run.run(*QUICK, "--model.weights", "/no/such/weights.pth") == Exit.USER
    assert "'/no/such/weights.pth'" in run.output
    assert "Traceback" not in run.output
    assert run.json("failed.json")["message"] in run.output
    assert run.run(*QUICK, "--epochs", "1") == Exit.FINISHED, run.output


def test_a_run_id_that_has_another_config_or_other_data_is_refused_and_keeps_its_work(
    new_run: NewRun, refusal: Callable[..., UserError], tmp_path: Path
) -> None:
    data = image_folder(tmp_path / "images", train=6)
    options = ("digits", "--model.name", NETWORK, "--model.num-classes", str(len(CLASSES)), "--global-batch-size", "6",
               "--device-batch-size", "6", "--epochs", "1000")  # fmt: skip
    run = new_run(TRAINER_DATA=str(data))
    run.start(*options).until_step(2)
    assert run.stop() == Exit.INTERRUPTED, run.output
    checkpoint = run.manifest()

    error = refusal(run, *options, "--optim.peak-lr", "0.5")
    assert isinstance(error, RefusedError)
    assert "optim.peak_lr: 0.02 -> 0.5" in str(error)
    assert "RUN=another-name" in str(error)

    other = image_folder(tmp_path / "other", train=7)
    assert run.run(*options, TRAINER_DATA=str(other)) == Exit.USER, run.output
    assert "name the same data" in run.output
    assert not any(key.endswith("failed.json") for key in run.stored()), "the run is fine, the command was not"
    assert run.manifest() == checkpoint

    asked = ("--optim.peak-lr", "0.5", "--checkpoint.accept-changes")
    run.start(*options, *asked, "--data.workers", "1").until_step(checkpoint["step"] + 1)
    assert run.stop() == Exit.INTERRUPTED, "what is asked for may change, and an operational option always"
    assert f"continuing run 'quick' from step {checkpoint['step']}" in run.output
    assert "with another config, as asked for: optim.peak_lr: 0.02 -> 0.5" in run.output
    assert run.manifest()["config"]["optim"]["peak_lr"] == run.json("config.json")["optim"]["peak_lr"] == 0.5


def test_a_folder_without_room_for_the_checkpoints_is_refused_at_the_start(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    free = store.free_bytes()
    assert free is not None
    check_room(store, "quick", free // 8)
    with pytest.raises(RefusedError, match=r"free: 4 checkpoints of .* must fit; free disk space, or name a folder"):
        check_room(store, "quick", free // 2)
