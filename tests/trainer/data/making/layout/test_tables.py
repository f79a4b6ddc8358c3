"""Parquet files as people have them: splits, configs and shards. `datasets` is the judge where it decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.trainer.data.making.layout import files_of
from trainer.contract import UserError
from trainer.data.making.layout import Choices, SourceLayout, lay_out

WHOLE = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
]
CONFIGS = [f"{size}/{split}-00000-of-00001.parquet" for size in ("160px", "320px") for split in ("train", "validation")]


def laid_out(*paths: str, card: dict[str, Any] | None = None, **choices: Any) -> SourceLayout:
    text = f"---\n{yaml.safe_dump(card)}---\n# Photos\n" if card else ""
    return lay_out("here", dict.fromkeys(paths, 100), Choices(**choices), card=text)


def as_datasets(root: Path, paths: tuple[str, ...]) -> dict[str, list[str]]:
    """What `datasets` takes for each split of a folder with these files."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    found = DataFilesDict.from_local_or_remote(get_data_patterns(str(root)), base_path=str(root))
    return {split: sorted(str(Path(file).relative_to(root)) for file in files) for split, files in found.items()}


@pytest.mark.parametrize(
    "paths",
    [
        (*WHOLE, "data/test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/train_small-00000-of-00001.parquet",
         "data/validation-00000-of-00001.parquet", "data/validation_noisy-00000-of-00001.parquet"),
        ("train-00000-of-00001.parquet", "valid-00000-of-00001.parquet"),
        ("train.parquet", "dev.parquet", "test.parquet"),
        ("train-0.parquet", "train-1.parquet", "validation-0.parquet"),
        ("train_0.parquet", "train_1.parquet", "val_0.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet"),
        ("cifar-train.parquet", "cifar-val.parquet"),
        ("photos/training/a.parquet", "photos/training/b.parquet", "photos/dev/a.parquet"),
        ("data/train-00000-of-00001-0a1b2c3d4e5f6789.parquet", "data/validation-00000-of-00001-1a1b2c3d.parquet"),
        (*(f"{split}-part-{i:05d}-0a1b2c3d-1a2b-3c4d-5e6f-0123456789a{i}{end}.parquet"
           for split, end in (("train", ""), ("val", "-c000.snappy")) for i in range(2)),),
        ("160px/train-00000-of-00001.parquet", "160px/validation-00000-of-00001.parquet"),
    ],
)  # fmt: skip
def test_splits_come_out_as_datasets_reads_them(paths: tuple[str, ...], tmp_path: Path) -> None:
    layout, judged = laid_out(*paths), as_datasets(tmp_path, paths)
    assert {role: list(files) for role, files in layout.splits.items()} == {
        "train": judged["train"],
        "val": judged["validation"],
    }
    left = [path for of_reason in layout.left_out.values() for path in of_reason]
    assert sorted([*files_of(layout), *left]) == sorted(paths)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("train-0.parquet", "train_small-0.parquet", "val-0.parquet"), r"split train may be train.*train_small"),
        (("train.parquet", "val.parquet", "validation.parquet"), r"split val may be val.*validation.*--val-split val"),
        (("train.parquet", "test.parquet"), r"split val is missing.*test \(1 files\).*--val-split"),
        (("imagenet-train-val/0.parquet", "imagenet-train-val/1.parquet"), r"would be in training and in validation"),
        (("train/validation-0.parquet", "train/train-0.parquet"), r"split train may be train.*validation"),
        (CONFIGS, r"several times, in the configs 160px .*320px .*--data-config 160px"),
        (("train/0000.parquet", "validation/0000.parquet", "default/train/0000.parquet"), r"configs \. .*default "),
        (("imagenet-train-val/train-00000-of-00001.parquet", "imagenet-train-val/validation-00000-of-00001.parquet",
          "validation-extra.parquet"), r"split val may be validation.*validation-extra"),
        ((*WHOLE[:1], WHOLE[2]), r"1 of 2 shards of train are missing \(data/train-00001-of-00002\).*--accept-in"),
        ((*WHOLE, "data/train-00000-of-00003.parquet"), r"data/train is there in 2 and in 3 shards.*several uploads"),
        ((*WHOLE, "data/train-00001-of-00002-1a2b3c4d.parquet"), r"one shard is there twice"),
        (("a.parquet", "b.parquet"), r"split train is missing.*a \(1 files\), b \(1 files\).*--train-split a"),
    ],
)  # fmt: skip
def test_what_may_be_meant_in_two_ways_or_is_incomplete_is_refused(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        laid_out(*paths)


def test_the_choices_answer_the_questions() -> None:
    configs = [
        f"{size}/{split}-00000-of-00001.parquet" for size in ("160px", "320px") for split in ("train", "validation")
    ]
    layout = laid_out(*configs, config="320px")
    assert files_of(layout) == configs[2:]
    assert layout.left_out == {"config 160px is not used": configs[:2]}
    layout = laid_out("a.parquet", "b.parquet", "c.parquet", train_split="a+b", val_split="c")
    assert (files_of(layout), layout.names) == (["a.parquet", "b.parquet", "c.parquet"], {"train": "a+b", "val": "c"})
    leak = ["imagenet-train-val/train-00000-of-00001.parquet", "imagenet-train-val/validation-00000-of-00001.parquet"]
    assert files_of(laid_out(*leak)) == leak
    layout = laid_out(*WHOLE[:1], WHOLE[2], accept_incomplete=True)
    assert files_of(layout) == [WHOLE[0], WHOLE[2]]
    assert "1 of 2 shards of train are missing" in layout.said[0]
    with pytest.raises(UserError, match=r"no config 'huge'.*160px"):
        laid_out(*CONFIGS, config="huge")


def test_shards_may_be_counted_from_one() -> None:
    paths = ["train-00001-of-00002.parquet", "train-00002-of-00002.parquet", "val.parquet"]
    assert files_of(laid_out(*paths)) == paths


def declaring(*configs: tuple[str, dict[str, object]], **more: Any) -> dict[str, Any]:
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs
    ]
    return {"configs": entries, **more}


