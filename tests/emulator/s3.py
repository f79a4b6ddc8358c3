"""S3 over HTTP for the tests: moto's server as a process of its own (with what it does not verify
verified, tests/emulator/verify.py), and a proxy that loses or forges its answers.

`python -m tests.emulator.s3` is the server; it prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests import ROOT

if TYPE_CHECKING:
    from trainer.store import ObjectStore


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 endpoint on 127.0.0.1, for the session."""
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.emulator.s3"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    with server:  # closes the pipes and waits
        assert server.stdout is not None
        if not (port := server.stdout.readline().strip()):
            pytest.fail(f"the S3 endpoint did not start:\n{log.read_text()}")
        yield f"http://127.0.0.1:{int(port)}"
        server.terminate()


@pytest.fixture(scope="session")
def aws_environ(s3_endpoint: str) -> dict[str, str]:
    """What a subprocess needs to use the endpoint, and nothing else of AWS."""
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@pytest.fixture
def s3_uri(s3_endpoint: str, aws_environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://<fresh bucket>/some/prefix`, with the environment set for this process."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_environ.items():
        monkeypatch.setenv(name, value)
    make_bucket(s3_endpoint, bucket := f"test-{uuid.uuid4().hex}")
    return f"s3://{bucket}/some/prefix"


def make_bucket(endpoint: str, bucket: str) -> None:
    """With the lifecycle rule that ours has on AWS."""
    for query, body in (("", b""), ("?lifecycle", LIFECYCLE)):
        xml = {"Content-Type": "application/xml"}
        change = urllib.request.Request(f"{endpoint}/{bucket}{query}", body, xml, method="PUT")
        urllib.request.urlopen(change, timeout=30).close()


LIFECYCLE = b"""<LifecycleConfiguration><Rule><ID>expire-superseded</ID><Status>Enabled</Status>
<Filter><And><Prefix>some/</Prefix><Tag><Key>superseded</Key><Value>true</Value></Tag></And></Filter>
<Expiration><Days>3</Days></Expiration>
</Rule></LifecycleConfiguration>"""


# A fault does with one request what it likes: it may call `forward`, and returns the answer, or None to hang up.
Answer = tuple[int, dict[str, str], bytes]
Forward = Callable[[], Answer]
Fault = Callable[[Forward], Answer | None]


class FaultyProxy:
    """Between client and endpoint: requests of a method meet the faults planned for it, one each, then none."""

    def __init__(self, endpoint: str, tls: ssl.SSLContext | None = None) -> None:
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[str] = []  # "PUT /bucket/key", in order of arrival
        self.headers: list[dict[str, str]] = []  # of the same requests; names in lower case
        proxy, target = self, urlsplit(endpoint).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}

                def forward() -> Answer:
                    connection = http.client.HTTPConnection(target, timeout=10)
                    try:
                        connection.request(self.command, self.path, body, headers)
                        response = connection.getresponse()
                        return response.status, dict(response.getheaders()), response.read()
                    finally:
                        connection.close()

                proxy.requests.append(f"{self.command} {self.path}")
                proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
                planned = proxy.faults.get(self.command)
                answer = planned.pop(0)(forward) if planned else forward()
                if answer is None:
                    self.close_connection = True
                    return
                status, found, content = answer
                self.send_response_only(status)
                for name, value in found.items():
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                promised = int({k.lower(): v for k, v in found.items()}.get("content-length", len(content)))
                self.close_connection = self.command != "HEAD" and len(content) != promised

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.endpoint = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"

    def plan(self, method: str, *faults: Fault) -> None:
        self.faults.setdefault(method, []).extend(faults)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def lose_answer(forward: Forward) -> None:
    """The request takes effect, its acknowledgement never arrives."""
    forward()


def cut_answer(forward: Forward) -> Answer:
    """Half of the body arrives."""
    status, headers, body = forward()
    return status, headers, body[: len(body) // 2]


def refuse(status: int, code: str) -> Fault:
    """An error of S3, without asking the endpoint."""
    body = f"<Error><Code>{code}</Code><Message>planned by the test</Message></Error>".encode()
    return lambda forward: (status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)


@pytest.fixture
def s3_proxy(s3_uri: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before the endpoint, and the environment (of this process) pointing to it."""
    proxy = FaultyProxy(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An empty store, of each kind."""
    from trainer.store import open_store

    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_uri"))
    folder: Path = request.getfixturevalue("tmp_path") / "store"
    folder.mkdir()
    return open_store(str(folder))


@dataclass
class Control:
    """The endpoint's own settings, all as they were after the test; see tests/emulator/verify.py."""

    endpoint: str
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, **settings: Any) -> None:
        """`keys={access key: [secret, session token or ""]}`, `expired=[session token]`, `clock_offset=seconds`,
        `lacks=[…]` of tests/emulator/lesser.py."""
        self.settings |= settings
        self._ask(json.dumps(self.settings).encode())

    def reset(self) -> None:
        self.settings.clear()
        self.set()

    def uploads(self) -> list[str]:
        """`bucket/key` of multipart uploads that are not ended."""
        return list(self._ask()["uploads"])

    def tags(self) -> dict[str, dict[str, str]]:
        """By `bucket/key`, of the objects that have some."""
        return dict(self._ask()["tags"])

    def requests(self) -> int:
        """How many came, refused ones included."""
        return int(self._ask()["requests"])

    def _ask(self, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.endpoint}/_control", body, timeout=30) as answer:
            known: dict[str, Any] = json.loads(answer.read())
            return known


@pytest.fixture
def s3_control(s3_endpoint: str) -> Iterator[Control]:
    control = Control(s3_endpoint)
    yield control
    control.reset()


def serve() -> None:
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)  # smaller objects stay in memory
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    from tests.emulator.verify import Verifier

    application = Verifier(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
