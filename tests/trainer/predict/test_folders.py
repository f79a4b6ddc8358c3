"""Folders and patterns: which images are looked at, and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images import encode, photo
from trainer.contract import UserError
from trainer.predict.sheet import GAP, MOST_TILES, TEXT, TILE, ContactSheet, check_place
from trainer.predict.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", ".hidden.jpg", "deep/.trash/d.jpg", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def addresses(*typed: str | Path) -> list[str]:
    return [source.address for source in find_sources([str(one) for one in typed]).images]


def test_a_folder_is_searched_to_the_bottom_in_order_and_what_is_left_out_is_counted(folder: Path) -> None:
    assert addresses(folder) == [f"{folder}/{name}" for name in ("a.PNG", "b.jpg", "deep/er/c.webp")]
    found = find_sources([str(folder)])
    assert (found.folder, found.left_out) == (str(folder), 2)  # what lies in a hidden folder is not looked at


def test_a_pattern_has_what_matches_and_a_file_may_be_called_like_one(folder: Path) -> None:
    assert addresses(f"{folder}/*.jpg") == [f"{folder}/b.jpg"]
    assert addresses(f"{folder}/**/*.webp") == [f"{folder}/deep/er/c.webp"]
    (folder / "[1].jpg").touch()
    assert addresses(folder / "[1].jpg") == [f"{folder}/[1].jpg"]
    assert find_sources([str(folder / "[1].jpg")]).folder == ""


def test_each_image_is_looked_at_once(folder: Path) -> None:
    assert addresses(folder / "b.jpg", f"{folder}/*.jpg", folder / "b.jpg") == [f"{folder}/b.jpg"]


def test_a_folder_without_an_image_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no image among 0 files: name a folder"):
        find_sources([str(folder / "empty")])
    (folder / "empty/notes.txt").touch()
    with pytest.raises(UserError, match=r"no image among 1 file: .* \.jpg"):
        find_sources([str(folder / "empty")])


def test_the_sheet_shows_each_image_in_order(tmp_path: Path) -> None:
    sheet, colours = ContactSheet(), [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0)]
    for colour in colours:
        sheet.add(np.full((8, 8, 3), colour, np.uint8), "a class with a long name, and more of it  12.3 %", "cat.jpg")
    sheet.write(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        places = [(left, GAP) for left in range(GAP, image.width, TILE + GAP)]
        places += [(left, top + TILE + TEXT + GAP) for left, top in places]
        assert [image.getpixel((left + 9, top + 9)) for left, top in places[:4]] == colours
        captions = np.asarray(image.crop((GAP, GAP + TILE, GAP + TILE, GAP + TILE + TEXT)))
        assert captions.min() < 60  # there are letters
        beside = np.asarray(image.crop((GAP + TILE, GAP + TILE, GAP + TILE + GAP, GAP + TILE + TEXT)))
        assert beside.min() == 255  # and they stay below their image
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_sheet_keeps_the_first_images_of_many() -> None:
    sheet = ContactSheet()
    for _ in range(MOST_TILES + 5):
        sheet.add(np.zeros((2, 2, 3), np.uint8), "", "")
    assert len(sheet.tiles) == MOST_TILES


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    sheet = ContactSheet()
    sheet.add(np.asarray(photo(1)), "an answer", "cat.jpg")
    with pytest.raises(UserError, match="name another with --sheet"):
        sheet.write(tmp_path / "missing/sheet.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(UserError, match="name another with --sheet"):
        sheet.write(tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_a_sheet_takes_names_with_line_breaks(tmp_path: Path) -> None:
    sheet = ContactSheet()
    sheet.add(np.asarray(photo(1)), "a\nclass  12.3 %", "my\r\ncat.jpg")
    sheet.write(tmp_path / "sheet.png")
    assert [tile[1:] for tile in sheet.tiles] == [("a\\nclass  12.3 %", "my\\r\\ncat.jpg")]


def test_a_sheet_replaces_a_sheet_and_no_other_file(tmp_path: Path) -> None:
    sheet = ContactSheet()
    sheet.add(np.asarray(photo(1)), "an answer", "cat.jpg")
    path, link, another = tmp_path / "sheet.png", tmp_path / "link.png", tmp_path / "photo.png"
    check_place(path, [])
    sheet.write(path)
    check_place(path, [str(another), "missing.png"])
    link.symlink_to("sheet.png")
    for images in ([str(path)], [str(another), str(link)]):
        with pytest.raises(UserError, match=r"sheet.png, which is one of the images: name another with --sheet"):
            check_place(path, images)
    another.write_bytes(encode(photo(1), "PNG"))
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for taken in (another, tmp_path / "dangling.png"):
        with pytest.raises(UserError, match=r"which is there, and is no contact sheet: name another with --sheet"):
            check_place(taken, [])
