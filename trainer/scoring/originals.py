"""Images as their authors publish them, scored where they lie: nothing is prepared and nothing is copied.

What the decoder of training does not take (PNG, CMYK, a flawed JPEG) is converted when it is read, with the colours
that preparation gives. What nobody can read is noted, and left out of every score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg

from trainer.contract import UserError
from trainer.data.jpeg import Bytes
from trainer.data.making.convert import BrokenImageError, Pixels, read_pixels
from trainer.scoring.found_images import FoundImages
from trainer.text import show_name

UNREADABLE_NAMED = 10
FOUR_INKS = ("CMYK", "YCCK")  # PIL reads them in another way than libjpeg-turbo


class Originals:
    """Encoded images and their labels, with the face of a PreparedSplit. Any thread may read it."""

    split = "val"  # for messages

    def __init__(self, found: FoundImages, labels: npt.NDArray[np.int64]) -> None:
        self._found, self.labels = found, labels
        self.unreadable: dict[int, str] = {}  # image: its name, and why; of this process, after a pass

    def __len__(self) -> int:
        return len(self.labels)

    def jpeg(self, i: int) -> Bytes:
        """The encoded image as it lies there: (bytes,) uint8. ValueError if it is no JPEG, or one of four inks."""
        jpeg = np.frombuffer(self._found.images[i].image, np.uint8)
        try:
            colours = simplejpeg.decode_jpeg_header(jpeg, strict=False)[2]
        except KeyError as error:  # from the library's table of colour spaces
            raise ValueError("the JPEG's headers are damaged") from error
        if colours in FOUR_INKS:
            raise ValueError(f"its colours are {colours}")
        return jpeg

    def pixels(self, i: int, error: ValueError) -> Pixels:
        """(H, W, 3) uint8 of what is no plain JPEG; one grey pixel where nobody can read it, which is noted."""
        try:
            example = self._found.images[i]
            return read_pixels(example.image, example.name)[0]
        except (BrokenImageError, UserError) as why:
            self.unreadable[i] = f"{self.name(i)} ({why})"
            return np.full((1, 1, 3), 128, np.uint8)

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        """The system reads ahead by itself: files are read whole."""

    def name(self, i: int) -> str:
        """The name that the image has in its source."""
        return show_name(self._found.names()[i])


def unreadable_text(unreadable: Sequence[str], images: int) -> str:
    """A line that names and counts the images that were left out."""
    shown = "; ".join(unreadable[:UNREADABLE_NAMED])
    more = f"; and {len(unreadable) - UNREADABLE_NAMED:,} more" if len(unreadable) > UNREADABLE_NAMED else ""
    return f"{len(unreadable):,} of {images:,} images cannot be read, and are left out of every score: {shown}{more}"
