"""Images from web addresses: what is fetched, what is told, and what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.request import Request

import pytest

from tests.trainer.predict.website import JPEG, Web, send
from trainer.predict import download
from trainer.predict.download import NoImageError, fault_of_redirect, fetch_image, quoted


def redirect_to(address: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, b"", "text/plain", 302, Location=address)


def refusal(url: str) -> str:
    with pytest.raises(NoImageError) as caught:
        fetch_image(url)
    return str(caught.value)


def test_an_image_comes_with_what_its_server_calls_it_and_the_host_is_told(
    web: Web, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fetch_image(web.url) == (JPEG, "image/jpeg")
    assert capfd.readouterr().err == f"asking {web.host} for an image\n"


def test_a_redirect_is_followed_and_told(web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/cat.jpg":
            redirect_to("/other.jpg")(handler)
        else:
            send(handler, JPEG, "image/jpeg")

    web.answer = answer
    assert fetch_image(web.url)[0] == JPEG
    assert f"it redirects to {web.host}" in capfd.readouterr().err


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/cat.jpg", "data:image/png;base64,AAAA"])
def test_a_redirect_away_from_the_web_is_refused(address: str, web: Web) -> None:
    web.answer = redirect_to(address)
    assert address in refusal(web.url)


REDIRECTS = [
    "http://127.0.0.1:80/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/latest", "http://10.1.2.3/",
    "http://192.168.0.1/", "http://2130706433/", "http://0/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1]/",
]  # fmt: skip


@pytest.mark.parametrize("address", REDIRECTS)
def test_a_redirect_from_the_web_into_a_private_network_is_refused(
    address: str, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{web.host}")  # so that a public address is answered here
    web.answer = redirect_to(f"{address}cat.jpg?key=1")
    said = refusal("http://93.184.215.14/cat.jpg")
    assert said.startswith(f"it redirects to {address}cat.jpg?…, which lies in a private network")


def test_a_redirect_that_shows_what_is_fetched_to_others_is_refused() -> None:
    asked = Request("https://93.184.215.14/cat.jpg")
    assert "anybody on the way can read" in fault_of_redirect(asked, "http://93.184.215.14/cat.jpg")
    assert "user's name" in fault_of_redirect(asked, "https://me:password@93.184.215.14/cat.jpg")
    assert not fault_of_redirect(asked, "https://93.184.215.15/cat.jpg")


def test_an_address_may_have_letters_of_any_alphabet(web: Web) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, JPEG, "image/jpeg")

    web.answer = answer
    assert fetch_image(f"http://{web.host}/café 1%20.jpg?größe=1&b=%C3%A9")[0] == JPEG
    assert asked == ["/caf%C3%A9%201%20.jpg?gr%C3%B6%C3%9Fe=1&b=%C3%A9"]
    assert quoted("https://bücher.example:8443/a") == "https://xn--bcher-kva.example:8443/a"


def test_a_redirect_to_itself_ends(web: Web) -> None:
    web.answer = redirect_to(web.url)
    assert "302" in refusal(web.url)


def test_what_the_server_refuses_is_told(web: Web) -> None:
    web.answer = lambda handler: send(handler, b"", "text/plain", 404)
    assert refusal(web.url) == "the server answered 404 Not Found"


def test_too_many_bytes_are_refused_announced_or_not(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answer = lambda handler: send(handler, b"", "image/jpeg", 200, **{"Content-Length": str(1 << 40)})
    assert refusal(web.url).startswith("it has more than 67.1 MB: fetch it yourself")
    monkeypatch.setattr(download, "MOST_IMAGE_BYTES", 100_000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(300_000))

    web.answer = endless
    assert "more than 0.1 MB" in refusal(web.url)


def test_a_server_that_dribbles_is_left(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST_FETCH_SECONDS", 0.2)
    done = threading.Event()

    def dribble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
        while not done.wait(0.05):  # each byte comes in time, and the headers never end
            handler.wfile.write(b"x")

    web.answer, began = dribble, time.monotonic()
    try:
        assert "did not arrive within" in refusal(web.url)
        assert time.monotonic() - began < 5
    finally:
        done.set()


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_told() -> None:
    assert "check the address and the network" in refusal("http://127.0.0.1:9/cat.jpg")
    assert "cannot be fetched" in refusal("http://127.0.0.1:port/cat.jpg")
    assert "cannot be fetched" in refusal("http://")


def test_a_server_that_speaks_something_else_is_told(web: Web) -> None:
    def greet(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"220 ready\r\n")

    web.answer = greet
    assert "cannot be fetched" in refusal(web.url)
