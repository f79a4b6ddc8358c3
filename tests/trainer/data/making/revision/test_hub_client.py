"""The hub's client: few patterns for many files, and what its storage raises instead of an answer."""

from __future__ import annotations

from typing import Any

import hf_xet
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from trainer.contract import UserError
from trainer.data.making.revision.hub import HubFile, Revision, fetch_files, find_revision
from trainer.data.making.revision.hub_faults import Account, UnreachableError

pytestmark = pytest.mark.slow

ACCOUNT = Account("lab/photos", "", "https://hub")
IMAGES = [f"{split}/n{i % 100:03d}/[{i}].JPEG" for split in ("train", "test") for i in range(10_000)]


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[dict[str, Any]]:
    """What the client is told to fetch. Nothing arrives."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **options: found.append(options))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("trainer.data.making.revision.hub_faults.time.sleep", lambda seconds: None)
    return found


@pytest.mark.parametrize("address", ["http://hub.example", "http://127.0.0.1:1@hub.example", "hub.example"])
def test_a_hub_without_tls_gets_no_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with pytest.raises(UserError, match=f"HF_ENDPOINT='{address}' is not asked, since a token would travel"):
        find_revision("lab/photos", "")


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        (IMAGES[:10_000], IMAGES[10_000:]),
        (IMAGES, [".gitattributes"]),
        (IMAGES, ["train/n000/more/notes.txt", "README.md"]),
        ([f"val/{i}.JPEG" for i in range(5_000)], ["val/notes.txt"]),
        (["README.md"], IMAGES),
    ],
)
def test_many_files_are_fetched_by_few_patterns_and_no_other_file_is(
    wanted: list[str], others: list[str], fetches: list[dict[str, Any]]
) -> None:
    files = tuple(HubFile(path, 1, "", "") for path in [*wanted, *others])
    with pytest.raises(UnreachableError, match="did not arrive whole"):
        fetch_files(Revision(ACCOUNT, "0" * 40, files), wanted)
    patterns = {name: some for name, some in fetches[0].items() if name.endswith("_patterns")}
    assert sum(len(some or ()) for some in patterns.values()) <= 200
    assert list(filter_repo_objects([*wanted, *others], **patterns)) == wanted


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (hf_xet.XetAuthenticationError("token expired"), UserError, r"refused the token \(401, 'token expired'\)"),
        (hf_xet.XetObjectNotFoundError("no such hash"), UserError, r"no longer has a part of it \(404"),
        (RuntimeError("Data processing error: CAS service error"), UnreachableError, "did not give the data.*CAS"),
    ],
)
def test_what_the_storage_of_the_hub_raises_is_told_as_what_it_is(
    error: Exception,
    kind: type[UserError],
    message: str,
    fetches: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []

    def fail(*_: object, **options: object) -> None:
        tries.append(1)
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=f"DATA=lab/photos: .*{message}") as told:
        fetch_files(Revision(ACCOUNT, "0" * 40, (HubFile("a", 1, "", ""),)), ["a"])
    assert (type(told.value), len(tries)) == (kind, 3 if kind is UnreachableError else 1)


@pytest.mark.parametrize("data", ["data/my--set", "data/set.git"])
def test_a_mistyped_folder_that_no_dataset_can_be_called_is_told_as_neither(data: str) -> None:
    with pytest.raises(UserError, match=f"DATA={data}: no folder of that name here, and no dataset can have it"):
        find_revision(data, "")
