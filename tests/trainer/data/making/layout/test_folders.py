"""Image folders as people have them: which files are read as what, why others are left out, and what is refused."""

from __future__ import annotations

import pytest

from tests.trainer.data.making.layout import files_of
from trainer.contract import UserError
from trainer.data.making.layout import NOWHERE, Choices, SourceLayout, lay_out

TRAIN = ["train/cat/a.JPEG", "train/cat/b.JPEG", "train/dog/a.JPEG"]
VAL = ["val/cat/c.JPEG", "val/dog/c.JPEG"]


def laid_out(
    *paths: str, nowhere: tuple[str, ...] = (), choices: Choices | None = None, card: str = ""
) -> SourceLayout:
    listing = dict.fromkeys(paths, 100) | dict.fromkeys(nowhere, NOWHERE)
    return lay_out("here", listing, choices or Choices(), card=card)


def moved(paths: list[str], before: str, after: str) -> list[str]:
    return [after + path.removeprefix(before) if path.startswith(before) else path for path in paths]


def test_images_come_by_class_and_name_and_each_class_has_its_number() -> None:
    layout = laid_out(*reversed([*TRAIN, *VAL]))
    assert (layout.form, layout.classes) == ("folder", ("cat", "dog"))
    assert [*layout.splits["train"], *layout.splits["val"]] == [*TRAIN, *VAL] == files_of(layout)
    assert (layout.labels["train"].tolist(), layout.labels["val"].tolist()) == ([0, 0, 1], [0, 1])
    assert not any(layout.left_out.values())


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "Val", "ILSVRC2012_img_val"])
def test_a_single_folder_that_names_the_validation_is_it(name: str) -> None:
    assert laid_out(*TRAIN, *moved(VAL, "val/", f"{name}/")).names == {"train": "train", "val": name}


def test_hidden_and_system_folders_are_never_classes_and_are_counted() -> None:
    odd = [
        "train/.ipynb_checkpoints/cat_0.JPEG", "val/.ipynb_checkpoints/cat_0.JPEG", "train/@eaDir/", "val/@eaDir/t.jpg",
        "__MACOSX/train/cat/._a.JPEG", "train/cat/._a.JPEG", "train/cat/.DS_Store", "lost+found/", ".git/",
    ]  # fmt: skip
    layout = laid_out(*TRAIN, *VAL, *odd)
    assert layout.classes == ("cat", "dog")
    assert files_of(layout) == [*TRAIN, *VAL]
    assert layout.left_out["hidden files, and folders of the system"] == sorted(odd)


def test_every_file_is_read_or_left_out_for_a_reason() -> None:
    rest = {
        "no ending of an image": ["README.md", "train/cat/Thumbs.db", "train/cat/d", "train/labels.txt"],
        "images outside of the splits": ["preview.jpg"],
        "split test is not used": ["test/x.JPEG", "test/y.JPEG"],
    }
    layout = laid_out(*TRAIN, *VAL, *(path for paths in rest.values() for path in paths))
    assert files_of(layout) == [*TRAIN, *VAL]
    assert {reason: sorted(paths) for reason, paths in layout.left_out.items() if paths} == rest


def test_other_endings_of_images_are_read() -> None:
    more = [f"train/cat/{name}" for name in ("a.GIF", "b.jfif", "c.jpe", "E.JPG", "f.Png")]
    assert set(more) < set(laid_out(*TRAIN, *VAL, *more).splits["train"])


def test_one_more_folder_in_every_class_is_read_and_said() -> None:
    paths = [path.replace("/cat/", "/cat/images/").replace("/dog/", "/dog/images/") for path in [*TRAIN, *VAL]]
    layout = laid_out(*paths)
    assert (files_of(layout), layout.classes) == (paths, ("cat", "dog"))
    assert "one more folder images/ of each class" in layout.said[0]


def test_the_splits_may_lie_below_the_only_folder_with_images() -> None:
    at = "ILSVRC/Data/CLS-LOC/"
    layout = laid_out(
        *(at + path for path in [*TRAIN, *VAL, "test/x.JPEG"]), "ILSVRC/Annotations/CLS-LOC/train/cat/a.xml"
    )
    assert files_of(layout) == [at + path for path in [*TRAIN, *VAL]]


def test_a_class_name_is_the_same_however_its_accents_are_written() -> None:
    layout = laid_out(*TRAIN, *VAL, "train/caf\u00e9/a.JPEG", "val/cafe\u0301/a.JPEG")
    assert layout.classes == ("caf\u00e9", "cat", "dog")
    assert layout.labels["val"].tolist() == [0, 1, 2]


def test_two_class_folders_that_differ_in_their_form_of_unicode_alone_are_one_class_and_that_is_said() -> None:
    layout = laid_out(*TRAIN, *VAL, "train/caf\u00e9/a.JPEG", "train/cafe\u0301/b.JPEG", "val/caf\u00e9/a.JPEG")
    assert layout.labels["train"].tolist() == [0, 0, 1, 1, 2]
    assert layout.said == (
        "2 class folders of train are called caf\u00e9, in two forms of Unicode: they are read as one class",
    )


