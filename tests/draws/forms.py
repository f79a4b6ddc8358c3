"""The forms in which people have images: a function for each draws a source that is whole and can be read.

ImageNet's own files are in `imagenet`. A form that nobody can read as it is says what the refusal must tell.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence

from tests.draws.pictures import paint
from tests.draws.source import Entry, Source, Table
from trainer.data.making.layout import Choices

CLASS_NAMES: tuple[tuple[str, ...], ...] = (
    ("n01440764", "n01443537", "n01484850", "n01491361"),
    ("cat", "dog", "Owl"),
    ("a b", "c,d", "e'f", 'g"h'),
    ("chat é", "犬", "emoji 🐈"),
    tuple(str(i) for i in range(12)),
    ("train", "val", "x"),
    ("0001", "0002"),
)
ANY_BYTES = ("plain", os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff\xfe"))  # of folders, not of tables
TRAIN_NAMES = ("train", "training", "Train")
VAL_NAMES = ("val", "validation", "valid", "dev", "Val")


def draw_classes(dice: random.Random, *more: tuple[str, ...]) -> tuple[str, ...]:
    """Some class names, in any order."""
    names = dice.choice([*CLASS_NAMES, *more])
    return tuple(dice.sample(names, len(names) if names[0] == "0" else dice.randint(2, len(names))))


def draw_entries(dice: random.Random, classes: Sequence[str]) -> list[Entry]:
    """One to four images of training in each class and one or two of validation, named without a folder."""
    entries: list[Entry] = []
    for split, most in (("train", 4), ("val", 2)):
        for name in classes:
            for _ in range(dice.randint(1, most)):
                picture = paint(dice)
                entries.append(Entry(picture.data, name, split, f"{split}_{len(entries)}{picture.ending}"))
    return entries


def image_folder(dice: random.Random) -> Source:
    classes = draw_classes(dice, ANY_BYTES)
    names = {"train": dice.choice(TRAIN_NAMES), "val": dice.choice(VAL_NAMES)}
    above, middle = dice.choice(["", "", "imagenet/", "a b/é/"]), dice.choice(["", "", "", "images/"])
    before = dice.choice(["", "", "", "caf\udce9_", "a b ", "%41\n", "😀"])
    source = Source("image folder", classes)
    for entry in draw_entries(dice, classes):
        place = f"{above}{names[entry.split]}/{entry.label}/{middle}{before}{entry.place}"
        source.images.append(Entry(entry.data, entry.label, entry.split, place))
    if dice.random() < 0.3:
        add_unused_split(dice, source, f"{above}test/{classes[0]}/x.JPEG")
    if not above and dice.random() < 0.2:
        source.made.append(card)
    return source


def folder_with_test(dice: random.Random) -> Source:
    """Only train and test: which is validation is a question."""
    source = image_folder(dice)
    tops = {entry.split: entry.place.rpartition(f"/{entry.label}/")[0] for entry in source.images}
    renamed = tops["val"].rpartition("/")[0]
    renamed = f"{renamed}/held_out" if renamed else "held_out"
    source.images = [
        Entry(e.data, e.label, e.split, e.place.replace(tops["val"], renamed, 1) if e.split == "val" else e.place)
        for e in source.images
    ]
    source.form = "folder without val"
    if dice.random() < 0.5:
        source.choices = Choices(val_split="held_out")
    else:
        source.refusal.append("--val-split")
    return source


def metadata_folder(dice: random.Random) -> Source:
    """All images of a split together, and a table of their classes: nothing that is read."""
    classes = draw_classes(dice)
    source = Source("metadata.csv", classes)
    entries = draw_entries(dice, classes)
    source.images = [Entry(e.data, e.label, e.split, f"{e.split}/{e.place}") for e in entries]
    for split in ("train", "val"):
        rows = [f"{e.place},{e.label}" for e in entries if e.split == split]
        name = dice.choice(["metadata.csv", "labels.csv", "metadata.jsonl"])
        source.files[f"{split}/{name}"] = "\n".join(["file_name,label", *rows]).encode()
    source.refusal.append("lie in no class folders")
    return source


def web_dataset(dice: random.Random) -> Source:
    """Tar files of images and classes: nothing that is read."""
    source = Source("WebDataset", draw_classes(dice))
    source.files = {f"{split}-{i:06d}.tar": b"x" * 10240 for split in ("train", "val") for i in range(2)}
    source.refusal.append("nothing recognised in this folder")
    return source


def parquet(dice: random.Random) -> Source:
    """Parquet files in a folder: names, numbers of files, and columns of all kinds."""
    as_text = dice.random() < 0.25
    named = not as_text and dice.random() < 0.7
    classes = draw_classes(dice) if as_text or named else tuple(str(i) for i in range(dice.randint(2, 5)))
    source = Source("parquet", classes)
    kinds = ("string", "dictionary") if as_text else ("int64",) * 3 + ("int8", "uint8", "int32", "uint16", "uint64")
    kind, image = dice.choice(kinds), dice.choice(["struct"] * 3 + ["binary", "large_binary"])
    columns = dice.choice([("image", "label")] * 3 + [("img", "fine_label")])
    entries = draw_entries(dice, classes)
    dice.shuffle(entries)
    for path, rows in _split_into_files(dice, entries).items():
        source.tables[path] = Table(rows, classes if named else None, kind, image, columns)
    if columns[0] == "img":
        source.choices = Choices(image_column="img", label_column="fine_label")
    if dice.random() < 0.25 and len({path.rpartition("/")[0] for path in source.tables}) == 1:
        source.made.append(card)
    return source


def _split_into_files(dice: random.Random, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    names = dice.choice(["{0}-{1:05d}-of-{2:05d}", "data/{0}-{1:05d}-of-{2:05d}", "{0}-{1}", "{0}/{1:04d}",
                         "data/{0}-{1:05d}-of-{2:05d}-0a1b2c3d", "a b é/{0}-{1:05d}-of-{2:05d}"])  # fmt: skip
    called = {"train": "train", "val": dice.choice(["validation", "val", "valid", "dev"])}
    found = {}
    for split, name in called.items():
        of_split = [entry for entry in entries if entry.split == split]
        count = dice.randint(1, min(3, len(of_split)))
        for i in range(count):
            found[names.format(name, i, count) + ".parquet"] = of_split[i::count]
    return found


def _flat(path: str) -> str:
    return path.rpartition("/")[2] if "-of-" in path else path.replace("/", "-")


def several_configs(dice: random.Random) -> Source:
    """Two configs, of which one must be chosen: by an option, or by what README.md says."""
    source, other = parquet(dice), parquet(dice)
    source.form = "parquet, two configs"
    source.made.clear()
    source.tables = {f"160px/{_flat(path)}": table for path, table in source.tables.items()}
    for path, table in other.tables.items():
        table.rows = [Entry(row.data, row.label, "", row.place) for row in table.rows]
        source.files[f"320px/{_flat(path)}"] = table.body(other.classes)
    how = dice.choice(["option", "card", "nothing"])
    if how == "option":
        source.choices = Choices("160px", image_column=source.choices.image_column,
                                 label_column=source.choices.label_column)  # fmt: skip
    elif how == "card":
        source.files["README.md"] = _head({"configs": [{"config_name": "160px", "data_dir": "160px", "default": True},
                                                       {"config_name": "320px", "data_dir": "320px"}]})  # fmt: skip
    else:
        source.refusal.append("--data-config")
    return source


def _head(head: dict[str, object]) -> bytes:
    return f"---\n{json.dumps(head)}\n---\n# Photos\n".encode()  # JSON is YAML


def card(source: Source) -> dict[str, bytes]:
    """A README.md that declares what is there."""
    counts = {split: sum(entry.split == split for entry in source.truth) for split in ("train", "val")}
    names = {"train": "train", "val": "validation"}
    splits = [{"name": names[split], "num_examples": count} for split, count in counts.items()]
    return {"README.md": _head({"dataset_info": {"splits": splits}})}


def add_unused_split(dice: random.Random, source: Source, place: str) -> None:
    source.images.append(Entry(paint(dice).data, "", "", place))
    source.told.append("split test is not used")
