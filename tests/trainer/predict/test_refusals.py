"""What `make predict` leaves out, keeps to itself, or refuses."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from tests.images import encode, photo
from tests.trainer.predict.exported import Said
from tests.trainer.predict.website import JPEG, Web, send
from trainer.contract import Exit
from trainer.predict import answers as answering


def test_pipes_devices_and_files_without_end_are_left_out_and_the_others_go_on(
    said: Said, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MOST_FILE_BYTES", 1_000_000)
    (photos / "1.jpg").unlink()
    os.mkfifo(photos / "1.jpg")
    (photos / "3.jpg").symlink_to("/dev/zero")
    with (photos / "4.jpg").open("wb") as sparse:
        sparse.truncate(1 << 40)
    for typed in (photos, f"{photos}/*.jpg"):
        code, output, told = said(typed)
        assert code == Exit.USER
        assert [line for line in output.splitlines() if line.startswith("/")] == [
            f"{photos}/{number}.jpg" for number in (0, 2)
        ]
        assert told.count("cannot be read: it is a pipe, a device or a socket, and no file") == 2
        assert "4.jpg cannot be read: it has more than 1.0 MB" in told


def test_json_is_whole_however_long_a_name_is(said: Said, web: Web) -> None:
    long = f"{web.url}/{'x' * 5000}\x7f"
    _, output, _ = said(long, "--json")
    [image] = json.loads(output)["images"]
    assert image["image"] == f"{long[:-1]}\\x7f"


def test_what_is_secret_in_an_address_is_not_shown(said: Said, web: Web, tmp_path: Path) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, *((JPEG, "image/jpeg") if "other" not in handler.path else (b"", "text/html", 403)))

    web.answer = answer
    addresses = [f"{web.url}?signature=SECRET", f"{web.url}/other?signature=SECRET#SECRET"]
    for more in ([], ["--json"]):
        _, output, told = said(*addresses, "--sheet", tmp_path / "sheet.png", *more)
        assert "SECRET" not in output + told
    assert json.loads(output)["images"][0]["image"] == f"{web.url}?…"
    assert {path.rpartition("?")[2] for path in asked} == {"signature=SECRET"}
    for address in (web.url.replace("://", "://user:SECRET@"), "ftp://user:SECRET@host/cat.jpg"):
        code, output, told = said(address)
        assert (code, output) == (Exit.USER, "")
        assert "SECRET" not in told
    assert f"{web.url} is not fetched: a password in an address is seen" in said(web.url.replace("//", "//me@"))[2]


def test_a_contact_sheet_does_not_replace_a_photo(said: Said, photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "cat.png"
    image.write_bytes(before := encode(photo(1), "PNG"))
    code, output, told = said(image, "--sheet", image)
    assert (code, output, image.read_bytes()) == (Exit.USER, "", before)
    assert f"{image}, which is there, and is no contact sheet: name another with --sheet" in told
    for _ in range(2):  # but a contact sheet is drawn again
        assert said(photos, "--sheet", tmp_path / "sheet.png")[0] == Exit.FINISHED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image is named"),
        (["missing.jpg"], "missing.jpg does not exist"),
        (["missing-*.jpg"], "no image matches the pattern missing-*.jpg"),
        (["file:///etc/passwd"], "file:///etc/passwd is not fetched"),
        (["s3://bucket/cat.jpg"], "copy the image here first"),
        (["/dev/zero"], "neither a file nor a folder"),
        ([" "], "no path"),
        (["{photos}/0.jpg", "--top", "0"], "--top 0"),
        (["{photos}/0.jpg", "--sheet", "sheet.jpg"], "name a .png file"),
        (["{photos}/0.jpg", "--device", "cuda"], "torch finds no such device"),
        (["{photos}/0.jpg", "--model", "unknown"], "run 'unknown' has no checkpoint in "),
        (["{photos}/0.jpg", "--model", "./none.safetensors"], "'./none.safetensors' cannot be read ([Errno 2]"),
        (["http://[::1/cat.jpg"], "http://[::1/cat.jpg is no address (Invalid IPv6 URL)"),
    ],
)
def test_what_cannot_be_is_refused_with_its_fix(arguments: list[str], message: str, said: Said, photos: Path) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, output, told = said(*(argument.format(photos=photos) for argument in arguments))
    assert (code, output) == (Exit.USER, "")
    assert told.startswith("error: ")
    assert message in told
