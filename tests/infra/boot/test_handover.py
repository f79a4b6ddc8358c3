"""What boot hands into the container: the policy of its credentials, their renewal, copies of the metadata service."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from infra.boot.handover import MARGIN_SECONDS, Credentials, Folder, Relay, hand_over_secret, session_policy
from tests.emulator.imds import NOTICE, REBALANCE, Imds

STATEMENTS = "s3:GetObject", "s3:PutObject", "s3:ListBucket"


def allowed(kind: str = "train", run: str = "rn50-1", data: str = "", *files: str) -> dict[str, list[str]]:
    """The keys that the policy allows to read, to write and to list."""
    policy = json.loads(session_policy(kind, "bucket", run, data, [*files]))
    assert {one["Effect"] for one in policy["Statement"]} == {"Allow"}
    found: dict[str, list[str]] = {}
    for one in policy["Statement"]:
        for action in STATEMENTS:
            if action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"]):
                on = one.get("Condition", {}).get("StringLike", {}).get("s3:prefix") or one["Resource"]
                found.setdefault(action, []).extend(key.removeprefix("arn:aws:s3:::bucket/") for key in on)
    return found


def test_the_credentials_of_a_training_reach_its_own_files_and_its_dataset_to_read() -> None:
    own, data = ["runs/rn50-1/*", "checkpoints/rn50-1/*"], ["datasets/d/1/*"]
    expected = dict(zip(STATEMENTS, (own + data, own, own + data), strict=True))
    for address in ("s3://bucket/datasets/d/1", "s3://bucket/datasets/d/1/"):
        assert allowed(data=address) == expected


@pytest.mark.parametrize("data", ["", "digits", "ILSVRC/imagenet-1k", "s3://other/datasets/d/1", "s3://bucket/runs/x"])
def test_other_data_open_nothing_more(data: str) -> None:
    own = ["runs/rn50-1/*", "checkpoints/rn50-1/*"]
    assert allowed(data=data) == dict.fromkeys(STATEMENTS, own)


def test_weights_of_another_run_that_the_arguments_name_can_be_read_and_nothing_beside_them() -> None:
    own = ["runs/rn50-1/*", "checkpoints/rn50-1/*"]
    weights = "checkpoints/rn50-0/data/step-00000009.1.safetensors"
    found = allowed("train", "rn50-1", "digits", f"s3://bucket/{weights}", "s3://other/x", "")
    assert found == dict(zip(STATEMENTS, ([*own, weights], own, [*own, weights]), strict=True))


def test_a_preparation_reaches_the_datasets_and_its_own_files() -> None:
    own = ["runs/prepare-d/*", "datasets/*"]
    assert allowed("prepare", "prepare-d", "ILSVRC/imagenet-1k") == dict.fromkeys(STATEMENTS, own)


def test_letters_that_mean_something_to_iam_stand_for_themselves() -> None:
    read = allowed(data="s3://bucket/datasets/*/?${aws:username}")["s3:GetObject"]
    assert read[2] == "datasets/${*}/${?}${$}{aws:username}/*"


def test_the_longest_names_make_a_policy_that_aws_takes() -> None:
    data = "s3://" + "b" * 63 + "/datasets/" + "d" * 100 + "/" + "v" * 60
    assert (
        len(session_policy("train", "b" * 63, "r" * 64, data, [f"s3://{'b' * 63}/checkpoints/{'r' * 64}/{'f' * 60}"]))
        <= 2048
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "handover", os.getuid())


def answer(tmp_path: Path, key: str, code: int = 0) -> list[str]:
    told = {"Credentials": {"AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": "t", "Expiration": "ignored"}}
    (tmp_path / "told").write_text(json.dumps(told))
    return ["sh", "-c", f"cat {tmp_path}/told; exit {code}"]


def test_credentials_end_by_this_machine_s_clock_and_are_renewed_when_it_is_time_or_was_set(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(folder, answer(tmp_path, "one"), granted=3600, renew=900)
    assert credentials.is_due()
    now = time.time() + 3600  # a clock that is an hour fast
    monkeypatch.setattr(time, "time", lambda: now)
    credentials.fetch()
    file = folder.path / "credentials.json"
    written = json.loads(file.read_text())
    assert datetime.fromisoformat(written.pop("Expiration")).timestamp() == pytest.approx(now + 3600 - MARGIN_SECONDS)
    assert written == {"Version": 1, "AccessKeyId": "one", "SecretAccessKey": "s", "SessionToken": "t"}
    assert file.stat().st_mode & 0o777 == 0o400
    due = {}
    for later in (0, 890, 901, -3600):  # at last the clock is set right
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        due[later] = credentials.is_due()
    assert due == {0: False, 890: False, 901: True, -3600: True}


def test_a_renewal_that_fails_leaves_the_old_credentials(tmp_path: Path, folder: Folder) -> None:
    Credentials(folder, answer(tmp_path, "one"), granted=3600, renew=900).fetch()
    for command in (answer(tmp_path, "two", code=1), ["sh", "-c", "echo no JSON"], ["/no/such/program"]):
        with pytest.raises(Exception, match=r"exit status 1|Expecting value|No such file"):
            Credentials(folder, command, granted=3600, renew=900).fetch()
    assert json.loads((folder.path / "credentials.json").read_text())["AccessKeyId"] == "one"


def test_the_documents_are_copied_and_go_as_they_come_and_only_a_look_that_succeeds_counts(
    imds: Imds, folder: Folder
) -> None:
    metadata = Relay(imds.endpoint, folder)
    imds.documents |= {"/latest/meta-data/instance-id": "i-1", "/latest/meta-data/placement/availability-zone": "b"}

    def copied() -> dict[str, str]:
        files = (path for path in folder.path.rglob("*") if path.is_file())
        return {f"/{path.relative_to(folder.path)}": path.read_text() for path in files}

    metadata.look()
    machine = {"/latest/meta-data/instance-id": "i-1", "/latest/meta-data/placement/availability-zone": "b"}
    assert copied() == machine | {"/alive": "1"}
    imds.set_notice()
    imds.set_rebalance()
    metadata.look()
    told = {path: imds.documents[path] for path in (NOTICE, REBALANCE)}
    assert copied() == machine | told | {"/alive": "2"}
    imds.failing = 500
    with pytest.raises(OSError, match="500"):
        metadata.look()
    assert copied() == machine | told | {"/alive": "2"}
    imds.failing = None
    imds.tokens.clear()
    del imds.documents[NOTICE]
    metadata.look()
    assert copied() == machine | {REBALANCE: told[REBALANCE]} | {"/alive": "3"}
    assert len([one for one in imds.answers if one[0].startswith("PUT")]) == 2


@pytest.mark.parametrize(
    ("secret", "names", "expected"),
    [
        ("hf_token-alone\n", ["webhook", "hf_token"], {"hf_token": "hf_token-alone"}),
        ("hf_token-alone\n", ["webhook"], {}),
        ('{"hf_token": "t", "webhook": "w"}\n', ["webhook", "hf_token"], {"hf_token": "t", "webhook": "w"}),
        ('{"hf_token": "t", "webhook": "w"}\n', ["webhook"], {"webhook": "w"}),
        ('{"webhook": "w", "other": "o"}', ["webhook", "hf_token"], {"webhook": "w"}),
        ('{"hf_token": ""}', ["webhook", "hf_token"], {}),
    ],
)
def test_of_the_secret_a_container_gets_the_parts_that_it_needs(
    secret: str, names: list[str], expected: dict[str, str], folder: Folder
) -> None:
    folder.path.mkdir()
    hand_over_secret(secret, names, folder)
    assert {path.name: path.read_text() for path in folder.path.iterdir()} == expected
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} <= {0o400}
