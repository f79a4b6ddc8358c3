"""Fetches one image from a web address: https or http only, within a limit of bytes and of seconds.

A redirect to another kind of address, such as a file of this machine, is refused. So is one from https
to http, and one into a private network where the first address is not there. Each host that is asked is told.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
from typing import IO, Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from trainer.predict.sources import show_address
from trainer.text import say, show_bytes, show_name

MOST_IMAGE_BYTES = 64 << 20  # of an image from the web or from standard input
MOST_FETCH_SECONDS = 30.0  # from the first packet to the last byte, redirects and slow answers included
BYTES_AT_ONCE = 1 << 16
KEPT = "/%:@!$&'()*+,;=~"  # letters of a path that mean something, or are quoted already
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
    asked = request.Request(quoted(url), headers={"User-Agent": AGENT, "Accept": "image/*"})
    with opener.open(asked, timeout=MOST_FETCH_SECONDS) as answer:
        _check_size(int(answer.headers.get("Content-Length") or 0))
        body = bytearray()
        while piece := answer.read1(BYTES_AT_ONCE):
            body += piece
            _check_size(len(body))
            if time.monotonic() > until:
                raise _too_slow()
        return bytes(body), str(answer.headers.get_content_type())


def quoted(url: str) -> str:
    """The address as a server takes it: letters beyond ASCII as %C3%A9, those of a host as xn--…. Raises ValueError."""
    parts = urlsplit(url)
    host = parts.netloc
    if parts.hostname and not host.isascii():
        port = f":{parts.port}" if parts.port else ""
        host = f"{parts.hostname.encode('idna').decode()}{port}"
    path, query = (quote(text, f"{KEPT}?", errors="surrogateescape") for text in (parts.path, parts.query))
    return parts._replace(netloc=host, path=path, query=query).geturl()


def _check_size(count: int) -> None:
    if count > MOST_IMAGE_BYTES:
        raise NoImageError(
            f"it has more than {show_bytes(MOST_IMAGE_BYTES)}: fetch it yourself, and name the file"
        )  # fmt: skip


def _host(url: str) -> str:
    return show_name(urlsplit(url).netloc.rpartition("@")[2])


class _ToldRedirects(request.HTTPRedirectHandler):
    """Follows redirects to http and https, as its base does. That would follow one to ftp or to this machine, too."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        if why := fault_of_redirect(req, newurl):
            fp.close()
            raise NoImageError(f"it redirects to {show_address(newurl)}, {why}")
        say(f"it redirects to {_host(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fault_of_redirect(asked: request.Request, url: str) -> str:
    """Why this redirect is not followed, or "". Raises ValueError for what is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return "which is no web address"
    if (asked.type, parts.scheme) == ("https", "http"):
        return "which anybody on the way can read and change: find the image's https:// address"
    if "@" in parts.netloc:
        return "which has a user's name in it: find the image's own address"
    if _is_internal(parts.hostname or "") and not _is_internal(asked.origin_req_host.strip("[]")):
        return "which lies in a private network: if that is meant, name that address itself"
    return ""


def _is_internal(host: str) -> bool:
    """Whether any address of a host is one of this machine or of a private network."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False  # a proxy may know the name; without one, the connection fails
    return any(not ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_global for one in found)
