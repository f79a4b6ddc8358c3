"""The surest mistakes as one small JPEG, for the report: what the network saw of each image, side by side."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from trainer.contract import SHEET_COLUMNS
from trainer.data.reading.decode import center_into, center_pixels_into
from trainer.scoring.record import Evaluation

TILE_PIXELS = 96
SHEET_QUALITY = 80


def mistakes_sheet(evaluation: Evaluation) -> bytes:
    """A JPEG with a tile for each mistake, in rows of SHEET_COLUMNS; b"" where there is none."""
    mistakes, card = evaluation.measures.mistakes, evaluation.card
    if not mistakes:
        return b""
    images = evaluation.scored.open(card.val_resize)
    tiles = np.zeros((-(-len(mistakes) // SHEET_COLUMNS), SHEET_COLUMNS, TILE_PIXELS, TILE_PIXELS, 3), np.uint8)
    resize = max(TILE_PIXELS, round(TILE_PIXELS * card.val_resize / card.val_crop))
    for number, one in enumerate(mistakes):
        tile = tiles[divmod(number, SHEET_COLUMNS)]
        try:
            center_into(tile, images.jpeg(one.image), resize, card.resize_mode)
        except ValueError as error:
            center_pixels_into(tile, images.pixels(one.image, error), resize, card.resize_mode)
    rows, out = len(tiles), io.BytesIO()
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * TILE_PIXELS, SHEET_COLUMNS * TILE_PIXELS, 3)
    Image.fromarray(sheet).save(out, "JPEG", quality=SHEET_QUALITY)
    return out.getvalue()