def test_declared_files_count_more_than_names() -> None:
    paths = ["a/x-0.parquet", "a/x-1.parquet", "b/train-0.parquet", "b/validation-0.parquet"]
    card = declaring(
        ("default", {"train": ["a/x-0.parquet", "b/train-*"], "validation": "b/val*"}), ("odd", {"train": "a/*"})
    )
    layout = laid_out(*paths, card=card)
    assert layout.splits == {"train": ("a/x-0.parquet", "b/train-0.parquet"), "val": ("b/validation-0.parquet",)}
    assert layout.left_out == {"config other than default is not used": ["a/x-1.parquet"]}


def test_of_several_declared_configs_the_default_is_read_else_it_is_a_question() -> None:
    paths = ["a/train-0.parquet", "a/validation-0.parquet", "b/train-0.parquet", "b/validation-0.parquet"]
    files: list[tuple[str, dict[str, object]]] = [
        (name, {"train": f"{name}/train*", "validation": f"{name}/val*"}) for name in "ab"
    ]
    card = declaring(*files)
    with pytest.raises(UserError, match=r"README.md declares several configs: choose one of a, b.*--data-config a"):
        laid_out(*paths, card=card)
    assert files_of(laid_out(*paths, card=card, config="b")) == paths[2:]
    card["configs"][1]["default"] = True
    assert files_of(laid_out(*paths, card=card)) == paths[2:]
    card["configs"] = [{"config_name": "b", "data_dir": "b"}]
    assert files_of(laid_out(*paths, card=card)) == paths[2:]


def test_declared_files_that_are_not_there_are_refused() -> None:
    card = declaring(("default", {"train": "data/train-*", "validation": "more/validation-*"}))
    with pytest.raises(
        UserError, match=r"declares the files of split validation as more/validation-\*, and none is here"
    ):
        laid_out(*WHOLE, card=card)


def test_declared_sizes_and_classes_are_those_of_the_config() -> None:
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": {"10": "k", "0": "a", "1": "b"}}}},
    ]
    info = {"features": features, "splits": [{"name": "train", "num_bytes": 9, "num_examples": 24}]}
    for card in ({"dataset_info": info}, declaring(("big", {"train": "data/t*", "validation": "data/v*"}),
                                                  dataset_info=[{"config_name": "big", **info}])):  # fmt: skip
        declared = laid_out(*WHOLE, card=card).declared
        assert declared.examples == {"train": 24}
        assert declared.classes == {"label": ("a", "b", "k")}


def test_a_head_of_readme_that_cannot_be_read_is_refused_and_a_text_without_one_is_none() -> None:
    listing = dict.fromkeys(WHOLE, 1)
    for head in ("configs: [{", "configs: [{data_files: x}]", "dataset_info: {splits: [{name: train}]}"):
        with pytest.raises(UserError, match=r"the head of README.md is not what `datasets` writes"):
            lay_out("here", listing, card=f"---\n{head}\n---\n")
    for text in ("# Photos", "---\njust a line\n---\n", "---\n"):
        assert files_of(lay_out("here", listing, card=text)) == WHOLE


@pytest.mark.parametrize("paths", [("train.parquet", "val.parquet"), tuple(WHOLE)])
def test_a_split_that_is_named_twice_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"train\S*.parquet would be read twice: name each split once"):
        laid_out(*paths, train_split="train+train")


def test_a_file_that_patterns_of_both_splits_fit_is_refused() -> None:
    card = {"configs": [{"config_name": "default", "data_files": [
        {"split": "train", "path": "*.parquet"}, {"split": "validation", "path": "val*.parquet"},
    ]}]}  # fmt: skip
    with pytest.raises(UserError, match=r"val\.parquet would be in training and in validation"):
        laid_out("train.parquet", "val.parquet", card=card)


def test_declared_patterns_are_read_as_datasets_reads_them_and_a_wrong_one_is_named() -> None:
    for pattern in ("./data/train-*", "data//train-*", "more/../data/train-*"):
        layout = laid_out(*WHOLE, card=declaring(("default", {"train": pattern, "validation": "data/validation-*"})))
        assert files_of(layout) == WHOLE
    with pytest.raises(UserError, match=r"the files of split train as 'data/\*\*.parquet', no pattern .*correct"):
        laid_out(*WHOLE, card=declaring(("default", {"train": "data/**.parquet", "validation": "data/v*"})))


def test_a_config_without_files_and_folder_has_all_files_by_their_names() -> None:
    card = declaring(("odd", {"train": "data/train-*"}))
    for plain in ({}, {"data_dir": "."}, {"data_dir": "./data/"}):
        card["configs"] = [card["configs"][0], {"config_name": "plain", "default": True, **plain}]
        assert files_of(laid_out(*WHOLE, card=card)) == WHOLE


@pytest.mark.parametrize("text", ["\n---\n{}---\n", "---\n{}--- \n# Photos\n", "---\r\n{}---\r\n"])
def test_the_head_of_readme_is_found_as_the_hub_finds_it(text: str) -> None:
    head = yaml.safe_dump(declaring(("default", {"train": "a*", "validation": "b*"})))
    assert files_of(lay_out("here", {"a.parquet": 1, "b.parquet": 1}, card=text.format(head))) == [
        "a.parquet",
        "b.parquet",
    ]
