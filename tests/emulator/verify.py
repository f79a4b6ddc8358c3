"""What S3 refuses and moto does not: a layer before moto that verifies who asks, when, and every checksum sent.

`/_control` is for the tests: POST changes `keys` (access key: [secret, session token or ""]), `expired` (session
tokens), `session_seconds` (as in aws.py), `clock_offset` (seconds that the server's clock is ahead) or `lacks` (what it
does not do, tests/emulator/lesser.py); GET tells `requests` (how many came), the open `uploads` and the `tags` of
objects.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import re
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree

import moto.s3.models
from awscrt.checksums import combine_crc64nvme, crc32c, crc64nvme
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.s3.models import FakeKey, MultipartChecksumBuilder, s3_backends

from tests.emulator import enforcement
from tests.emulator.lesser import Environ, Refused, added_headers, lessen

StartResponse = Callable[..., Any]
SKEW_SECONDS = 15 * 60  # S3 refuses signatures that are older, or of the future
DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "HTTP_CONTENT_MD5": lambda body: hashlib.md5(body).digest(),
    "HTTP_X_AMZ_CHECKSUM_CRC32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "HTTP_X_AMZ_CHECKSUM_CRC32C": lambda body: crc32c(body).to_bytes(4, "big"),
    "HTTP_X_AMZ_CHECKSUM_CRC64NVME": lambda body: crc64nvme(body).to_bytes(8, "big"),
    "HTTP_X_AMZ_CHECKSUM_SHA1": lambda body: hashlib.sha1(body).digest(),
    "HTTP_X_AMZ_CHECKSUM_SHA256": lambda body: hashlib.sha256(body).digest(),
}
DEFAULT_KEYS = {"testing": ("testing", "")}


@dataclass
class Upload:
    crc64_needed: bool
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)  # number: CRC64NVME, bytes


class Combined(MultipartChecksumBuilder):
    """moto's own joins all parts once more, and takes seconds for what a client waits five at most."""

    crc64 = 0

    def addPart(self, part: bytes) -> None:  # noqa: N802
        if self.checksum_algorithm != "CRC64NVME":
            super().addPart(part)
        self.crc64 = combine_crc64nvme(self.crc64, crc64nvme(part), len(part))

    def build(self) -> tuple[str, str, int] | None:
        return super().build() if self.checksum_algorithm != "CRC64NVME" else ("FULL_OBJECT", _base64(self.crc64), 1)


moto.s3.models.MultipartChecksumBuilder = Combined
enforcement.patch()


