"""Names drawn at random: a layout reads or leaves out every file once, in any order of the listing, or refuses."""

from __future__ import annotations

import random
from collections import Counter

from tests.trainer.data.making.layout import files_of
from trainer.contract import UserError
from trainer.data.making.layout import NOWHERE, Choices, Listing, SourceLayout, lay_out

DRAWS = 3000
FOLDERS = (
    "train",
    "val",
    "validation",
    "test",
    "train_small",
    "data",
    "160px",
    "cat",
    "dog",
    "images",
    ".git",
    "@eaDir",
)
FILES = (
    "a.JPEG", "b.jpg", "c.png", "._a.JPEG", "notes.txt", "Thumbs.db", "train.parquet", "val-0.parquet", "0000.parquet",
    "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet",
    "train_small-00000-of-00001.parquet", "test.parquet", "LOC_val_solution.csv", "ILSVRC2012_img_train.tar",
)  # fmt: skip
WHOLE = (
    ("train/cat/a.JPEG", "train/dog/a.JPEG", "val/cat/a.JPEG", "val/dog/a.JPEG"),
    ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    (),
)  # what the draw adds to


def drawn(random_: random.Random) -> dict[str, int]:
    depth = random_.choice((0, 1, 2, 3))
    paths = set(random_.choice(WHOLE))
    for _ in range(random_.randrange(6)):
        folders = random_.choices(FOLDERS, k=random_.randint(0, depth))
        paths.add("/".join([*folders, random_.choice(FILES)]))
        if random_.random() < 0.1:
            paths.add("/".join([*folders, random_.choice(FOLDERS), ""]))
    return {path: NOWHERE if random_.random() < 0.02 else 10 for path in paths}


def laid_out(listing: Listing, choices: Choices) -> SourceLayout | str:
    try:
        return lay_out("here", listing, choices)
    except UserError as error:
        return str(error)


def test_every_file_has_one_place_and_no_order_of_the_listing_changes_it() -> None:
    random_ = random.Random(0)
    read = Counter[str]()
    for number in range(DRAWS):
        listing = drawn(random_)
        choices = Choices(val_split=random_.choice(("", "", "test", "val")), accept_incomplete=random_.random() < 0.2)
        found = laid_out(listing, choices)
        shuffled = list(listing)
        random_.shuffle(shuffled)
        again = laid_out({path: listing[path] for path in shuffled}, choices)
        if isinstance(found, str):
            assert found.startswith("DATA=here: "), listing
            assert again == found, listing
            continue
        assert isinstance(again, SourceLayout), (number, listing)
        assert (files_of(again), again.left_out, again.classes) == (files_of(found), found.left_out, found.classes), (
            listing
        )
        placed = Counter([*files_of(found), *(path for paths in found.left_out.values() for path in paths)])
        assert placed == Counter(listing.keys()), (number, listing)
        assert not set(found.splits["train"]) & set(found.splits["val"]), listing
        assert all(listing[path] != NOWHERE for path in files_of(found)), listing
        read[found.form] += 1
    assert min(read[form] for form in ("folder", "parquet")) > 50, read
