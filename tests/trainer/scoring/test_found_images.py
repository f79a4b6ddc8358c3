"""Images of one split: class folders and parquet files, here and on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.images import encode, photo, rows, write_parquet
from trainer.contract import UserError
from trainer.scoring.found_images import FoundImages, find_files, open_found

WNIDS = ("n01498041", "n01531178", "n01534433")


def folder_of(root: Path, *, images: int = 2) -> Path:
    for label, name in enumerate(WNIDS):
        (root / name).mkdir(parents=True)
        for i in range(images):
            (root / name / f"{i}.jpg").write_bytes(encode(photo(10 * label + i, 40, 40)))
    return root


def found(data: Path | str, tmp_path: Path) -> FoundImages:
    return open_found(find_files(str(data), tmp_path / "scratch"))


@pytest.mark.parametrize("around", ["", "imagenet-a", "data/imagenet-a"])
def test_class_folders_are_found_below_any_folder_around_them(around: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "set" / around)
    (tmp_path / "set" / around / "README.txt").write_text("n01498041 stingray")
    opened = found(tmp_path / "set", tmp_path)
    assert opened.classes == WNIDS
    assert opened.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [Path(name).name for name in opened.names()] == ["0.jpg", "1.jpg"] * 3
    assert opened.images[3].image == encode(photo(11, 40, 40))


def test_another_file_or_size_is_another_fingerprint(tmp_path: Path) -> None:
    first = found(folder_of(tmp_path / "first"), tmp_path).identity
    assert first["fingerprint"] == found(folder_of(tmp_path / "second"), tmp_path).identity["fingerprint"]
    (tmp_path / "second" / WNIDS[0] / "0.jpg").write_bytes(b"shorter")
    assert first["fingerprint"] != found(tmp_path / "second", tmp_path).identity["fingerprint"]


def as_imagenet_a(root: Path) -> Path:
    """As barkermrl/imagenet-a has it: one split, called train, and WordNet ids as class names."""
    write_parquet(root / "data" / "train-00000-of-00002.parquet", rows(4), names=WNIDS)
    write_parquet(root / "data" / "train-00001-of-00002.parquet", rows(2, first=4), names=WNIDS)
    return root


def as_imagenet_r(root: Path) -> Path:
    """As axiong/imagenet-r has it: a config and a split called test, and WordNet ids as text in a column `wnid`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = [
        {"image": row["image"], "wnid": WNIDS[row["label"]], "class_name": "a name"} for row in rows(6)
    ]  # fmt: skip
    (root / "test").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(content), root / "test" / "test-00000-of-00001.parquet")
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: test\n  data_files:\n  - split: test\n    path: test/test-*\n---\n"
    )
    return root


@pytest.mark.parametrize("make", [as_imagenet_a, as_imagenet_r])
def test_parquet_files_of_one_split_are_read_with_the_names_of_their_classes(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    opened = found(make(tmp_path / "set"), tmp_path)
    assert opened.classes == WNIDS
    assert opened.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert opened.names() == [f"image_{i}.JPEG" for i in range(6)]
    assert opened.images[5].image == rows(6)[5]["image"]["bytes"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    files = tmp_path / "hub-files"
    files.mkdir()
    hub = Hub(files)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield hub
    hub.close()


@pytest.mark.parametrize("make", [as_imagenet_a, as_imagenet_r, folder_of])
def test_a_hub_id_is_read_as_the_folder_with_its_files(make: Callable[[Path], Path], hub: Hub, tmp_path: Path) -> None:
    make(hub.files)
    commit = hub.publish()
    opened = found("lab/photos", tmp_path)
    assert opened.classes == WNIDS
    assert opened.labels.tolist() == found(hub.files, tmp_path).labels.tolist()
    assert opened.images[4].image == found(hub.files, tmp_path).images[4].image
    assert opened.identity["commit"] == commit


def two_depths(root: Path) -> Path:
    (folder_of(root) / WNIDS[0] / "more").mkdir()
    (root / WNIDS[0] / "more" / "2.jpg").write_bytes(b"")
    return root


def only_an_archive(root: Path) -> Path:
    root.mkdir()
    (root / "imagenet-a.tar").write_bytes(b"x")
    return root


def both(root: Path) -> Path:
    return folder_of(as_imagenet_a(root))


def several_splits(root: Path) -> Path:
    for name in ("matched", "threshold"):
        write_parquet(root / f"{name}.parquet", rows(3), names=WNIDS)
    return root


def no_labels(root: Path) -> Path:
    write_parquet(root / "test.parquet", [row | {"label": -1} for row in rows(3)], names=None)
    return root


def other_columns(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    pq.write_table(pa.table({"image": [b""], "class_id": [0]}), root / "test.parquet")
    return root


def link_to_nowhere(root: Path) -> Path:
    (folder_of(root) / WNIDS[0] / "2.jpg").symlink_to("nowhere")
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_depths, "1 of 7 images do not lie in a class folder, or lie deeper in it (n01498041/more/2.jpg)"),
        (only_an_archive, "no image and no parquet file in it (1 other files, such as imagenet-a.tar)"),
        (both, "either may be meant"),
        (several_splits, "it has several splits, matched (1 files), threshold (1 files): give a folder with"),
        (no_labels, "label -1 of image 0 is out of range (3 such)"),
        (other_columns, "has no column label or wnid, only ['image', 'class_id']"),
        (link_to_nowhere, "1 links lead nowhere (n01498041/2.jpg)"),
    ],
)
def test_what_does_not_say_its_classes_is_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        found(make(tmp_path / "set"), tmp_path)
