"""Folders as people have them: links, hidden folders, odd names; ImageNet's own files as they are downloaded."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.images import CLASSES, encode, image_folder, parquet_folder, photo
from trainer.contract import UserError
from trainer.data.making.forms.sources import open_source
from trainer.data.making.layout import NOWHERE, Choices
from trainer.data.making.layout.listing import walk
from trainer.data.making.revision.identity import identity_of
from trainer.data.making.revision.manifest import SourceMemory


def test_a_listing_has_every_file_once_with_its_bytes(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    for name in ("a/b/c", "a/empty", ".git/objects", "@eaDir/x"):
        (folder / name).mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "z").write_bytes(b"123")
    (folder / "a" / "b" / "c" / "x").write_bytes(b"12")
    (folder / "linked").symlink_to(other)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "file").symlink_to(other / "deep" / "z")
    assert walk(folder) == {
        "a/b/c/x": 2, "a/empty/": 0, ".git/": 0, "@eaDir/": 0, "linked/deep/z": 3, "gone": NOWHERE, "file": 3,
    }  # fmt: skip
    (folder / "itself").symlink_to(folder / "itself")
    assert walk(folder)["itself"] == NOWHERE
    (folder / "a" / "loop").symlink_to(folder)
    with pytest.raises(UserError, match=r"a/loop is a link to a folder above it"):
        walk(folder)


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    real = image_folder(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "data" / split / name).symlink_to(real / split / name)
    assert len(open_source(str(tmp_path / "data")).splits["train"]) == 12


def test_links_that_lead_nowhere_are_refused_and_counted(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    for i in range(6):
        (folder / "train" / CLASSES[0] / f"z_{i}.JPEG").symlink_to(f"/nowhere/{i}.JPEG")
    with pytest.raises(UserError, match=r"6 links in split train lead nowhere \(train/n01440764/z_0.JPEG"):
        open_source(str(folder))


def test_every_file_that_is_not_read_is_told_with_the_reason(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "labels.txt", "._cat.JPEG"):
        (folder / "train" / CLASSES[0] / name).write_bytes(b"junk")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "test").mkdir()
    (folder / "test" / "x.JPEG").write_bytes(encode(photo(1)))
    source = open_source(str(folder))
    assert source.classes == CLASSES
    assert source.said == (
        "files read: 12 as train (train), 6 as val (val)",
        "not read: 3, hidden files, and folders of the system (train/.ipynb_checkpoints/, "
        "train/n01440764/.DS_Store, train/n01440764/._cat.JPEG)",
        "not read: 2, no ending of an image (train/n01440764/Thumbs.db, train/n01440764/labels.txt)",
        "not read: 1, split test is not used (test/x.JPEG)",
    )


def test_names_in_any_bytes_are_read_and_told_as_text(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, classes=("犬", "emoji 🐈"))
    for split in (b"train", b"val"):
        place = folder / os.fsdecode(split + b"/caf\xe9")
        place.mkdir()
        (place / "x.JPEG").write_bytes(encode(photo(1)))
    source = open_source(str(folder))
    assert source.classes == (r"caf\xe9", "emoji 🐈", "犬")
    assert source.splits["val"].labels.tolist() == [0, 1, 1, 2, 2]
    assert source.splits["val"][0].name == r"val/caf\xe9/x.JPEG"


def test_a_choice_is_part_of_the_identity(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path)
    (folder / "data" / "validation-00000-of-00001.parquet").rename(folder / "data" / "test-00000-of-00001.parquet")
    swapped = Choices(train_split="test", val_split="train")
    one, other = (identity_of(str(folder), choices, SourceMemory()) for choices in (swapped, Choices(val_split="test")))
    assert one.content != other.content
    assert len(open_source(str(folder), swapped).splits["train"]) == 6


# ImageNet's own files. Its validation images have numbers, and lie in no class folders.
WANTED = [2, 0, 1, 1, 0, 2]  # the class of each


def flat(folder: Path) -> Path:
    image_folder(folder, val=0)
    for name in CLASSES:
        (folder / "val" / name).rmdir()
    for i in range(6):
        (folder / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG").write_bytes(encode(photo(i)))
    return folder


def devkit(folder: Path, ids: tuple[int, ...] = (7, 3, 5), of_train: int = 4) -> Path:
    """Ground truth and meta.mat; the numbers of the classes are in another order than their names."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_train_images", "O")]
    synsets = np.zeros((4, 1), kinds)
    for i, (number, name) in enumerate([*zip(ids, CLASSES, strict=True), (1001, "n00001740")]):
        synsets[i, 0] = (number, name, "a, word", of_train)
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[label]}\n" for label in WANTED))
    return folder


