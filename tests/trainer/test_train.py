"""Whole runs, from the command to what lies in the store: the promises of the README, kept by real processes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import PATIENCE
from tests.images import CLASSES, image_folder, parquet_folder
from tests.runs import NETWORK, QUICK, QUICK_STEPS, Run, is_pending
from tests.trainer.rows import learned, merged
from trainer.contract import Exit, Phase
from trainer.telemetry.samples import alerts_of, read_samples

NewRun = Callable[..., Run]


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Run:
    """The quick run, uninterrupted, in deterministic mode: what the others are compared with."""
    from trainer.store import open_store

    folder = tmp_path_factory.mktemp("whole")
    environ = os.environ | {
        "TRAINER_STORE": str(folder / "store"), "TRAINER_RUN_ID": "quick", "TRAINER_DATA": str(digits_folder),
        "TRAINER_SCRATCH_DIR": str(folder / "scratch"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    run = Run(folder, dict(environ), open_store(str(folder / "store")))
    assert run.run(*QUICK, "--deterministic") == Exit.FINISHED, run.output
    return run


def test_a_run_leaves_everything_that_the_key_table_names(whole: Run) -> None:
    keys = whole.stored()
    for file in (
        "spec.json", "config.json", "attempts/1.json", "heartbeat.json", "result.json", "done.json", "report/index.html"
    ):  # fmt: skip
        assert f"runs/quick/{file}" in keys
    assert any(re.fullmatch(r"runs/quick/metrics/1/\d{8}-\d{8}\.jsonl", key) for key in keys)
    assert any("/tensorboard/1/events.out.tfevents." in key for key in keys)
    assert any(re.fullmatch(r"checkpoints/quick/manifest/step-00000010\.1\.json", key) for key in keys)
    told = [row["kind"] for row in alerts_of(read_samples(whole.store, "quick"))]
    assert (told[0], told[-1]) == ("started", "finished")
    observed = whole.json("heartbeat.json")["observed"]
    assert [alert["kind"] for alert in observed["alerts"]] == told
    assert observed["sample"]["process/observer_cores"] >= 0
    attempt = whole.json("attempts/1.json")
    assert attempt["exit"] == 0
    assert attempt["ended"] > attempt["started"]
    assert whole.json("spec.json")["arguments"] == [*QUICK, "--deterministic"]


def test_every_step_has_its_metrics_and_the_result_is_that_of_the_last_validation(whole: Run) -> None:
    steps = merged(learned(whole.metrics()))
    assert sorted(steps) == list(range(1, QUICK_STEPS + 1))
    for step in steps.values():
        assert {"train/loss", "train/top1", "train/top5", "train/lr", "train/epoch"} <= set(step)
    for epoch_end in (5, 10):
        assert {"val/loss", "val/top1", "val/top5", "val_ema/top1"} <= set(steps[epoch_end])
    result = whole.json("result.json")
    assert result["last"]["val/top1"] == steps[10]["val/top1"]
    assert result["best"]["top1"] == max(steps[s][f"{name}/top1"] for s in (5, 10) for name in ("val", "val_ema"))
    assert result["steps"] == QUICK_STEPS
    assert whole.json("done.json")["result"] == result
    assert whole.manifest()["steps_per_epoch"] == result["steps_per_epoch"] == 5
    assert result["checkpoint"] == "checkpoints/quick/manifest/step-00000010.1.json"


def test_the_tensorboard_events_say_what_the_json_lines_say(whole: Run) -> None:
    from tensorboardX.proto.event_pb2 import Event

    found: dict[tuple[str, int], float] = {}
    for info in whole.store.list("runs/quick/tensorboard/"):
        body, at = whole.store.get(info.key), 0
        while at < len(body):  # records: length, its checksum, the event, its checksum
            size = int.from_bytes(body[at : at + 8], "little")
            event = Event.FromString(body[at + 12 : at + 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 16 + size
    for row in learned(whole.metrics()):
        for name in ("train/loss", "val/top1"):
            if name in row:
                assert found[name, row["step"]] == pytest.approx(row[name], rel=1e-6)


def test_what_is_printed_off_a_terminal_has_no_control_characters_and_a_line_per_log_event(whole: Run) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", whole.output), repr(whole.output)
    assert re.search(r"^epoch 2 validated: top-1 \d+\.\d\d %", whole.output, re.MULTILINE)
    for path in ("manifest/step-00000010.1.json", "runs/quick/metrics", "runs/quick/report/index.html"):
        assert path in whole.output


def test_a_finished_run_shows_its_result_again_and_does_not_train(whole: Run) -> None:
    before = whole.stored()
    assert whole.run(*QUICK, "--deterministic") == Exit.FINISHED
    assert "is finished already" in whole.output
    assert "top-1" in whole.output
    assert whole.stored() == before


def test_interrupted_on_s3_and_continued_with_other_workers_it_ends_bit_for_bit_the_same(
    whole: Run, new_run: NewRun, s3_uri: str
) -> None:
    run = new_run(s3_uri, **{name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    workers = run.start(*QUICK, "--deterministic", "--log-every-steps", "1").hold(Phase.TRAINING, step=3)
    run.interrupt(workers, signal.SIGINT)
    assert run.wait() == Exit.INTERRUPTED, run.output
    first = run.manifest()
    assert 3 <= first["step"] < QUICK_STEPS
    assert f"step {first['step']} of 10 is saved" in run.output
    assert run.json("attempts/1.json")["exit"] == Exit.INTERRUPTED
    assert run.run(*QUICK, "--deterministic", "--data.workers", "5") == Exit.FINISHED, run.output
    assert f"continuing run 'quick' from step {first['step']} of 10" in run.output
    expected, found = whole.tensors(), run.tensors()
    assert expected.keys() == found.keys()
    assert {"model.fc.weight", "ema.conv1.1.running_mean", "momentum.fc.weight"} <= expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert merged(learned(run.metrics())) == merged(learned(whole.metrics()))
    done = run.json("done.json")
    assert (done["attempt"], done["result"], done["first"]) == (2, run.json("result.json"), run.json("attempts/1.json"))


def test_a_killed_trainer_and_a_dead_uploader_are_crashes_and_the_next_start_goes_on(new_run: NewRun) -> None:
    run = new_run()
    command = (*QUICK, "--epochs", "40", "--log-every-steps", "1", "--checkpoint.every-seconds", "0.01")

    def a_checkpoint() -> bool:
        return any("/manifest/" in key for key in run.stored())

    run.start(*command).until(a_checkpoint)
    os.kill(run.worker(), signal.SIGKILL)
    code = run.wait()
    assert code not in list(Exit), run.output
    assert run.json("attempts/1.json")["exit"] == code
    saved = run.manifest()["step"]
    assert saved > 0

    run.start(*command).until_step(saved + 1)
    os.kill(run.uploader(), signal.SIGKILL)
    assert run.wait(timeout=PATIENCE) not in list(Exit), run.output
    assert f"continuing run 'quick' from step {saved} of 200" in run.output
    assert "the uploader has died" in run.output
    assert "Traceback" not in run.output
    saved = run.manifest()["step"]

    run.start(*command).until_step(saved + 2)
    assert run.stop() == Exit.INTERRUPTED, run.output
    assert f"continuing run 'quick' from step {saved} of 200" in run.output
    assert sorted(merged(learned(run.metrics()))) == list(range(1, run.manifest()["step"] + 1))


def test_a_second_ctrl_c_leaves_at_once_even_if_the_trainer_hangs(new_run: NewRun) -> None:
    run = new_run()
    (worker,) = run.start(*QUICK, "--epochs", "500").hold(Phase.TRAINING, step=1)

    def the_first() -> bool:
        return is_pending(worker, signal.SIGTERM)

    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    run.until(the_first)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) not in (Exit.FINISHED, Exit.INTERRUPTED)
    assert "leaving at once" in run.output
    assert has_ended(worker)


def test_ctrl_c_before_training_began_is_an_interruption(new_run: NewRun) -> None:
    run = new_run().start()

    def the_attempt() -> bool:
        return any("/attempts/" in key for key in run.stored())

    run.until(the_attempt)
    assert run.stop(signal.SIGTERM) == Exit.INTERRUPTED, run.output


def test_ctrl_c_while_torch_is_loading_leaves_no_process_behind(new_run: NewRun) -> None:
    run = new_run().start()
    run.until(run.workers)
    worker = run.worker()
    assert run.stop(signal.SIGINT) == Exit.INTERRUPTED, run.output
    assert has_ended(worker)


def test_two_processes_make_one_run_and_stop_together_in_the_last_validation_which_is_not_the_end(
    whole: Run, new_run: NewRun
) -> None:
    run, command = new_run(), (*QUICK, "--deterministic")
    run.start(*command, "--val-batch-size", "1", PET_NPROC_PER_NODE="2")
    workers = run.hold(Phase.EVALUATING, step=QUICK_STEPS)
    assert len(workers) == 2
    run.interrupt(workers, signal.SIGTERM)
    assert run.wait() == Exit.INTERRUPTED, run.output
    assert run.output.count("epoch 1 validated") == 1
    assert not any(key.endswith(("done.json", "result.json")) for key in run.stored())
    assert run.manifest()["step"] == QUICK_STEPS

    assert run.run(*command, "--val-batch-size", "1") == Exit.FINISHED, run.output
    assert run.output.count("epoch 2 validated") == 1
    assert run.json("result.json")["last"]["val/top1"] > 0
    ours, theirs = merged(learned(whole.metrics())), merged(learned(run.metrics()))
    assert sorted(theirs) == sorted(ours)
    # BatchNorm sees 64 images in either case, so only the order of additions differs before the first update
    assert theirs[1]["train/loss"] == pytest.approx(ours[1]["train/loss"], rel=1e-4)
    assert theirs[1]["train/top1"] == ours[1]["train/top1"]


def test_killed_again_and_again_with_other_workers_each_time_it_ends_bit_for_bit_the_same(
    new_run: NewRun, tmp_path: Path
) -> None:
    """With all that has a state of its own: accumulation, mixing, erasing, growing images, the average.

    From an image folder, which the first start prepares. test_resume.py has the other precisions, in one process.
    """
    data = str(image_folder(tmp_path / "images", train=8))
    options = (
        "digits", "--model.name", NETWORK, "--deterministic", "--epochs", "8",
        "--checkpoint.every-seconds", "0.01", "--log-every-steps", "1",
        "--regularize.mixup-alpha", "0.2", "--regularize.cutmix-alpha", "1", "--regularize.augment", "trivial",
        "--regularize.erasing-probability", "0.3", "--regularize.ema-decay", "0.9", "--val-every-epochs", "2",
        "--data.resolution", "48", "--data.ramp-end-epoch", "3", "--data.resolution-multiple", "16",
        "--global-batch-size", "8", "--device-batch-size", "4", "--model.num-classes", str(len(CLASSES)),
    )  # fmt: skip
    whole = new_run(run_id="whole", TRAINER_DATA=data)
    assert whole.run(*options) == Exit.FINISHED, whole.output
    steps = whole.json("result.json")["steps"]
    run = new_run(run_id="killed", TRAINER_DATA=data)

    def a_checkpoint() -> bool:
        return run.lease().newest != "" and run.manifest()["step"] > 4

    run.start(*options, "--data.workers", "1").until_step(4)
    run.kill_everything()  # wherever the saving is
    run.start(*options, "--data.workers", "3").hold(Phase.TRAINING, step=steps // 2)
    run.until(a_checkpoint)
    run.kill_everything()
    saved = run.manifest()["step"]
    assert run.run(*options, "--data.workers", "4") == Exit.FINISHED, run.output
    continued = re.search(rf"continuing run 'killed' from step (\d+) of {steps}", run.output)
    assert continued is not None, run.output
    assert int(continued[1]) >= saved  # or from one that was whole in the store, and not yet named by HEAD.json
    expected, found = whole.tensors(), run.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert merged(learned(run.metrics())) == merged(learned(whole.metrics()))
    assert [row["step"] for row in run.metrics() if "train/loss" in row] == list(range(1, steps + 1))


def test_torch_compile_is_an_option_of_the_same_loop(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(TRAINER_DATA=str(image_folder(tmp_path / "images")), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    options = ("--compile", "--epochs", "1", "--global-batch-size", "4", "--device-batch-size", "4",
               "--model.num-classes", str(len(CLASSES)))  # fmt: skip
    assert run.start("digits", *options).wait(timeout=PATIENCE) == Exit.FINISHED, run.output
    assert "model.fc.weight" in run.tensors(), "the raw module's names, not the compiled one's"


def test_it_trains_from_parquet_files_of_the_hub(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(TRAINER_DATA=str(parquet_folder(tmp_path / "hub")))
    code = run.run(
        "digits", "--model.name", NETWORK, "--model.num-classes", str(len(CLASSES)), "--epochs", "1",
        "--global-batch-size", "4", "--device-batch-size", "2",
    )  # fmt: skip
    assert code == Exit.FINISHED, run.output
    assert run.json("result.json")["last"]["val/top1"] >= 0
