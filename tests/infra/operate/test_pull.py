"""`pull`: a run from the bucket into a local store."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from infra.operate.commands import pull
from infra.operate.runs import ExplainedBucket
from infra.operate.session import AwsError
from tests.emulator.aws import Aws
from tests.infra.deployed import RUN, Deployed, client, deploy
from tests.infra.operator import operate
from trainer.contract import Lease, UserError


@pytest.fixture
def deployed(aws: Aws) -> Deployed:
    deployed = deploy(aws)
    deployed.launch()
    deployed.train_to(150)
    deployed.put(f"runs/{RUN}/report/index.html", b"<html>")
    return deployed


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_copies_the_run_with_the_layout_of_a_store(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert operate("pull", "--to", str(tmp_path)) == 0
    found = files(tmp_path)
    assert {f"runs/{RUN}/report/index.html", f"runs/{RUN}/config.json", f"runs/{RUN}/spec.json"} < found
    assert sum(name.startswith(f"runs/{RUN}/metrics/1/") for name in found) == 3
    assert not any(name.startswith("checkpoints/") for name in found)
    text = capsys.readouterr().out
    assert f"{len(found)} files" in text
    assert f"make report RUN={RUN} STORE={tmp_path}" in text


def test_with_checkpoints_the_local_store_has_all_that_head_names(deployed: Deployed, tmp_path: Path) -> None:
    assert operate("pull", "--checkpoints", "--to", str(tmp_path)) == 0
    lease = Lease.from_json((tmp_path / f"checkpoints/{RUN}/HEAD.json").read_bytes())
    assert all((tmp_path / key).is_file() for key in {lease.newest, lease.best})
    assert (tmp_path / f"checkpoints/{RUN}/data/step-00000150.1.safetensors").stat().st_size == 5_000_000


def test_a_second_time_only_what_changed_is_copied(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operate("pull", "--to", str(tmp_path))
    deployed.put(f"runs/{RUN}/result.json", {"steps": 1000})
    capsys.readouterr()
    operate("pull", "--to", str(tmp_path))
    assert "1 files with 0.0 MB copied" in capsys.readouterr().out
    assert (tmp_path / f"runs/{RUN}/result.json").read_text() == '{"steps": 1000}'


def test_a_copy_that_was_cut_off_goes_on_where_it_ended(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"checkpoints/{RUN}/data/step-00000150.1.safetensors"
    body = bytes(range(250)) * 20_000
    deployed.put(key, body)
    bucket = ExplainedBucket(boto3.client("s3"), deployed.bucket)
    (found,) = bucket.list(key)

    def stop_after_half(size: int) -> None:
        counted.append(size)
        if sum(counted) > 2_000_000:
            raise KeyboardInterrupt

    counted: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        pull.fetch(bucket, found, tmp_path / "file", stop_after_half)
    assert not (tmp_path / "file").exists()
    asked: list[str] = []
    bucket.s3.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: asked.append(params["headers"]["Range"])
    )
    pull.fetch(bucket, found, tmp_path / "file", lambda size: None)
    assert (tmp_path / "file").read_bytes() == body
    assert asked == [f"bytes={2 << 20}-"]
    assert files(tmp_path) == {"file"}


def test_what_the_run_overwrites_meanwhile_is_copied_as_it_is_then(deployed: Deployed, tmp_path: Path) -> None:
    bucket = ExplainedBucket(boto3.client("s3"), deployed.bucket)
    (listed,) = bucket.list(f"runs/{RUN}/heartbeat.json")
    deployed.put(f"runs/{RUN}/heartbeat.json", b'{"phase": "saving"}')
    pull.download(bucket, [listed], tmp_path)
    assert (tmp_path / f"runs/{RUN}/heartbeat.json").read_bytes() == b'{"phase": "saving"}'
    client(deployed.aws, "s3").delete_object(Bucket=deployed.bucket, Key=listed.key)
    pull.download(bucket, [listed], tmp_path / "again")
    assert files(tmp_path / "again") == set()


def test_a_key_that_leads_out_of_the_folder_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    deployed.put(f"runs/{RUN}/../../../evil", b"")
    with pytest.raises(UserError, match="leads out of the folder"):
        operate("pull", "--to", str(tmp_path / "out"))
    assert not (tmp_path / "evil").exists()


def test_errors_say_what_to_do(deployed: Deployed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"RUN='nope' is no run .*use one of: {RUN}"):
        operate("pull", "--run", "nope", "--to", str(tmp_path))
    deployed.launch("fresh")
    with pytest.raises(UserError, match="run 'fresh' has no checkpoint yet"):
        operate("pull", "--run", "fresh", "--checkpoints", "--to", str(tmp_path))
    deployed.aws.fault("s3.GetObject", "AccessDenied")
    with pytest.raises(AwsError, match=r"s3://.*AWS refused \(AccessDenied\)"):
        operate("pull", "--to", str(tmp_path))