class Verifier:
    """A WSGI application around another. moto compares and writes in one step only if its requests come one by one."""

    def __init__(self, application: Callable[[Environ, StartResponse], Iterable[bytes]]) -> None:
        self._moto, self._lock = application, threading.Lock()
        self._keys, self._expired, self._clock_offset = dict(DEFAULT_KEYS), set[str](), 0.0
        self._lacks: list[str] = []
        self._uploads: dict[str, Upload] = {}
        self._requests = 0

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ |= {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}  # read in one go
        path, _, raw_query = environ["REQUEST_URI"].partition("?")
        query = dict(parse_qsl(raw_query, keep_blank_values=True))
        if path == "/_control":
            return self._control(environ["REQUEST_METHOD"], body, start_response)
        self._requests += 1
        try:
            self._verify_sender(environ, path, raw_query, body)
            if refused := enforcement.refusal(environ):
                raise Refused("403 Forbidden", *refused)
            lessen(environ, query, self._lacks)
            self._verify_checksums(environ, query, body)
        except Refused as error:
            return _refuse(error, environ, start_response)
        with self._lock:
            answer: list[Any] = []
            content = b"".join(self._moto(environ, lambda *arguments: answer.append(arguments)))
            if answer[0][0].startswith("2"):
                self._note(environ, query, body, content)
            added = added_headers(environ, self._lacks, is_tagged=unquote(path)[1:] in _tags())
        start_response(answer[0][0], [*answer[0][1], *added])
        return [content]

    # Who asks, and when

    def _secret(self, access_key: str, token: str) -> str:
        if token and token in self._expired:
            raise Refused("400 Bad Request", "ExpiredToken", "The provided token has expired.")
        if access_key in self._keys:
            secret, wanted = self._keys[access_key]
            if token != wanted:
                raise Refused("400 Bad Request", "InvalidToken")
            return secret
        if session := enforcement.session_of(access_key):
            if token != session.session_token:
                raise Refused("400 Bad Request", "InvalidToken")
            if enforcement.is_over(session):
                raise Refused("400 Bad Request", "ExpiredToken", "The provided token has expired.")
            return str(session.secret_access_key)
        for user in iam_backends[DEFAULT_ACCOUNT_ID]["aws"].users.values():
            for key in user.access_keys:
                if key.access_key_id == access_key:
                    return str(key.secret_access_key)
        raise Refused("403 Forbidden", "InvalidAccessKeyId")

    def _verify_sender(self, environ: Environ, path: str, query: str, body: bytes) -> None:
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+/[^/]+/(\w+)/aws4_request), ?"
            r"SignedHeaders=([^,]+), ?Signature=(\w+)",
            environ.get("HTTP_AUTHORIZATION", ""),
        )
        if not found:
            creates_bucket = environ["REQUEST_METHOD"] == "PUT" and re.fullmatch(r"/[^/]+/?", path)
            if creates_bucket or path.startswith("/moto-api/"):
                return  # what the tests' fixtures ask for
            raise Refused("403 Forbidden", "AccessDenied", "Anonymous access is forbidden.")
        access_key, scope, service, signed, signature = found.groups()
        secret = self._secret(access_key, environ.get("HTTP_X_AMZ_SECURITY_TOKEN", ""))
        if service != "s3":
            return  # IAM's, from the fixtures
        date = environ.get("HTTP_X_AMZ_DATE", "")
        sent = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(datetime.now(UTC).timestamp() + self._clock_offset - sent) > SKEW_SECONDS:
            raise Refused("403 Forbidden", "RequestTimeTooSkewed")
        digest = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
        canonical = "\n".join([
            environ["REQUEST_METHOD"], path, _canonical_query(query),
            *(f"{name}:{' '.join(_header(environ, name).split())}" for name in signed.split(";")),
            "", signed, digest,
        ])  # fmt: skip
        text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{secret}".encode()
        for step in (*scope.split("/"), text):
            key = hmac.digest(key, step.encode(), "sha256")
        if key.hex() != signature:
            raise Refused("403 Forbidden", "SignatureDoesNotMatch")
        if digest.startswith("STREAMING-"):
            raise Refused("501 Not Implemented", "NotImplemented", "chunks with trailers: not over plain HTTP")
        if digest != "UNSIGNED-PAYLOAD" and digest != hashlib.sha256(body).hexdigest():
            raise Refused("400 Bad Request", "XAmzContentSHA256Mismatch")

    # What was sent

    def _verify_checksums(self, environ: Environ, query: dict[str, str], body: bytes) -> None:
        upload, method = self._uploads.get(query.get("uploadId", "")), environ["REQUEST_METHOD"]
        if "uploadId" in query and not upload:
            raise Refused("404 Not Found", "NoSuchUpload")
        if upload and method == "POST":
            if environ.get("HTTP_IF_NONE_MATCH") == "*" and _exists(environ):  # moto knows it of whole bodies only
                raise Refused("412 Precondition Failed", "PreconditionFailed")
            self._verify_end(environ, upload, body)
            return
        for name, digest in DIGESTS.items():
            if (value := environ.get(name)) is not None and base64.b64decode(value) != digest(body):
                raise Refused("400 Bad Request", "BadDigest", f"{name} is {value}, the body is another one")
        if upload and upload.crc64_needed and method == "PUT" and "HTTP_X_AMZ_CHECKSUM_CRC64NVME" not in environ:
            raise Refused("400 Bad Request", "InvalidRequest", "a part without the checksum that was announced")

    def _verify_end(self, environ: Environ, upload: Upload, body: bytes) -> None:
        whole, size = 0, 0
        for part in ElementTree.fromstring(body).iterfind("{*}Part"):
            number = int(part.findtext("{*}PartNumber") or 0)
            if number not in upload.parts:
                raise Refused("400 Bad Request", "InvalidPart", f"part {number} was not sent")
            crc, count = upload.parts[number]
            claimed = part.findtext("{*}ChecksumCRC64NVME")
            if claimed is not None and claimed != _base64(crc):
                raise Refused("400 Bad Request", "InvalidPart", f"part {number} has another checksum")
            whole, size = combine_crc64nvme(whole, crc, count), size + count
        if environ.get("HTTP_X_AMZ_CHECKSUM_CRC64NVME", _base64(whole)) != _base64(whole):
            raise Refused("400 Bad Request", "BadDigest", "the whole object has another checksum")
        if int(environ.get("HTTP_X_AMZ_MP_OBJECT_SIZE", size)) != size:
            raise Refused("400 Bad Request", "InvalidRequest", f"the whole object has {size} bytes")

    def _note(self, environ: Environ, query: dict[str, str], body: bytes, content: bytes) -> None:
        """Remember the uploads that moto has begun, added to, or ended."""
        method, identity = environ["REQUEST_METHOD"], query.get("uploadId", "")
        if method == "POST" and "uploads" in query:
            needed = environ.get("HTTP_X_AMZ_CHECKSUM_ALGORITHM") == "CRC64NVME"
            self._uploads[ElementTree.fromstring(content).findtext("{*}UploadId") or ""] = Upload(needed)
        elif method == "PUT" and identity in self._uploads:
            self._uploads[identity].parts[int(query["partNumber"])] = (crc64nvme(body), len(body))
        elif method in ("POST", "DELETE") and identity:
            self._uploads.pop(identity, None)

    # The tests' own wishes

    def _control(self, method: str, body: bytes, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            if method == "POST":
                wishes = json.loads(body)
                self._keys = DEFAULT_KEYS | {key: (one[0], one[1]) for key, one in wishes.get("keys", {}).items()}
                self._expired = set(wishes.get("expired", ()))
                self._clock_offset = float(wishes.get("clock_offset", 0))
                self._lacks = list(wishes.get("lacks", ()))
                enforcement.cap_sessions(float(wishes.get("session_seconds", 0)))
            buckets = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets.values()
            known: dict[str, Any] = {"requests": self._requests}
            known["uploads"] = [
                f"{bucket.name}/{one.key_name}" for bucket in buckets for one in bucket.multiparts.values()
            ]
            known["tags"] = _tags()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(known).encode()]


def _exists(environ: Environ) -> bool:
    bucket, _, key = environ["PATH_INFO"][1:].partition("/")
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, key) is not None


def _tags() -> dict[str, dict[str, str]]:
    """By `bucket/key`, of the objects that have some."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    keys = ((f"{bucket.name}/{name}", key) for bucket in backend.buckets.values() for name, key in bucket.keys.items())
    there = ((name, key) for name, key in keys if isinstance(key, FakeKey))  # else the mark of a deletion
    tags = ((name, backend.tagger.get_tag_dict_for_resource(key.arn)) for name, key in there)
    return {name: found for name, found in tags if found}


def _refuse(error: Refused, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    content = f"<Error><Code>{error.code}</Code><Message>{error}</Message></Error>".encode()
    if environ["REQUEST_METHOD"] == "HEAD":
        content = b""
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
    start_response(error.status, headers + [("x-amz-bucket-region", error.region)] * bool(error.region))
    return [content]


def _header(environ: Environ, name: str) -> str:
    variable = name.upper().replace("-", "_")
    return str(environ.get(variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}", ""))


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return "&".join(sorted(f"{quote(unquote(n), safe='-_.~')}={quote(unquote(v), safe='-_.~')}" for n, _, v in pairs))


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()
