"""ImageNet's own files, as image-net.org and Kaggle give them: validation images have numbers and lie together."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable

import numpy as np

from tests.draws.forms import CLASS_NAMES, draw_entries
from tests.draws.source import Archive, Entry, Source, packed


def _numbered(entries: list[Entry]) -> list[Entry]:
    """Validation images get the names of ImageNet's, in their order."""
    found, number = [], 0
    for entry in entries:
        if entry.split == "val":
            number += 1
            entry = Entry(entry.data, entry.label, "val", f"ILSVRC2012_val_{number:08d}.JPEG")
        found.append(entry)
    return found


def _val(source: Source) -> list[tuple[str, str]]:
    """Stem and class of each validation image, in order."""
    found = [entry for entry in source.truth if entry.split == "val"]
    return sorted((entry.place.rpartition("/")[2].removesuffix(".JPEG"), entry.label) for entry in found)


def kaggle(source: Source) -> bytes:
    lines = [f"{stem},{label} 85 1 499 272 {label} 1 2 3 4 " for stem, label in _val(source)]
    return "\n".join(["ImageId,PredictionString", *lines[::-1], ""]).encode()  # Kaggle's is in no order


def valprep(source: Source) -> bytes:
    made = [f"mkdir -p {label}" for label in source.classes]
    return "\n".join(["#!/bin/bash", *made, *(f"mv {stem}.JPEG {label}/" for stem, label in _val(source)), ""]).encode()


def synsets(source: Source) -> bytes:
    return "".join(f"{label}\n" for _, label in _val(source)).encode()


def tiny_imagenet(source: Source) -> bytes:
    return "".join(f"{stem}.JPEG\t{label}\t0\t32\t44\t62\n" for stem, label in _val(source)).encode()


def devkit(source: Source) -> dict[str, bytes]:
    """Ground truth by numbers, which are in another order than the names."""
    from scipy.io import savemat

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_train_images", "O")]
    counts = [sum(e.label == name and e.split == "train" for e in source.truth) for name in source.classes]
    found = np.zeros((len(source.classes) + 1, 1), kinds)
    ids = {name: len(source.classes) - i for i, name in enumerate(source.classes)}
    for i, (name, count) in enumerate(zip(source.classes, counts, strict=True)):
        found[i, 0] = (ids[name], name, "a, word", count)
    found[-1, 0] = (1001, "n00001740", "a, word", 0)
    meta = io.BytesIO()
    savemat(meta, {"synsets": found})
    truth = "".join(f"{ids[label]}\n" for _, label in _val(source))
    head = b"MATLAB 5.0 MAT-file".ljust(116)  # in place of one with the time in it
    return {"meta.mat": head + meta.getvalue()[116:], "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


def devkit_archive(source: Source) -> bytes:
    content = [(f"ILSVRC2012_devkit_t12/data/{name}", body) for name, body in devkit(source).items()]
    return gzip.compress(packed(content), mtime=0)


Truth = Callable[[Source], bytes]
TRUTHS: dict[str, Truth] = {
    "LOC_val_solution.csv": kaggle,
    "valprep.sh": valprep,
    "imagenet_2012_validation_synset_labels.txt": synsets,
    "val_annotations.txt": tiny_imagenet,
    "ILSVRC2012_devkit_t12.tar.gz": devkit_archive,
}


def add_truth(source: Source, name: str, folder: str = "") -> None:
    if name == "devkit":
        source.made.append(lambda now: {f"{folder}{path}": body for path, body in devkit(now).items()})
    else:
        source.made.append(lambda now: {f"{folder}{name}": TRUTHS[name](now)})


def flat_val(dice: random.Random) -> Source:
    """Class folders of training, and all of validation together, with one file that says the classes."""
    classes = tuple(dice.sample(CLASS_NAMES[0], dice.randint(2, 4)))
    source, truth = Source("flat val", classes), dice.choice([*TRUTHS, "devkit"])
    within = dice.choice(["", "", "ILSVRC2012_img_val/"])
    for e in _numbered(draw_entries(dice, classes)):
        place = f"train/{e.label}/{e.place}" if e.split == "train" else f"val/{within}{e.place}"
        source.images.append(Entry(e.data, e.label, e.split, place))
    add_truth(source, truth, dice.choice(["", "more/", "val/"] if not truth.startswith("val_") else ["", "val/"]))
    source.told.append("classes of the validation: ")
    return source


def kaggle_folder(dice: random.Random) -> Source:
    """Kaggle's archive as it was unpacked."""
    source = flat_val(dice)
    source.form, source.made = "Kaggle", []
    source.images = [
        Entry(e.data, e.label, e.split, f"ILSVRC/Data/CLS-LOC/{e.place.replace('ILSVRC2012_img_val/', '')}")
        for e in source.images
    ]
    add_truth(source, "LOC_val_solution.csv")
    source.files = {
        "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<annotation/>",
        "ILSVRC/Data/CLS-LOC/test/x.JPEG": b"x",
        "LOC_synset_mapping.txt": b"n01440764 tench",
    }
    return source


def archives(dice: random.Random) -> Source:
    """The two archives, and the devkit or another file that says the classes."""
    classes = tuple(dice.sample(CLASS_NAMES[0], dice.randint(2, 4)))
    entries = _numbered(draw_entries(dice, classes))
    dice.shuffle(entries)
    train, val = ([e for e in entries if e.split == split] for split in ("train", "val"))
    within = dice.choice(["", "", "ILSVRC2012_img_val/", "./"])
    val = [Entry(e.data, e.label, e.split, within + e.place) for e in val]
    format = dice.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    source, folder = Source("archives", classes), dice.choice(["", "ILSVRC2012/"])
    source.archives = {
        f"{folder}ILSVRC2012_img_train.tar": Archive(train, True, format),
        f"{folder}ILSVRC2012_img_val.tar": Archive(val, False, format),
    }
    add_truth(source, dice.choice([*TRUTHS, "devkit"]), folder)
    return source