def devkit_archive(folder: Path, of_train: int = 4) -> None:
    made = devkit(folder / "made", of_train=of_train)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(made, "ILSVRC2012_devkit_t12/data")
    for file in made.iterdir():
        file.unlink()
    made.rmdir()


def lines(name: str, of_image: Callable[[str, str], str], head: str = "") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = (of_image(f"ILSVRC2012_val_{i + 1:08d}", CLASSES[label]) for i, label in enumerate(WANTED))
        (folder / name).write_text(head + "\n".join(content) + "\n")

    return write


TRUTHS: dict[str, Callable[[Path], object]] = {
    "devkit": lambda folder: devkit(folder / "ILSVRC2012_devkit_t12" / "data"),
    "archive": devkit_archive,
    "kaggle": lines("LOC_val_solution.csv", lambda image, name: f"{image},{name} 85 1 499 272 {name} 1 2 3 4 ",
                    "ImageId,PredictionString\n"),
    "valprep": lines("valprep.sh", lambda image, name: f"mv {image}.JPEG {name}/", "#!/bin/bash\nmkdir -p n01440764\n"),
    "synsets": lines("imagenet_2012_validation_synset_labels.txt", lambda _, name: name),
    "tiny": lines("val_annotations.txt", lambda image, name: f"{image}.JPEG\t{name}\t0\t32\t44\t62"),
}  # fmt: skip


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_flat_validation_gets_its_classes_from_the_file_that_says_them(truth: str, tmp_path: Path) -> None:
    folder = flat(tmp_path)
    TRUTHS[truth](folder)
    source = open_source(str(folder))
    assert source.classes == CLASSES
    assert source.splits["val"].labels.tolist() == WANTED
    assert [source.splits["val"][i].image for i in range(6)] == [encode(photo(i)) for i in range(6)]
    assert source.said[1].startswith("classes of the validation: ")
    before = identity_of(str(folder), Choices(), SourceMemory()).content
    told = folder / source.said[1].removeprefix("classes of the validation: ").split(", ")[0]
    told.write_bytes(told.read_bytes() + b"\n")
    assert identity_of(str(folder), Choices(), SourceMemory()).content != before


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_validation_image_that_is_missing_is_named(
    truth: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = flat(tmp_path)
    TRUTHS[truth](folder)
    (folder / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(UserError, match=r"1 validation images \(ILSVRC2012_val_00000003\): .*--accept-incomplete"):
        open_source(str(folder))
    source = open_source(str(folder), Choices(accept_incomplete=True))
    assert source.splits["val"].labels.tolist() == [*WANTED[:2], *WANTED[3:]]
    assert "1 validation images (ILSVRC2012_val_00000003); that is accepted" in capfd.readouterr().err


def test_training_images_that_the_devkit_counts_and_are_not_there_are_missed(tmp_path: Path) -> None:
    folder = flat(tmp_path)
    devkit(folder)
    (folder / "train" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG").unlink()
    with pytest.raises(UserError, match=rf"missing are 1 training images of class {CLASSES[1]}: .*--accept-incomplete"):
        open_source(str(folder))


def test_the_folder_of_kaggle_is_read_as_it_was_unpacked(tmp_path: Path) -> None:
    flat(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    TRUTHS["kaggle"](tmp_path)
    for name in ("Annotations/CLS-LOC/train/n01440764/a.xml", "Data/CLS-LOC/test/x.JPEG"):
        (tmp_path / "ILSVRC" / name).parent.mkdir(parents=True)
        (tmp_path / "ILSVRC" / name).write_bytes(b"x")
    source = open_source(str(tmp_path))
    assert (source.classes, source.splits["val"].labels.tolist()) == (CLASSES, WANTED)
    assert source.splits["train"][5].name == f"ILSVRC/Data/CLS-LOC/train/{CLASSES[1]}/{CLASSES[1]}_1.JPEG"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\n", r"gives 6 of 6 validation images no class.*or none"),
        ("valprep.sh", "mv ILSVRC2012_val_00000001.JPEG n01440764/\nmv ILSVRC2012_val_00000001.JPEG n01443537/\n",
         r"valprep.sh does not say the classes.*'n01440764' and 'n01443537'"),
        ("imagenet_2012_validation_synset_labels.txt", "n01440764\n",
         r"gives 5 of 6 validation images no class.*, or none"),
        ("imagenet_2012_validation_synset_labels.txt", "n09999999\n" * 6, r"no class of training, such as 'n09999999'"),
        ("ILSVRC2012_devkit_t12.tar.gz", "<html>", r"devkit_t12.tar.gz does not say the classes of the validation"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_say_every_class_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = flat(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_source(str(folder))


@pytest.mark.parametrize("truth", ["kaggle", "valprep", "tiny"])
def test_a_training_that_is_half_unpacked_is_told_and_not_the_file_of_the_classes(truth: str, tmp_path: Path) -> None:
    folder = flat(tmp_path)
    TRUTHS[truth](folder)
    shutil.rmtree(folder / "train" / CLASSES[2])
    with pytest.raises(UserError, match=rf"such as '{CLASSES[2]}' .*no folder for 1 classes.*unpack the rest"):
        open_source(str(folder))


def archives(folder: Path) -> dict[str, list[bytes]]:
    """Both archives as image-net.org gives them, and the images in the order in which they are to come."""
    images = {"train": [encode(photo(i)) for i in range(6)], "val": [encode(photo(i + 10)) for i in range(6)]}

    def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for label in (2, 0, 1):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as inner:
                for i in (1, 0):
                    add(inner, f"{CLASSES[label]}_{i}.JPEG", images["train"][2 * label + i])
            add(outer, f"{CLASSES[label]}.tar", packed.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as outer:
        for i in (3, 0, 1, 2, 5, 4):
            add(outer, f"ILSVRC2012_val_{i + 1:08d}.JPEG", images["val"][i])
    return images


def test_the_archives_of_imagenet_are_read_where_they_lie(tmp_path: Path) -> None:
    images = archives(tmp_path)
    devkit_archive(tmp_path, of_train=2)
    before = sorted(tmp_path.iterdir())
    source = open_source(str(tmp_path))
    assert source.classes == CLASSES
    assert (source.splits["train"].labels.tolist(), source.splits["val"].labels.tolist()) == (
        [0, 0, 1, 1, 2, 2],
        WANTED,
    )
    for role, expected in images.items():
        assert [source.splits[role][i].image for i in range(6)] == expected
    assert source.splits["train"][3].name == "n01443537_1.JPEG"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_an_archive_that_is_cut_is_refused(name: str, tmp_path: Path) -> None:
    archives(tmp_path)
    devkit_archive(tmp_path)
    file = tmp_path / name
    for length in (file.stat().st_size // 2, 700, 100):
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(UserError, match=r"ILSVRC2012_img_\w+.tar.*(is cut|is damaged).*fetch it again"):
            open_source(str(tmp_path))


@pytest.mark.parametrize("inside", [False, True])
def test_an_archive_with_a_damaged_header_is_refused(inside: bool, tmp_path: Path) -> None:
    archives(tmp_path)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(CLASSES[i] for i in WANTED))
    file = tmp_path / "ILSVRC2012_img_train.tar"
    assert len(open_source(str(tmp_path)).splits["train"]) == 6
    with tarfile.open(file) as outer:
        second = outer.getmembers()[1]
        with tarfile.open(fileobj=outer.extractfile(second)) as inner:
            within = inner.getmembers()[1].offset
    at = second.offset_data + within if inside else second.offset
    content = bytearray(file.read_bytes())
    content[at : at + 512] = bytes(512)
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"img_train.tar is damaged at byte {at:,}: fetch it again"):
        open_source(str(tmp_path))
