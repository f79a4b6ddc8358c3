"""Images that are scored where they lie: the pixels of PIL and torchvision, and what nobody can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from tests.images import encode, photo
from tests.trainer.data.reading.test_decode import assert_close
from trainer.data.reading.decode import Picture
from trainer.data.reading.loader import Loader, picture_jobs, pictures_of
from trainer.scoring.found_images import find_files, open_found
from trainer.scoring.originals import Originals, unreadable_text

PICTURES = [Picture(40, 32), Picture(32, 32)]


def shown(images: Originals) -> list[np.ndarray]:
    """The first picture of each image: (N, 32, 32, 3)."""
    jobs = picture_jobs(4, images, PICTURES, rank=0, world=1)
    found = list[np.ndarray]()
    with Loader(jobs, max_images=4, image_bytes=2 * 3 * 32**2, workers=2, device=torch.device("cpu")) as loader:
        for batch in loader:
            found += list(pictures_of(batch.images, PICTURES)[0].numpy().copy())
    return found


def odd_images(folder: Path) -> Path:
    """One class of images in every form that sets have, two of them unreadable."""
    folder.mkdir(parents=True)
    picture = photo(1, 60, 45)
    forms = {
        "a.jpg": encode(picture), "b.png": encode(picture, "PNG"), "c.jpg": encode(picture, "PNG"),
        "d.jpg": encode(picture.convert("CMYK")), "e.jpg": encode(picture.convert("L")),
        "f.gif": encode(picture.convert("P"), "GIF"), "g.png": encode(picture.convert("RGBA"), "PNG"),
        "h.jpg": encode(picture, progressive=True), "i.jpg": encode(picture)[:300], "j.jpg": b"",
        "k.jpg": encode(picture, exif=exif_of_a_turned_camera()),
    }  # fmt: skip
    for name, body in forms.items():
        (folder / name).write_bytes(body)
    return folder


def exif_of_a_turned_camera() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_odd_images_have_the_pixels_of_pil_and_unreadable_ones_are_named_and_left_out(tmp_path: Path) -> None:
    folder = odd_images(tmp_path / "set" / "n01498041")
    found = open_found(find_files(str(tmp_path / "set"), tmp_path))
    images = Originals(found, found.labels)
    pixels, reference = shown(images), Compose([Resize(40), CenterCrop(32)])
    assert len(pixels) == 11
    for i, file in enumerate(sorted(folder.iterdir())):
        if file.name not in ("i.jpg", "j.jpg"):
            with Image.open(file) as image:
                assert_close(pixels[i], reference(image.convert("RGB")), file.name)
    assert sorted(images.unreadable) == [8, 9]
    text = unreadable_text(list(images.unreadable.values()), len(images))
    assert text.startswith("2 of 11 images cannot be read, and are left out of every score: ")
    assert "n01498041/j.jpg (it is empty)" in text
