"""One revision of a hub's dataset, whole, for a whole preparation. What the hub answers else is told as what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import images
from tests.hub import Answer, Hub
from tests.images import parquet_folder, rows, write_parquet
from trainer.contract import UserError
from trainer.data.making.layout import Choices
from trainer.data.making.prepare import Prepared
from trainer.data.making.revision.hub_faults import UnreachableError
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SourceMemory

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub. Its client reads its environment once, so in this process its constants are changed."""
    hub = Hub(parquet_folder(tmp_path / "hub"))
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("trainer.data.making.revision.hub_faults.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield hub
    hub.close()


def prepare_here(tmp_path: Path, data: str = "lab/photos", store: str = "store") -> Prepared:
    return images.prepared(data, tmp_path / store, memory=SourceMemory(tmp_path / "scratch"))


def first_file(hub: Hub) -> Path:
    return hub.files / "data" / "train-00000-of-00002.parquet"


def cached(tmp_path: Path, name: str, commit: str) -> Path:
    return tmp_path / "cache" / "datasets--lab--photos" / "snapshots" / commit / "data" / name


def down(method: str, path: str) -> Answer | None:
    return 503, {}, b""


def test_an_index_names_the_commit_and_a_new_commit_of_other_images_is_prepared_anew(
    client: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    old = prepare_here(tmp_path)
    assert old.index.source is not None
    assert (old.index.source.form, old.index.source.commit, old.index.source.files) == ("hub", client.commit, 3)
    (client.files / "README.md").write_text("only words have changed")
    client.publish()
    assert prepare_here(tmp_path) == old
    write_parquet(first_file(client), [{**row, "label": 2 - row["label"]} for row in rows(6)])
    client.publish()
    capfd.readouterr()
    new = prepare_here(tmp_path)
    assert new.prefix != old.prefix
    assert new.index.fingerprint != old.index.fingerprint
    assert f"commit {old.index.source.commit[:12]}; now 3 files" in capfd.readouterr().err


def test_a_download_that_was_interrupted_by_a_new_commit_gives_one_revision_only(client: Hub, tmp_path: Path) -> None:
    def cut(method: str, path: str) -> Answer | None:
        return (404, {}, b"") if "validation" in path and method == "GET" else None

    client.fault = cut
    with pytest.raises(UserError):
        prepare_here(tmp_path)
    assert cached(tmp_path, "train-00000-of-00002.parquet", client.commit).exists()
    client.fault = lambda method, path: None
    parquet_folder(client.files, train=20, val=8)
    client.publish()
    result = prepare_here(tmp_path)
    assert result.index.splits["train"].images == 20
    assert result.index.fingerprint == images.prepared(client.files, tmp_path / "other").index.fingerprint


def test_a_commit_that_comes_while_the_data_is_downloaded_is_not_mixed_in(client: Hub, tmp_path: Path) -> None:
    expected = images.prepared(client.files, tmp_path / "other").index.fingerprint

    def publish_meanwhile(method: str, path: str) -> Answer | None:
        if "/resolve/" in path and client.commit == first:
            parquet_folder(client.files, train=20, val=8)
            client.publish()
        return None

    first, client.fault = client.commit, publish_meanwhile
    result = prepare_here(tmp_path)
    assert client.commit != first
    assert result.index.source is not None
    assert result.index.source.commit == first
    assert result.index.fingerprint == expected


def test_an_older_commit_that_the_name_has_is_used_though_the_hub_has_a_newer_one(
    client: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first, expected = client.commit, images.prepared(client.files, tmp_path / "other").index.fingerprint
    parquet_folder(client.files, train=20, val=8)
    client.publish()
    newest = prepare_here(tmp_path)
    pinned = prepare_here(tmp_path, f"lab/photos@{first}")
    assert (pinned.index.name, pinned.index.fingerprint) == (newest.index.name, expected)
    assert pinned.index.source is not None
    assert pinned.index.source.commit == first
    client.fault = down
    capfd.readouterr()
    assert prepare_here(tmp_path, f"lab/photos@{first}") == pinned
    assert prepare_here(tmp_path) == newest, "without the hub, a commit that was asked for once is not the last one"
    assert "commit" in capfd.readouterr().err


@pytest.mark.parametrize(("commit", "why"), [("main", "'main' is not a commit"), ("0" * 40, "has no such commit")])
def test_a_commit_that_is_none_is_refused(client: Hub, tmp_path: Path, commit: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        prepare_here(tmp_path, f"lab/photos@{commit}")


def test_other_choices_are_other_data(client: Hub) -> None:
    swapped = Choices(train_split="validation", val_split="train")
    one, other = (identity_of("lab/photos", choices, SourceMemory()) for choices in (Choices(), swapped))
    assert one.content != other.content


def test_a_dataset_without_a_validation_is_refused_before_its_images_are_downloaded(
    client: Hub, tmp_path: Path
) -> None:
    (client.files / "data" / "validation-00000-of-00001.parquet").unlink()
    client.publish()
    with pytest.raises(UserError, match="--val-split"):
        prepare_here(tmp_path)
    assert not [path for path, _ in client.requests if ".parquet" in path]


# The cache of the hub's client.


def test_a_half_filled_cache_is_refused_while_the_hub_is_down_and_completed_when_it_is_back(
    client: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_here(tmp_path)
    lost = cached(tmp_path, "train-00001-of-00002.parquet", client.commit)
    lost.unlink()
    client.fault = down
    with pytest.raises(
        UnreachableError, match=r"fault of its own \(503\).*1 of 3 files are missing, 0.0 MB .*00001-of"
    ):
        prepare_here(tmp_path, store="second")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match=r"HF_HUB_OFFLINE is set.*1 of 3 files are missing"):
        prepare_here(tmp_path, store="second")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client.fault = lambda method, path: None
    assert prepare_here(tmp_path, store="second") == whole


def test_a_whole_cache_serves_without_the_hub_and_its_commit_is_said(
    client: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = prepare_here(tmp_path)
    client.fault = down
    assert prepare_here(tmp_path, store="second") == whole
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capfd.readouterr()
    assert prepare_here(tmp_path) == whole
    said = capfd.readouterr().err
    assert f"Using commit {client.commit[:12]}, which this machine downloaded last" in said
    assert f"already prepared in {tmp_path}" in said
    assert f"commit {client.commit[:12]} is the last that was downloaded" in said


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_file_of_the_cache_that_is_not_as_the_hub_lists_it_is_downloaded_again(
    size: str, client: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = prepare_here(tmp_path)
    file = cached(tmp_path, "train-00001-of-00002.parquet", client.commit)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.resolve().write_bytes(bytes(body) + (b"x" if size == "other" else b""))
    assert prepare_here(tmp_path, store="second") == whole
    said = re.search("00001-of-00002.parquet has other bytes than .*: downloading it again", capfd.readouterr().err)
    assert bool(said) == (size == "same")


def test_a_damaged_file_of_the_cache_is_kept_and_named_while_the_hub_cannot_be_asked(
    client: Hub, tmp_path: Path
) -> None:
    prepare_here(tmp_path)
    file = cached(tmp_path, "train-00001-of-00002.parquet", client.commit)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.resolve().write_bytes(body)
    client.fault = down
    with pytest.raises(UserError, match=r"00001-of-00002\.parquet has other bytes than .* when the hub can be"):
        prepare_here(tmp_path, store="second")
    assert file.read_bytes() == bytes(body)


def test_a_damaged_card_in_the_cache_does_not_name_the_classes(client: Hub, tmp_path: Path) -> None:
    card = client.files / "README.md"
    card.write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
                    "  - split: validation\n    path: data/valid*\n---\n")  # fmt: skip
    client.publish()
    whole = prepare_here(tmp_path)
    file = cached(tmp_path, "..", client.commit) / "README.md"
    file.resolve().write_text(card.read_text().replace("valid*", "train*"))
    assert prepare_here(tmp_path, store="second") == whole


def test_bytes_that_are_wrong_each_time_are_refused_with_the_name_of_the_file(client: Hub, tmp_path: Path) -> None:
    body = bytearray(first_file(client).read_bytes())
    body[100] ^= 1

    def damage(method: str, path: str) -> Answer | None:
        if "/resolve/" not in path or "train-00000" not in path:
            return None
        return 200, {"ETag": '"damaged"', "X-Repo-Commit": client.commit}, bytes(body)

    client.fault = damage
    with pytest.raises(UserError, match=r"data/train-00000-of-00002.parquet has other bytes than commit .* lists"):
        prepare_here(tmp_path)


# What the hub answers in place of the data.


def always(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Callable[[str, str], Answer]:
    return lambda method, path: (status, headers or {}, body)


def of_files(
    status: int, headers: dict[str, str] | None = None, body: bytes = b""
) -> Callable[[str, str], Answer | None]:
    return lambda method, path: (status, headers or {}, body) if "/resolve/" in path else None


PAGE = {"Content-Type": "text/html"}, b"<html>Please log in to this network</html>"
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        (always(401, BAD_TOKEN), UserError, r"refused the token \(401.*wrong or has expired; make a read token"),
        (always(403), UserError, r"forbids this \(403.*lacks a permission"),
        (of_files(403), UserError, r"forbids this \(403"),
        (always(429, {"Retry-After": "7"}), UnreachableError, r"too many requests \(429"),
        (always(500), UnreachableError, r"fault of its own \(500"),
        (of_files(503), UnreachableError, r"fault of its own \(503"),
        (always(0), UnreachableError, r"cannot be reached.*closed the connection without an answer"),
        (always(200, *PAGE), UserError, r"something that is not the hub's, such as a web page"),
        (of_files(200, *PAGE), UserError, r"something that is not the hub's, such as a web page"),
        (of_files(404, {"X-Error-Code": "EntryNotFound"}), UserError, r"no longer has .*parquet \(404\)"),
        (always(418), UserError, r"answered 418"),
    ],
)
def test_what_the_hub_answers_is_told_as_what_it_is(
    fault: Callable[[str, str], Answer | None], kind: type[UserError], expected: str, client: Hub, tmp_path: Path
) -> None:
    client.fault = fault
    with pytest.raises(UserError, match=f"(?s)DATA=lab/photos: .*{expected}") as told:
        prepare_here(tmp_path)
    assert type(told.value) is kind


def test_a_wait_that_the_hub_asks_for_is_kept_and_shown(
    client: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("trainer.data.making.revision.hub_faults.time.sleep", waits.append)
    limits = [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=55'}]
    client.fault = lambda method, path: (429, limits.pop(0), b"") if limits else None
    assert prepare_here(tmp_path).index.splits["train"].images == 12
    assert waits == [7, 56]
    said = capfd.readouterr().err
    assert "too many requests (429)" in said
    assert "Waiting 56 s" in said
