"""A headless chromium that a test asks and steers, by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

SECONDS = 90.0  # that a page takes at most, however busy the machine is


class Tab:
    """One page of a browser. `events` has all that the browser told so far."""

    def __init__(self, orders: int, answers: int):
        self.orders, self.answers, self.buffer = orders, answers, b""
        self.number, self.session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        order = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.orders, json.dumps(order | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            told = self._receive()
            if told.get("id") == self.number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            piece = os.read(self.answers, 1 << 20)
            assert piece, "the browser has ended"
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        return told

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        self.resize(width, height)
        self.ask("Page.navigate", url=address)

    def resize(self, width: int, height: int = 900) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def value(self, script: str) -> Any:
        """Of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until the expression is true. While the page is loading, it may fail."""
        deadline = time.monotonic() + SECONDS
        while not self.value(f"(() => {{ try {{ return Boolean({script}) }} catch {{ return false }} }})()"):
            assert time.monotonic() < deadline, (
                f"{script} does not become true: {self.value('document.body.innerText')}"
            )
            time.sleep(0.05)

    def requests(self) -> list[str]:
        """The addresses of all requests so far."""
        sent = (told["params"] for told in self.events if told.get("method") == "Network.requestWillBeSent")
        return [one["request"]["url"] for one in sent]

    def errors(self) -> list[str]:
        """What the console has of errors: exceptions, failed requests, broken policies."""
        found = list[str]()
        for told in self.events:
            body = told.get("params", {})
            if told.get("method") == "Runtime.exceptionThrown" or body.get("entry", {}).get("level") == "error":
                found.append(json.dumps(body))
            if told.get("method") == "Runtime.consoleAPICalled" and body["type"] == "error":
                found.append(json.dumps(body))
        return found


@contextmanager
def opened(chromium: str, folder: Path) -> Iterator[Tab]:
    """A browser with one tab and a profile of its own in the folder."""
    (mine_in, orders), (answers, mine_out) = os.pipe(), os.pipe()
    command = [chromium, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    shell = ["bash", "-c", f'exec "$@" 3<&{mine_in} 4>&{mine_out}', "bash", *command]  # it wants these two numbers
    process = subprocess.Popen(shell, pass_fds=(mine_in, mine_out), stderr=subprocess.DEVNULL)
    os.close(mine_in)
    os.close(mine_out)
    try:
        yield Tab(orders, answers)
    finally:
        process.kill()
        process.wait()
        os.close(orders)
        os.close(answers)