def test_two_folders_for_a_role_are_a_question_and_the_option_answers_it() -> None:
    paths = [*TRAIN, *VAL, "validation/cat/x.JPEG", "validation/dog/x.JPEG", "train_small/cat/a.JPEG"]
    with pytest.raises(UserError, match=r"split train may be train \(3 files\), train_small.*--train-split train"):
        laid_out(*paths)
    with pytest.raises(UserError, match=r"DATA=here: split val may be val \(2 files\), validation.*--val-split val"):
        laid_out(*paths, choices=Choices(train_split="train"))
    layout = laid_out(*paths, choices=Choices(train_split="train", val_split="validation"))
    assert layout.splits["val"] == ("validation/cat/x.JPEG", "validation/dog/x.JPEG")
    assert layout.left_out["split val is not used"] == VAL
    both = laid_out(*paths, choices=Choices(train_split="train+train_small", val_split="val+validation"))
    assert len(both.splits["val"]) == 4


def test_a_set_with_a_test_alone_is_refused_until_it_is_chosen() -> None:
    paths = [*TRAIN, *moved(VAL, "val/", "test/")]
    with pytest.raises(UserError, match=r"split val is missing.*test \(2 files\).*--val-split test"):
        laid_out(*paths)
    assert laid_out(*paths, choices=Choices(val_split="test")).splits["val"] == ("test/cat/c.JPEG", "test/dog/c.JPEG")
    with pytest.raises(UserError, match="there is no split 'tset': the splits here are test"):
        laid_out(*paths, choices=Choices(val_split="tset"))
    with pytest.raises(UserError, match="would be in training and in validation"):
        laid_out(*paths, choices=Choices(val_split="train"))


