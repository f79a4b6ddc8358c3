"""Fetches one image from a web address: https or http only, within a limit of bytes and of seconds.

A redirect to another kind of address, such as a file of this machine, is refused. Each host that is asked is told.
"""

from __future__ import annotations

import http.client
import threading
import time
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from trainer.text import say, show_bytes, show_name

MOST_IMAGE_BYTES = 64 << 20  # of an image from the web or from standard input
MOST_FETCH_SECONDS = 30.0  # from the first packet to the last byte, redirects and slow answers included
BYTES_AT_ONCE = 1 << 16
AGENT = "resnet-spot"  # some servers refuse urllib's own


class NoImageError(Exception):
    """An image cannot be had. The message says why, without its name."""


def fetch_image(url: str) -> tuple[bytes, str]:
    """What lies at an http(s) address, and what its server calls it, such as "image/jpeg". Raises NoImageError."""
    answer: list[tuple[bytes, str] | NoImageError] = []
    # A thread of its own, since a server can make a client wait in many places, and not all of them have a timeout.
    thread = threading.Thread(target=lambda: answer.append(_ask(url)), daemon=True, name="download")
    thread.start()
    thread.join(MOST_FETCH_SECONDS)
    found = answer[0] if answer else _too_slow()
    if isinstance(found, NoImageError):
        raise found
    return found


def _ask(url: str) -> tuple[bytes, str] | NoImageError:
    try:
        return _download(url)
    except NoImageError as error:
        return error
    except HTTPError as error:
        error.close()
        return NoImageError(f"the server answered {error.code} {show_name(str(error.reason))}")
    except TimeoutError:
        return _too_slow()
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        why = error.reason if isinstance(error, URLError) else error
        return _too_slow() if isinstance(why, TimeoutError) else NoImageError(
            f"it cannot be fetched ({show_name(str(why) or type(why).__name__)}): check the address and the network"
        )  # fmt: skip


def _too_slow() -> NoImageError:
    return NoImageError(f"it did not arrive within {MOST_FETCH_SECONDS:.0f} s: fetch it yourself, and name the file")


def _download(url: str) -> tuple[bytes, str]:
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(), request.HTTPHandler(), request.HTTPSHandler(), request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(), _ToldRedirects(),
    ):  # fmt: skip
        opener.add_handler(handler)
    say(f"asking {_host(url)} for an image")
    until = time.monotonic() + MOST_FETCH_SECONDS
    asked = request.Request(url, headers={"User-Agent": AGENT, "Accept": "image/*"})
    with opener.open(asked, timeout=MOST_FETCH_SECONDS) as answer:
        _check_size(int(answer.headers.get("Content-Length") or 0))
        body = bytearray()
        while piece := answer.read1(BYTES_AT_ONCE):
            body += piece
            _check_size(len(body))
            if time.monotonic() > until:
                raise _too_slow()
        return bytes(body), str(answer.headers.get_content_type())


def _check_size(count: int) -> None:
    if count > MOST_IMAGE_BYTES:
        raise NoImageError(
            f"it has more than {show_bytes(MOST_IMAGE_BYTES)}: fetch it yourself, and name the file"
        )  # fmt: skip


def _host(url: str) -> str:
    return show_name(urlsplit(url).netloc.rpartition("@")[2])


class _ToldRedirects(request.HTTPRedirectHandler):
    """Follows redirects to http and https, as its base does. That would follow one to ftp, too."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            fp.close()
            raise NoImageError(f"it redirects to {show_name(newurl)}, which is no web address")
        say(f"it redirects to {_host(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
