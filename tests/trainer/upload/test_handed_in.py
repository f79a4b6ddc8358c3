"""What the boot scripts hand into the container, as the uploader meets it: credentials that end, a spec that stands."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.emulator.s3 import Answer, Control, FaultyProxy, Forward
from tests.stores import MIB, bucket_and_prefix
from tests.uploads import Connect, Start, answer, is_drained, send_checkpoint, wait_until
from trainer.store import StoreError, open_store
from trainer.store.s3 import S3Store
from trainer.store.s3_client import S3Settings

pytestmark = pytest.mark.slow
Hand = Callable[..., None]


@pytest.fixture
def hand(s3_uri: str, s3_control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hand:
    """hand("one", seconds=60): write credentials that end then. They are the only ones, and the endpoint knows them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials.json"
    (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = cat {file}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    s3_control.set(keys={"ASIAone": ["one", "one"], "ASIAtwo": ["two", "two"]})

    def write(name: str, seconds: float = 3600) -> None:
        end = datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()
        credentials = {"Version": 1, "AccessKeyId": f"ASIA{name}", "SecretAccessKey": name, "SessionToken": name}
        (tmp_path / "new").write_text(json.dumps(credentials | {"Expiration": end}))
        (tmp_path / "new").rename(file)

    return write


def test_an_upload_in_parts_goes_on_with_the_credentials_that_were_renewed_meanwhile(
    s3_uri: str, s3_proxy: FaultyProxy, s3_control: Control, hand: Hand
) -> None:
    hand("one", seconds=60)
    store = S3Store(*bucket_and_prefix(s3_uri), S3Settings(part_bytes=5 * MIB, parts_at_once=1))

    def expire_after(forward: Forward) -> Answer:
        done = forward()
        hand("two")
        s3_control.set(expired=["one"])
        return done

    s3_proxy.plan("PUT", expire_after)
    body = bytes(12 * MIB)
    store.put("large", io.BytesIO(body))
    assert [headers["x-amz-security-token"] for headers in s3_proxy.headers] == ["one", "one", "two", "two", "two"]
    assert store.get("large") == body


def test_while_no_renewal_comes_uploads_wait_and_say_so_and_then_nothing_is_lost(
    s3_uri: str, s3_control: Control, hand: Hand, start: Start, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    hand("one")
    uploader = start(s3_uri)
    channel = connect(uploader)
    hand("one", seconds=-1)
    s3_control.set(expired=["one"])
    send_checkpoint(channel, 7, b"tensors")
    channel.send({"op": "put", "key": "runs/job/metrics/1/a.jsonl", "body": {"step": 7}})
    said: list[str] = []

    def it_is_said() -> bool:
        said.append(capfd.readouterr().err)
        return "ExpiredToken" in "".join(said)

    wait_until(it_is_said)
    assert "training goes on" in "".join(said)
    time.sleep(1)  # for further tries, in which botocore itself finds that the credentials have ended
    hand("two")
    assert answer(channel)["committed"] == "checkpoints/job/manifest/step-00000007.1.json"
    channel.close()
    assert is_drained(uploader)
    assert json.loads(open_store(s3_uri).get("runs/job/metrics/1/a.jsonl")) == {"step": 7}
    assert "Traceback" not in "".join(said)


def test_credentials_that_are_over_or_missing_are_an_outage_of_the_store(
    s3_uri: str, tmp_path: Path, hand: Hand
) -> None:
    store = open_store(s3_uri)
    codes = []
    for write in (lambda: None, lambda: hand("one", seconds=-1)):
        write()
        with pytest.raises(StoreError) as caught:
            store.put("x", b"1")
        codes.append(caught.value.code)
    assert codes == ["CredentialRetrievalError", "ExpiredToken"]
    hand("one")
    store.put("x", b"1")


def test_a_spec_that_is_there_already_is_not_written_again_since_on_aws_that_is_denied(
    s3_uri: str, s3_proxy: FaultyProxy, start: Start
) -> None:
    open_store(s3_uri).create("runs/job/spec.json", b"{}")
    uploader = start(s3_uri)
    uploader.ask(op="create", key="runs/job/spec.json", body={"value": 2})
    assert is_drained(uploader)
    written = [one for one in s3_proxy.requests if one.startswith("PUT") and "spec.json" in one]
    assert len(written) == 1, "only this test's own"