@pytest.mark.parametrize(
    ("paths", "nowhere", "message"),
    [
        (["train/cat/more/deep.JPEG"], (), r"split train lie at different depths.*train/cat/more/deep.JPEG"),
        (["val/x.JPEG"], (), r"1 images of split val lie beside its class folders \(val/x.JPEG\)"),
        (["train/x.JPEG"], (), r"1 images of split train lie beside its class folders"),
        ([], ("train/cat/z.JPEG", "train/cat/y.JPEG"), r"2 links in split train lead nowhere \(train/cat/y.JPEG, t"),
        (["train/empty/"], (), r"class folder train/empty has no image"),
        (["val/empty/notes.txt"], (), r"class folder val/empty has no image"),
        (["train/cow/x.JPEG"], (), r"train has 3 class folders, val has 2, and they differ \(for example 'cow'\)"),
        (["train-0.parquet"], (), r"parquet files.*folders of images.*give the folder that holds only one"),
    ],
)
def test_what_would_be_read_in_part_or_wrongly_is_refused(
    paths: list[str], nowhere: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        laid_out(*TRAIN, *VAL, *paths, nowhere=nowhere)


def test_a_folder_of_nothing_known_says_what_was_looked_for() -> None:
    for paths in ((), ("notes.txt",), ("a.jpg", "b.jpg")):
        with pytest.raises(UserError, match=r"nothing recognised.*looked for.*put them below train/, .* below val/"):
            laid_out(*paths)


def test_folders_of_classes_alone_are_told_to_go_below_train_and_val() -> None:
    with pytest.raises(UserError, match=r"are classes \(cat, dog\), put them below train/, .*--train-split cat"):
        laid_out("cat/a.jpg", "dog/b.jpg")


def test_links_to_whole_splits_that_lead_nowhere_are_named() -> None:
    for link in ("val", "val.parquet", "data/train"):
        with pytest.raises(UserError, match=rf"{link} lead nowhere: fetch or mount"):
            laid_out(*TRAIN, nowhere=(link,))
    layout = laid_out(*TRAIN, *VAL, nowhere=("notes", "old/labels.txt"))
    assert layout.left_out["links that lead nowhere"] == ["notes", "old/labels.txt"]


def test_images_that_readme_declares_are_those_of_the_folders_or_it_is_a_question() -> None:
    card = "---\nconfigs:\n- config_name: x\n  data_files: [{split: train, path: 'train/**'}, {split: %s}]\n---\n"
    assert files_of(laid_out(*TRAIN, *VAL, card=card % "validation, path: 'val/**'")) == [*TRAIN, *VAL]
    more = ["more/cat/x.JPEG", "more/dog/x.JPEG"]
    card %= "validation, path: ['val/**', 'more/**']"
    with pytest.raises(UserError, match=r"README.md declares other images for split validation.*2 differ \(more/cat/x"):
        laid_out(*TRAIN, *VAL, *more, card=card)
    chosen = laid_out(*TRAIN, *VAL, *more, card=card, choices=Choices(val_split="val+more"))
    assert sorted(chosen.splits["val"]) == sorted([*VAL, *more])


@pytest.mark.parametrize("choices", [Choices(image_column="x"), Choices(label_column="x")])
def test_a_choice_that_means_nothing_to_the_data_is_refused(choices: Choices) -> None:
    tars = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    for paths, given in (([*TRAIN, *VAL], choices), (tars, choices), (tars, Choices(val_split="test"))):
        with pytest.raises(UserError, match=r"--[a-z-]+ does not apply to such data"):
            laid_out(*paths, choices=given)


FLAT = [*TRAIN, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG"]


@pytest.mark.parametrize(
    "files",
    [
        ("LOC_val_solution.csv",), ("valprep.sh",), ("imagenet_2012_validation_synset_labels.txt",),
        ("data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"), ("ILSVRC2012_devkit_t12.tar.gz",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["val/", "val/ILSVRC2012_img_val/"])
def test_a_flat_validation_needs_a_file_that_says_its_classes(files: tuple[str, ...], folder: str) -> None:
    paths = moved(FLAT, "val/", folder)
    layout = laid_out(*paths, *files)
    assert layout.truth == {"val": files}
    assert layout.splits["val"] == tuple(paths[3:])
    assert "val" not in layout.labels
    assert files_of(layout) == [*paths, *files]
    assert not any(layout.left_out.values())
    with pytest.raises(
        UserError, match=r"val has 0 class folders.*devkit_t12.tar.gz.*LOC_val_solution.csv.*valprep.sh"
    ):
        laid_out(*paths, "ILSVRC2012_validation_ground_truth.txt")


def test_archives_of_imagenet_are_read_if_nothing_is_unpacked_beside_them() -> None:
    tars = ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]
    layout = laid_out(*tars, "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_test_v10102019.tar")
    assert (layout.form, layout.splits) == ("tar", {"train": (tars[0],), "val": (tars[1],)})
    assert list(layout.left_out.values()) == [["ILSVRC2012_img_test_v10102019.tar"]]
    assert laid_out(*tars, *TRAIN, *VAL).form == "folder"
    with pytest.raises(UserError, match=r"split val is missing.*ILSVRC2012_img_val.tar is here 0 times"):
        laid_out(tars[0])
    with pytest.raises(UserError, match=r"nothing says their classes"):
        laid_out(*tars)


def test_a_role_is_looked_for_below_the_only_folder_though_its_name_has_a_word_or_an_image_lies_beside_it() -> None:
    for at in ("imagenet-train-val/", "training_data/", "imagenet/", "data/train/"):
        layout = laid_out(*(at + path for path in [*TRAIN, *VAL]), "preview.png")
        assert files_of(layout) == [at + path for path in [*TRAIN, *VAL]]
        assert layout.left_out["images outside of the splits"] == ["preview.png"]


@pytest.mark.parametrize(
    ("others", "advice"),
    [
        (["extra/cat/x.JPEG", "test/cat/x.JPEG"], r"choose one: .*--val-split test\""),
        (["extra/cat/x.JPEG"], r"choose one: .*--val-split extra\""),
        ([], "None of them is left for --val-split: add it$"),
    ],
)
def test_the_advice_for_a_missing_split_is_none_that_has_another_role(others: list[str], advice: str) -> None:
    with pytest.raises(UserError, match=f"split val is missing.*{advice}"):
        laid_out(*TRAIN, *others)


def test_an_archive_beside_an_unpacked_split_is_told_as_still_packed() -> None:
    with pytest.raises(UserError, match=r"split val is missing: ILSVRC2012_img_val.tar is still packed.*into val/"):
        laid_out(*TRAIN, "ILSVRC2012_img_val.tar")
    layout = laid_out(*TRAIN, *moved(VAL, "val/", "test/"), "ILSVRC2012_img_val.tar", choices=Choices(val_split="test"))
    assert layout.names["val"] == "test"


def test_a_file_of_classes_that_is_there_twice_is_named() -> None:
    truth = ["ILSVRC2012_validation_ground_truth.txt"]
    with pytest.raises(UserError, match=r"meta.mat, which .* is there 2 times \(meta.mat, old/meta.mat\): remove all"):
        laid_out(*TRAIN, "val/a.JPEG", *truth, "meta.mat", "old/meta.mat")


def test_declared_counts_are_not_those_of_a_split_with_another_name() -> None:
    card = "---\ndataset_info: {splits: [{name: train, num_examples: 100}, {name: validation, num_examples: 2}]}\n---\n"
    more = [*TRAIN, *VAL, *moved(TRAIN, "train/", "train_small/")]
    for split, count in (("train", 100), ("train_small", None), ("train+train_small", None)):
        layout = laid_out(*more, choices=Choices(train_split=split), card=card)
        assert (layout.declared_examples("train"), layout.declared_examples("val")) == (count, 2)
