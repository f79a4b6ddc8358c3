"""`destroy`: nothing is left by AWS's own word, whatever state it begins in; the data stays unless purged."""

from __future__ import annotations

import signal
import sys
import time

import botocore.exceptions
import pytest

from infra.operate.commands import destroy
from infra.operate.installation import purge
from infra.operate.installation.purge import empty
from infra.operate.installation.standing import Kept, print_kept
from infra.operate.runs import ExplainedBucket
from infra.operate.session import AwsError, ExitCode
from infra.run.spend import Spend
from tests.emulator.aws import Aws
from tests.emulator.registry import Registry
from tests.infra.deployed import INSTALLATION, RUN, Deployed, client, push_image
from tests.infra.operator import Commands, left, operate, operator
from trainer.contract import UserError, run_key

pytestmark = pytest.mark.usefixtures("quick_destroy")
ZERO = ExitCode.DONE


def stacks(aws: Aws) -> set[str]:
    return {stack["StackName"] for stack in client(aws, "cloudformation").describe_stacks()["Stacks"]}


def test_a_running_installation_is_gone_and_its_data_kept_with_its_price(
    deployed: Deployed, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.aws.set(registry=registry.host)
    push_image(registry)
    deployed.launch(nodes=2)
    deployed.train_to(150)
    kept = deployed.keys()
    assert left()[:5] == [*["Auto Scaling group"] * 3, *["EC2 instance, running"] * 2]
    assert operate("destroy") == ZERO
    assert left() == []
    assert deployed.machines() == []
    assert deployed.images() == 0
    assert stacks(deployed.aws) == {INSTALLATION.storage_stack}
    assert deployed.keys() == kept | {run_key(RUN, "spend.json")}
    text = capsys.readouterr().out
    assert f"run {RUN} is active: its machine saves and stops; checkpoints are kept" in text
    assert "nothing is left, says AWS (EC2, EBS" in text
    assert f"data   s3://{deployed.bucket}  5.0 MB in {len(kept) + 1} objects  $0.00 a month" in text
    assert "make destroy PURGE=1" in text


def test_the_tally_of_the_run_gets_its_end(deployed: Deployed) -> None:
    deployed.launch()
    deployed.spend(hours=2, usd_per_hour=0.5)
    assert operate("destroy") == ZERO
    tally = client(deployed.aws, "s3").get_object(Bucket=deployed.bucket, Key=run_key(RUN, "spend.json"))
    (machine,) = Spend.from_json(tally["Body"].read()).machines
    assert machine.launched < machine.ended <= time.time()


def test_a_second_time_and_with_nothing_deployed_it_is_done(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operate("destroy") == ZERO
    capsys.readouterr()
    assert operate("destroy") == ZERO
    assert "no resnet-spot-training is deployed here" in capsys.readouterr().out
    deployed.aws.reset()
    assert operate("destroy") == ZERO
    text = capsys.readouterr().out
    assert "no resnet-spot-training is deployed here" in text
    assert "no data is kept either" in text


def test_money_stops_first(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.clear_calls()
    operate("destroy")
    calls = [call for call in deployed.aws.calls() if call.split(".")[1].startswith(("Set", "Terminate", "Delete"))]
    assert calls[0] == "autoscaling.SetDesiredCapacity"
    assert calls.index("scheduler.DeleteSchedule") < calls.index("cloudformation.DeleteStack")


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "UPDATE_ROLLBACK_FAILED", "DELETE_FAILED"])
def test_a_stack_in_a_bad_state_is_deleted(deployed: Deployed, status: str) -> None:
    deployed.aws.set(stack_status={INSTALLATION.training_stack: status})
    assert operate("destroy") == ZERO
    assert left() == []


def test_what_the_stack_cannot_delete_ends_with_5_and_a_command_for_each(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: "the VPC has dependencies"})
    assert operate("destroy") == ExitCode.LEFT_OVERS
    text = capsys.readouterr().out
    assert "left over:" in text
    assert f"aws cloudformation delete-stack --stack-name {INSTALLATION.training_stack}" in text
    assert "aws ec2 delete-vpc --vpc-id vpc-" in text
    assert "`make destroy` again" in text
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: ""})
    assert operate("destroy") == ZERO


