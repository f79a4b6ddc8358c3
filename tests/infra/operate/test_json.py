"""`--json`: one document on standard output, the same fields whatever a run does, the same exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.operate.commands.runs import row
from infra.operate.runs import need_bucket
from infra.operate.session import ExitCode
from infra.operate.state import read_states
from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, RUN, Deployed, deploy
from tests.infra.operator import GIVEN_IMAGE, infra, operate, operator
from trainer.contract import UserError, manifest_key, run_key

STATUS_FIELDS = {
    "run", "kind", "recipe", "state", "message", "phase", "heartbeat_age_seconds", "step", "total_steps",
    "images_per_second", "val_top1", "best_top1", "train_top1", "seconds_left", "checkpoint_step",
    "checkpoint_age_seconds", "attempts", "usd", "usd_per_hour", "projected_usd", "budget_usd", "deadline", "machines",
    "refusals", "problems", "alerts", "gpu", "data_wait", "train_loss", "nodes", "nodes_wanted",
}  # fmt: skip
RUNS_FIELDS = {
    "run", "kind", "recipe", "state", "message", "phase", "step", "total_steps", "top1", "usd", "budget_usd",
    "launched", "age_seconds", "nodes",
}  # fmt: skip


def document(capsys: pytest.CaptureFixture[str], command: str, *arguments: str, code: int = ExitCode.DONE) -> Any:
    """What is printed, all of it."""
    capsys.readouterr()
    assert operate(command, *arguments) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_status_has_the_figures_of_a_running_training(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    spec = deployed.launch(hours=10)
    deployed.train_to(350)
    deployed.spend(2, 0.4)
    found = document(capsys, "status", "--json")
    assert found.keys() == STATUS_FIELDS
    expected = {
        "run": RUN, "kind": "train", "recipe": "rn50", "state": "running", "phase": "training", "step": 350,
        "total_steps": 1000, "images_per_second": 250.0, "val_top1": 0.625, "best_top1": 0.63, "train_top1": 0.5,
        "checkpoint_step": 350, "attempts": 1, "usd_per_hour": 0.4, "budget_usd": 10, "refusals": [],
        "deadline": int(spec.deadline),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["usd"] == pytest.approx(0.8, abs=0.01)
    assert found["seconds_left"] == pytest.approx(650 * 256 / 250)
    assert [machine["type"] for machine in found["machines"]] == ["g6.xlarge"]


def test_status_has_the_same_fields_whatever_the_run_does(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    states = []
    deployed.launch()
    for change in (lambda: None, lambda: deployed.end("failed", "no token"), lambda: deployed.end("done", "finished")):
        change()
        found = document(capsys, "status", "--json", "--run", RUN)
        assert found.keys() == STATUS_FIELDS
        states.append(found["state"])
    assert states == ["booting", "failed", "done"]


def test_status_without_a_run_says_so(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "status", "--json")
    assert (found["run"], found["state"]) == (None, "none")
    assert "nothing is deployed in us-east-1" in found["message"]
    deploy(aws)
    assert "there is no run" in document(capsys, "status", "--json")["message"]
    with pytest.raises(UserError, match="RUN='x' is no run"):
        operate("status", "--json", "--run", "x")


def test_watch_and_json_together_are_refused(deployed: Deployed) -> None:
    with pytest.raises(UserError, match=r"WATCH=1 and --json do not go together: .*leave WATCH=1 out"):
        operate("status", "--json", "--watch")


def test_runs_lists_every_run_the_newest_first(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch("first")
    deployed.train_to(150, run_id="first")
    deployed.end("done", "finished", run_id="first")
    deployed.put(run_key("local", "spec.json"), {"recipe": "digits"})  # begun by a local `make train`
    operate("stop")
    deployed.launch("second")
    deployed.train_to(350, run_id="second")
    deployed.spend(2, 0.4, run_id="second")
    found = document(capsys, "runs", "--json")["runs"]
    assert all(one.keys() == RUNS_FIELDS for one in found)
    assert sorted(one["launched"] for one in found)[::-1] == [one["launched"] for one in found]
    by_name = {one["run"]: one for one in found}
    assert {name: one["state"] for name, one in by_name.items()} == {
        "first": "done", "second": "running", "local": "stopped",
    }  # fmt: skip
    second = by_name["second"]
    assert (second["step"], second["total_steps"], second["top1"], second["phase"]) == (350, 1000, 0.63, "training")
    assert second["usd"] == pytest.approx(0.8, abs=0.01)
    assert by_name["local"]["recipe"] is None
    assert 0 <= by_name["first"]["age_seconds"] < 300


def test_runs_is_a_table_for_people(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch("first")
    deployed.train_to(350, run_id="first")
    capsys.readouterr()
    assert operate("runs") == ExitCode.DONE
    header, line, *rest = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "top-1", "dollars", "age"]
    assert line.startswith("first  training  350 of 1,000  63.00 %    $0.00  ")
    assert "  make status RUN=first  more of one run" in rest
    deployed.end("done", "finished", run_id="first")
    (state,) = read_states(operator(), INSTALLATION, need_bucket(operator(), INSTALLATION), ["first"])
    launched = need_bucket(operator(), INSTALLATION).runs()
    assert row(state, launched)[:3] == ("first", "done", "350 of 1,000")


def test_runs_without_any_is_no_error(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "runs", "--json") == {"runs": []}
    assert operate("runs") == ExitCode.DONE
    assert "there is no run in us-east-1 yet" in capsys.readouterr().out


def test_cost_has_the_estimate_the_spend_and_what_stands(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate = document(capsys, "cost", "--json", "--recipe", "finetune")
    assert estimate["spent"] is None
    assert estimate["estimate"]["types"][0]["type"] == "g5.xlarge"
    assert estimate["estimate"]["types"][0]["usd"] == pytest.approx(6.02, abs=0.01)
    assert {one["what"] for one in estimate["standing"]} >= {"data", "token", "guard"}
    deployed.launch()
    deployed.train_to(150)
    deployed.spend(2, 0.4)
    found = document(capsys, "cost", "--json", "--run", RUN)
    assert found.keys() == estimate.keys()
    assert found["estimate"] is None
    assert (found["spent"]["run"], found["spent"]["budget_usd"]) == (RUN, 10)
    assert found["spent"]["usd"] == pytest.approx(0.8, abs=0.01)
    assert [one["ended"] for one in found["spent"]["machines"]] == [None]
    assert [one["attempt"] for one in found["spent"]["attempts"]] == [1]


def test_preflight_has_every_check_and_its_exit_code(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    ended = infra("-c", f"image_uri={GIVEN_IMAGE}", "preflight", "--json")
    assert ended.code == ExitCode.PREFLIGHT
    found = json.loads(ended.said)
    assert found["failed"] is True
    checks = {one["name"]: one for one in found["checks"]}
    assert all(one.keys() == {"name", "state", "said", "fix"} for one in found["checks"])
    assert checks["credentials"]["state"] == "failed"
    assert checks["credentials"]["fix"].startswith("aws configure")
    assert checks["Docker"] == {
        "name": "Docker", "state": "not needed", "said": f"the image is given: {GIVEN_IMAGE}", "fix": "",
    }  # fmt: skip


def test_before_the_first_validation_there_is_no_best_accuracy(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(50)
    body = {"step": 50, "time": 0.0, "counters": {"best": {"top1": -1.0, "step": 0, "weights": "model"}}}
    deployed.put(manifest_key(RUN, 50, 1), body)  # as a run begins
    found = document(capsys, "status", "--json")
    assert (found["checkpoint_step"], found["best_top1"]) == (50, None)
    assert operate("status") == ExitCode.DONE
    assert "best" not in capsys.readouterr().out


def test_a_run_whose_files_are_damaged_says_so_and_hides_no_other(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch("whole")
    deployed.train_to(350, run_id="whole")
    deployed.put(run_key("damaged", "spec.json"), {"recipe": "digits"})
    deployed.put(run_key("damaged", "spend.json"), b"{}")
    found = {one["run"]: one for one in document(capsys, "runs", "--json")["runs"]}
    assert found["whole"]["state"] == "running"
    assert found["damaged"]["state"] == "unreadable"
    assert "runs/damaged/spend.json is damaged" in found["damaged"]["message"]


def test_a_run_whose_files_are_damaged_names_its_machines_and_no_dollars(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(350)
    (machine,) = document(capsys, "status", "--json")["machines"]
    deployed.put(run_key(RUN, "spend.json"), b"{}")
    (found,) = document(capsys, "runs", "--json")["runs"]
    assert (found["state"], found["usd"]) == ("unreadable", None)
    assert f"machines that bill: {machine['id']}" in found["message"]
    assert operate("runs") == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "$0.00" not in shown
