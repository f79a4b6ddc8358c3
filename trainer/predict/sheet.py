"""The contact sheet of a folder: each image as the network saw it, over its most probable class."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from trainer.contract import UserError
from trainer.data.making.convert import Pixels
from trainer.text import show_name

MOST_TILES = 240  # a larger picture is slow to open
MOST_COLUMNS = 10
TILE, GAP, TEXT = 176, 12, 40  # pixels: side of an image, space around it, height of its two lines
LETTERS = 13  # pixels high
MARK, MARKED = "Software", "resnet-spot contact sheet"  # a text in the PNG, by which a sheet is told from a photo
MARKED_BYTES = 256  # at the beginning, which the mark is in
WHITE, BLACK, GREY = (255, 255, 255), (17, 17, 17), (110, 110, 110)


def check_place(path: Path, images: Iterable[str]) -> None:
    """Raises UserError where a file is there that is no contact sheet of ours, or one of the images, given by paths."""
    if not os.path.lexists(path):
        return
    why = "is there, and is no contact sheet" if not _is_sheet(path) else ""
    if not why and any(Path(image).exists() and path.samefile(image) for image in images):
        why = "is one of the images"
    if why:
        raise UserError(f"the contact sheet would replace {show_name(path)}, which {why}: name another with --sheet")


def _is_sheet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f"tEXt{MARK}\0{MARKED}".encode() in file.read(MARKED_BYTES)


class ContactSheet:
    """Tiles in the order in which they come. The first MOST_TILES are kept."""

    def __init__(self) -> None:
        self.tiles: list[tuple[Image.Image, str, str]] = []

    def add(self, pixels: Pixels, answer: str, name: str) -> None:
        """An image, what the network says it is, and what it is called. Pixels: (H, W, 3)."""
        if len(self.tiles) < MOST_TILES:
            small = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)
            self.tiles.append((small, show_name(answer), show_name(name)))  # a line break would make two lines

    def write(self, path: Path) -> None:
        """The PNG appears whole or not at all. Raises UserError."""
        columns = min(MOST_COLUMNS, math.ceil(math.sqrt(1.5 * len(self.tiles))))
        rows = math.ceil(len(self.tiles) / columns)
        width, height = TILE + GAP, TILE + TEXT + GAP
        sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), WHITE)
        draw, font = ImageDraw.Draw(sheet), _font()
        for number, (image, answer, name) in enumerate(self.tiles):
            left, top = GAP + number % columns * width, GAP + number // columns * height
            sheet.paste(image, (left, top))
            draw.text((left, top + TILE + 4), _fitting(answer, font), BLACK, font)
            draw.text((left, top + TILE + 4 + LETTERS + 5), _fitting(name, font), GREY, font)
        mark = PngInfo()
        mark.add_text(MARK, MARKED)
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".sheet-") as folder:
                sheet.save(Path(folder, path.name), "PNG", pnginfo=mark)
                Path(folder, path.name).replace(path)
        except OSError as error:
            raise UserError(
                f"{show_name(path)} cannot be written ({error.strerror or error}): name another with --sheet"
            ) from error


def _font() -> ImageFont.FreeTypeFont:
    """With letters of more alphabets than Pillow's own has."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), LETTERS)


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """As much as fits under an image. The middle goes: a probability and an ending stay readable."""
    shown, keep = text, len(text)
    while font.getlength(shown) > TILE:
        keep -= 1
        shown = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    return shown