def test_purge_empties_the_bucket_with_versions_and_uploads_and_deletes_the_token(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    s3, bucket = client(deployed.aws, "s3"), deployed.bucket
    for number in range(3):
        deployed.put("datasets/a", str(number).encode())
    s3.delete_object(Bucket=bucket, Key="datasets/a")
    deployed.put("datasets/b", b"1")
    s3.create_multipart_upload(Bucket=bucket, Key="checkpoints/big")
    client(deployed.aws, "secretsmanager").put_secret_value(SecretId=INSTALLATION.secret_name, SecretString="hf_x")
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert s3.list_buckets()["Buckets"] == []
    assert client(deployed.aws, "secretsmanager").list_secrets()["SecretList"] == []
    assert stacks(deployed.aws) == set()
    text = capsys.readouterr().out
    assert f"deleted: s3://{bucket}" in text
    assert "no data is kept either" in text
    assert "stays, with the templates and the guard's code of past deploys in its bucket" in text
    assert operate("destroy", "--purge", "--yes") == ZERO


def test_purge_waits_until_the_name_of_the_secret_is_free(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "FREED_PAUSE_SECONDS", 0.05)
    deployed.aws.set(secret_lingers=3)
    assert operate("destroy", "--purge", "--yes") == ZERO
    client(deployed.aws, "secretsmanager").create_secret(Name=INSTALLATION.secret_name)


def test_purge_goes_through_every_page_of_versions(deployed: Deployed) -> None:
    for number in range(3):
        deployed.put("datasets/a", str(number).encode())
        deployed.put("datasets/b", str(number).encode())
    client(deployed.aws, "s3").delete_object(Bucket=deployed.bucket, Key="datasets/a")
    s3 = operator().client("s3")
    small = {"MaxKeys": 2}
    s3.meta.events.register("provide-client-params.s3.ListObjectVersions", lambda params, **_: params | small, "small")
    try:
        empty(ExplainedBucket(s3, deployed.bucket))
    finally:
        s3.meta.events.unregister("provide-client-params.s3.ListObjectVersions", unique_id="small")
    left = client(deployed.aws, "s3").list_object_versions(Bucket=deployed.bucket)
    assert left.get("Versions", []) + left.get("DeleteMarkers", []) == []


def test_what_is_kept_counts_old_versions_too(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    for size in (3_000_000, 2_000_000, 1_000_000):
        deployed.put("datasets/a", bytes(size))
    deployed.put("datasets/b", bytes(500_000))
    client(deployed.aws, "s3").delete_object(Bucket=deployed.bucket, Key="datasets/b")
    assert operate("destroy") == ZERO
    said = capsys.readouterr().out
    assert f"data   s3://{deployed.bucket}  1.0 MB in 1 objects, and 5.5 MB in 3 old versions  $0.00 a month" in said


def test_purge_finds_a_bucket_that_an_earlier_storage_stack_left(deployed: Deployed) -> None:
    deployed.put("datasets/a", b"1")
    client(deployed.aws, "cloudformation").delete_stack(StackName=INSTALLATION.storage_stack)
    assert deployed.keys() == {"datasets/a"}
    assert operate("destroy", "--purge", "--yes") == ZERO
    assert client(deployed.aws, "s3").list_buckets()["Buckets"] == []


def test_purge_asks_on_a_terminal_and_refuses_without_one(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    with pytest.raises(UserError, match=r"--yes"):
        operate("destroy", "--purge")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    with pytest.raises(UserError, match="not confirmed: nothing was deleted"):
        operate("destroy", "--purge")
    assert deployed.desired() == 1
    assert "for ever" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda prompt: INSTALLATION.name)
    assert operate("destroy", "--purge") == ZERO


def test_an_interrupted_destroy_is_finished_by_the_next(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.launch()
    for step in ("wait_until_gone", "delete_schedules", "delete_stack", "sweep"):
        with monkeypatch.context() as patch:
            patch.setattr(destroy, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                operate("destroy")
    assert operate("destroy") == ZERO
    assert left() == []


def test_the_command_itself_survives_ctrl_c_and_ends_with_the_exit_codes_of_the_table(deployed: Deployed) -> None:
    deployed.launch()
    deployed.aws.set(delete_failures={INSTALLATION.training_stack: "a dependency"})
    with Commands(deployed.aws) as commands:
        command = commands.start("destroy")
        command.wait_for(lambda: any("deleting the stack" in line for line in command.lines))
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 130
        assert any("goes on from here" in note for note in command.notes)
        assert deployed.machines() == []
        deployed.aws.fault("cloudformation.DeleteStack", "AccessDenied")
        command = commands.start("destroy")
        assert command.end() == ExitCode.REFUSED
        assert any("administrator" in note for note in command.notes)
        deployed.aws.heal()
        deployed.aws.set(delete_failures={INSTALLATION.training_stack: ""})
        command = commands.start("destroy")
        assert command.end() == ExitCode.DONE


def test_keeping_imagenet_has_the_price_of_s3(capsys: pytest.CaptureFixture[str]) -> None:
    print_kept([Kept("data", "s3://b", "50.0 GB", 50 * 0.023), Kept("token", "secret t", "", 0.4)])
    assert "together $1.55 a month, $0.05 a day" in capsys.readouterr().out


def test_no_network_is_an_error_with_a_fix(deployed: Deployed) -> None:
    deployed.aws.fault("cloudformation.*", "network")
    with pytest.raises(AwsError, match=r"AWS cannot be reached: .*check the network") as error:
        operate("destroy")
    assert isinstance(error.value.__cause__, botocore.exceptions.BotoCoreError)
