"""What `make predict` says of images: classes and probabilities, as validation computes them, and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.images import encode, photo
from tests.trainer.predict.exported import CLASSES, Said
from tests.trainer.predict.website import JPEG, Web, send
from tests.trainer.standins import StandInSplit
from trainer.contract import Exit
from trainer.learning.world import join
from trainer.predict.sheet import GAP, TEXT, TILE
from trainer.recipes.config import Config, DataConfig
from trainer.scoring.forward import predict_split
from trainer.scoring.members import open_member
from trainer.scoring.predictions import Predictions
from trainer.store import open_store

CONFIG = Config(precision="fp32", device="cpu", data=DataConfig(workers=1))


def tops(output: str) -> dict[str, list[dict[str, Any]]]:
    return {Path(one["image"]).name: one["top"] for one in json.loads(output)["images"]}


def test_probabilities_are_those_of_validation(said: Said, root: Path, tmp_path: Path) -> None:
    split: Any = StandInSplit("val", 6)
    files = [tmp_path / f"{number}.jpg" for number in range(len(split))]
    for number, file in enumerate(files):
        split.jpegs[number] = np.frombuffer(encode(photo(number, 50 + 7 * number, 60)), np.uint8)
        file.write_bytes(bytes(split.jpeg(number)))
    predictions = Predictions(tmp_path / "predictions", len(split), len(CLASSES))
    with join(CONFIG) as world:
        member = open_member("./made.safetensors", open_store("store"))
        predict_split({member: predictions}, split, CONFIG, world, lambda count: None)
    [(_, expected)] = predictions.chunks()
    code, output, _ = said(*files, "--json")
    assert code == Exit.FINISHED
    found = tops(output)
    for number, row in enumerate(np.exp(expected)):
        top = found[f"{number}.jpg"]
        assert [one["probability"] for one in top] == pytest.approx(sorted(row.tolist(), reverse=True), abs=1e-6)
        assert [one["class"] for one in top] == [CLASSES[label] for label in np.argsort(-row)]
    assert len({str(top) for top in found.values()}) > 1


def test_an_image_gets_its_classes_in_lines_of_percent(said: Said, photos: Path) -> None:
    code, output, told = said(photos / "0.jpg", "--top", "2")
    assert code == Exit.FINISHED
    name, first, second = output.splitlines()
    assert name == str(photos / "0.jpg")
    best, other = (float(line.split(" %")[0]) for line in (first, second))
    assert 100 >= best >= other
    assert {first.split()[-1], second.split()[-1]} < {*CLASSES}
    assert "./made.safetensors: shufflenet_v2_x0_5" in told
    assert "32 x 32" in told


def test_sizes_can_be_given_as_to_evaluate(said: Said, photos: Path) -> None:
    as_usual, *others = (
        said(photos / "0.jpg", "--json", *sizes)
        for sizes in ([], ["--resize", "36", "--crop", "32"], ["--resize", "48", "--crop", "40"])
    )
    assert [output == as_usual[1] for _, output, _ in others] == [True, False]
    assert "the short side becomes 48 pixels, and the network sees the 40 x 40 in the middle" in others[1][2]
    code, output, told = said(photos / "0.jpg", "--crop", "48")
    assert (code, output) == (Exit.USER, "")
    assert "--resize 0 --crop 48: a crop of 48 px does not fit into an image whose short side is resized to 36" in told


def test_wordnet_ids_are_told_by_their_english_names_and_nameless_classes_by_numbers(said: Said, photos: Path) -> None:
    top = tops(said(photos / "0.jpg", "--json", "--model", "./wnids.safetensors")[1])["0.jpg"]
    assert {(one["class"], one["name"]) for one in top} >= {("n01440764", "tench"), ("n01443537", "goldfish")}
    _, output, told = said(photos / "0.jpg", "--json", "--model", "./nameless.safetensors")
    assert {one["name"] for one in tops(output)["0.jpg"]} == {f"class {number}" for number in range(4)}
    assert "whose names nobody knows" in told


def cmyk(image: Image.Image) -> tuple[bytes, Image.Image]:
    data = encode(image.convert("CMYK"), quality=95)
    return data, Image.open(io.BytesIO(data)).convert("RGB")


def palette(image: Image.Image) -> tuple[bytes, Image.Image]:
    small = image.quantize(64)
    return encode(small, "GIF"), small.convert("RGB")


def wide(image: Image.Image) -> tuple[bytes, Image.Image]:
    grey = np.asarray(image.convert("L"))
    return encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), Image.fromarray(grey).convert("RGB")


def turned(image: Image.Image) -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image, "PNG", exif=exif), image


@pytest.mark.parametrize(
    ("make", "told"), [(cmyk, "CMYK"), (palette, "palette"), (wide, "16-bit"), (turned, "stored turned, and seen so")]
)
def test_an_odd_image_is_seen_as_in_preparation_and_said(
    make: Callable[[Image.Image], tuple[bytes, Image.Image]], told: str, said: Said, tmp_path: Path
) -> None:
    data, plain = make(photo(5))
    (tmp_path / "odd").write_bytes(data)
    (tmp_path / "plain.png").write_bytes(encode(plain, "PNG"))
    code, output, _ = said(tmp_path / "odd", tmp_path / "plain.png", "--json")
    assert code == Exit.FINISHED
    odd, expected = json.loads(output)["images"]
    assert told in odd["odd"]
    assert [one["class"] for one in odd["top"]] == [one["class"] for one in expected["top"]]
    assert odd["top"][0]["probability"] == pytest.approx(expected["top"][0]["probability"], abs=1e-5)


def test_images_that_cannot_be_read_are_named_and_counted_and_the_others_go_on(
    said: Said, photos: Path, root: Path
) -> None:
    (photos / "1.jpg").write_bytes(b"<html>not found</html>")
    (photos / "4.jpg").symlink_to("nowhere")
    code, output, told = said(photos, "--json")
    assert code == Exit.USER
    found = json.loads(output)
    assert [Path(one["image"]).name for one in found["images"]] == ["0.jpg", "2.jpg"]
    assert {Path(one["image"]).name for one in found["unread"]} == {"1.jpg", "4.jpg"}
    assert f"{photos / '1.jpg'} cannot be read: it is a web page" in told
    assert "2 of 4 images could not be read" in told
    assert f"contact sheet: {root / 'scratch/predictions-photos.png'}" in told
    with Image.open(root / "scratch/predictions-photos.png") as sheet:
        assert sheet.size == (2 * (TILE + GAP) + GAP, TILE + TEXT + 2 * GAP)


def test_standard_input_is_an_image(said: Said, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tops(said(photos / "2.jpg", "--json")[1])["2.jpg"]
    for name, code in (("2.jpg", Exit.FINISHED), ("none.jpg", Exit.USER)):
        (photos / "none.jpg").touch()
        with (photos / name).open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            ended, output, told = said("-", "--json")
        assert ended == code
        assert tops(output) == ({} if code else {"standard input": expected})
        assert ("standard input cannot be read: it is empty" in told) == bool(code)


def test_an_address_that_is_no_image_is_told_with_what_its_server_calls_it(said: Said, web: Web) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, *((JPEG, "image/jpeg") if handler.path == "/cat.jpg" else (b"<html>", "text/html")))

    web.answer = answer
    code, output, told = said(web.url, f"{web.url}.html", "--json")
    assert code == Exit.USER
    assert [one["image"] for one in json.loads(output)["images"]] == [web.url]
    assert f"{web.url}.html cannot be read: it is a web page (the server calls it text/html)" in told
    assert f"asking {web.host} for an image" in told


def test_weights_that_are_not_finite_end_it(said: Said, photos: Path) -> None:
    code, output, told = said(photos / "0.jpg", "--model", "./damaged.safetensors")
    assert (code, output) == (Exit.USER, "")
    assert "./damaged.safetensors gives outputs that are not finite" in told
