"""`pull`: a run from the bucket into a local store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.operate.commands import pull
from infra.operate.runs import ExplainedBucket
from infra.operate.session import AwsError
from tests.emulator.aws import Aws
from tests.infra.deployed import RUN, Deployed, client, deploy
from tests.infra.operator import operate
from trainer.contract import Lease, UserError, manifest_key


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
    of_weights = {f"runs/{RUN}/model.json", f"runs/{RUN}/evaluations/imagenet-v2.json"}
    of_machine = {f"runs/{RUN}/telemetry/1/000000.jsonl"}
    for key in of_weights | of_machine:
        deployed.put(key, {"network": "resnet50"})
    assert operate("pull", "--to", str(tmp_path)) == 0
    found = files(tmp_path)
    assert of_weights | of_machine < found
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
    pull.download(bucket, RUN, [listed], tmp_path)
    assert (tmp_path / f"runs/{RUN}/heartbeat.json").read_bytes() == b'{"phase": "saving"}'
    client(deployed.aws, "s3").delete_object(Bucket=deployed.bucket, Key=listed.key)
    pull.download(bucket, RUN, [listed], tmp_path / "again")
    assert files(tmp_path / "again") == set()


def test_a_key_that_leads_out_of_the_folder_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    for key in (f"runs/{RUN}/../../../evil", f"runs/{RUN}//evil", f"runs/{RUN}/a/./evil"):
        deployed.put(key, b"")
        with pytest.raises(UserError, match=f"{re.escape(key)} leads out of the folder"):
            operate("pull", "--to", str(tmp_path / "out"))
        client(deployed.aws, "s3").delete_object(Bucket=deployed.bucket, Key=key)
    assert files(tmp_path) == set()


def lead_to(deployed: Deployed, key: object, *, manifest: str = manifest_key(RUN, 150, 1)) -> None:
    """What whoever may write the bucket can do: HEAD names a manifest of theirs, which names any object."""
    deployed.put(manifest, {"step": 150, "time": 0, "object": {"key": key, "bytes": 4}})
    deployed.put(f"checkpoints/{RUN}/HEAD.json", Lease(attempt=1, newest=manifest, best=manifest).to_json())


def test_a_manifest_that_names_a_file_of_nobody_s_run_is_refused_and_nothing_is_written(
    deployed: Deployed, tmp_path: Path
) -> None:
    for key in (f"{tmp_path}/.bashrc", "datasets/x/y/z", "runs/other/spec.json", "../x", 7, ["a"], None):
        said = repr(key) if isinstance(key, str) else "is not what a trainer of this run writes"
        if isinstance(key, str):
            deployed.put(key, b"evil")
        lead_to(deployed, key)
        with pytest.raises(UserError, match=f"{re.escape(said)}.*nothing is copied"):
            operate("pull", "--checkpoints", "--to", str(tmp_path / "out"))
    assert files(tmp_path) == set()


def test_a_head_that_names_a_manifest_elsewhere_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    lead_to(deployed, f"checkpoints/{RUN}/data/x", manifest=f"{tmp_path}/.profile")
    with pytest.raises(UserError, match=r"\.profile' is no key of run|\.profile' is not a key"):
        operate("pull", "--checkpoints", "--to", str(tmp_path / "out"))
    deployed.put(f"checkpoints/{RUN}/HEAD.json", b"{}")
    with pytest.raises(UserError, match="is not what a trainer of this run writes"):
        operate("pull", "--checkpoints", "--to", str(tmp_path / "out"))
    assert files(tmp_path) == set()


def test_an_endpoint_that_lists_other_keys_than_it_was_asked_for_is_no_s3(deployed: Deployed, tmp_path: Path) -> None:
    bucket = ExplainedBucket(boto3.client("s3"), deployed.bucket)

    def forge(parsed: dict[str, Any], **_: object) -> None:
        parsed["Contents"][0]["Key"] = f"{tmp_path}/.bashrc"

    bucket.s3.meta.events.register("after-call.s3.ListObjectsV2", forge)
    with pytest.raises(AwsError, match=r"\.bashrc': this is no S3"):
        list(bucket.list(f"runs/{RUN}/"))


def test_a_link_in_the_folder_does_not_lead_out_of_it(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match=r"out/runs/.* is a link to .*home"):
        operate("pull", "--to", str(tmp_path / "out"))
    assert files(tmp_path) == set()


def test_what_is_not_named_like_a_run_is_none(deployed: Deployed, tmp_path: Path) -> None:
    for name in ("..", "$(id)", "\x1b]52;c;aWQ=\a", ""):
        deployed.put(f"runs/{name}/spec.json", b"{}")
    bucket = ExplainedBucket(boto3.client("s3"), deployed.bucket)
    assert set(bucket.runs()) == {RUN}
    with pytest.raises(UserError, match=rf"RUN='\.\.' is no run .*use one of: {RUN}"):
        operate("pull", "--run", "..", "--to", str(tmp_path))


def test_errors_say_what_to_do(deployed: Deployed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"RUN='nope' is no run .*use one of: {RUN}"):
        operate("pull", "--run", "nope", "--to", str(tmp_path))
    deployed.launch("fresh")
    with pytest.raises(UserError, match="run 'fresh' has no checkpoint yet"):
        operate("pull", "--run", "fresh", "--checkpoints", "--to", str(tmp_path))
    deployed.aws.fault("s3.GetObject", "AccessDenied")
    with pytest.raises(AwsError, match=r"s3://.*AWS refused \(AccessDenied\)"):
        operate("pull", "--to", str(tmp_path))
