"""What other S3 endpoints do not do. The layer before moto takes it away from moto, once it knows who asks.

- `if-none-match`, `if-match`: this condition of a write is ignored; `conditions-refused`: such a write is refused;
  `if-match-fails`: no etag is ever the right one; `bare-etags`: none with quotes is, as in Ceph 16.
- `crc64`: a CRC64NVME is ignored; `crc64-refused`: it is refused.
- `md5`: a Content-MD5 is ignored; `md5-refused`: it is refused, be it right or wrong; `md5-part`: it is ignored
  in a part.
- `checksums`: whatever boto3 adds to a small body is refused, as by an endpoint that knows no such header;
  `checksums:CODE`: with this code and status 403.
- `tags`, `tags-denied`, `lifecycle`, `lifecycle-denied`, `delete-denied`: such requests are refused.
- `delete-404`: what does not exist cannot be deleted.
- `names-its-rule`, `expires-all` are no lacks: asked for an object with tags, or for any, it says that a lifecycle rule
  expires it, as S3 does, and moto does not.
- `versions`: it keeps no old versions and knows no request about them.
- `busy`: the second half of a probe, whatever is sent in parts, finds it busy.
- `kms`: the bucket has a key that this role may not use.
- `region:NAME`: the buckets are in this region, and a request that is signed for another one is sent there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Environ = dict[str, Any]


class Refused(Exception):  # noqa: N818
    def __init__(
        self, status: str, code: str, message: str = "refused by the layer before moto", *, region: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.region = status, code, region


UNKNOWN = ("501 Not Implemented", "NotImplemented")
DENIED = ("403 Forbidden", "AccessDenied")
KMS = "User: arn:aws:iam::1:role/x is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:::key/1"


def lessen(environ: Environ, query: dict[str, str], lacks: Iterable[str]) -> None:
    """Take from a request what the endpoint ignores. Raises Refused for what it refuses."""
    method = environ["REQUEST_METHOD"]
    writes = method in ("PUT", "POST")
    for lack in lacks:
        if lack.startswith("region:"):
            _send_to(lack.partition(":")[2], environ)
        elif lack in ("if-none-match", "if-match") and writes:
            environ.pop(f"HTTP_{lack.upper().replace('-', '_')}", None)
        elif lack == "conditions-refused" and writes and {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & environ.keys():
            raise Refused(*UNKNOWN)
        elif lack == "bare-etags" and writes and "HTTP_IF_MATCH" in environ:
            found = environ["HTTP_IF_MATCH"]
            environ["HTTP_IF_MATCH"] = '"no such etag"' if found.startswith('"') else f'"{found}"'
        elif lack == "if-match-fails" and writes and "HTTP_IF_MATCH" in environ:
            raise Refused("412 Precondition Failed", "PreconditionFailed")
        elif lack.startswith("crc64"):
            if lack == "crc64-refused" and _mentions(environ, "CRC64NVME"):
                raise Refused("400 Bad Request", "InvalidRequest", "Checksum algorithm provided is unsupported")
            _forget(environ, "CRC64NVME")
        elif lack == "md5" or (lack == "md5-part" and "uploadId" in query):
            environ.pop("HTTP_CONTENT_MD5", None)
        elif lack == "md5-refused" and "HTTP_CONTENT_MD5" in environ:
            raise Refused("400 Bad Request", "InvalidArgument")
        elif (
            lack.startswith("checksums") and writes and any(name.startswith("HTTP_X_AMZ_CHECKSUM") for name in environ)
        ):
            code = lack.partition(":")[2]
            known = ("403 Forbidden", code) if code else UNKNOWN
            raise Refused(*known, "A header you provided implies functionality that is not implemented")
        elif (lack.startswith("tags") and "tagging" in query) or (
            lack.startswith("lifecycle") and "lifecycle" in query
        ):
            raise Refused(*(DENIED if lack.endswith("-denied") else UNKNOWN))
        elif lack == "versions" and {"versions", "versioning", "versionId"} & query.keys():
            raise Refused(*UNKNOWN)
        elif lack == "delete-denied" and method == "DELETE" and "uploadId" not in query:
            raise Refused(*DENIED)
        elif lack == "delete-404" and method == "DELETE" and "uploadId" not in query:
            raise Refused("404 Not Found", "NoSuchKey")
        elif lack == "busy" and "uploadId" in query:
            raise Refused("503 Slow Down", "SlowDown")
        elif lack == "kms" and writes:
            raise Refused(*DENIED, KMS)


def added_headers(environ: Environ, lacks: Iterable[str], *, is_tagged: bool) -> list[tuple[str, str]]:
    """For an answer about an object, which may have tags."""
    expiring = ("x-amz-expiration", 'expiry-date="Fri, 21 Dec 2029 00:00:00 GMT", rule-id="ours"')
    names_a_rule = "expires-all" in lacks or ("names-its-rule" in lacks and is_tagged)
    return [expiring] if names_a_rule and environ["REQUEST_METHOD"] == "HEAD" else []


def _mentions(environ: Environ, algorithm: str) -> bool:
    return f"HTTP_X_AMZ_CHECKSUM_{algorithm}" in environ or algorithm in _algorithms(environ).values()


def _algorithms(environ: Environ) -> dict[str, str]:
    return {name: environ[name] for name in environ if name.endswith("CHECKSUM_ALGORITHM")}


def _forget(environ: Environ, algorithm: str) -> None:
    environ.pop(f"HTTP_X_AMZ_CHECKSUM_{algorithm}", None)
    for name, value in _algorithms(environ).items():
        if value == algorithm:
            del environ[name]
            environ.pop("HTTP_X_AMZ_CHECKSUM_TYPE", None)


def _send_to(region: str, environ: Environ) -> None:
    if f"/{region}/s3/" not in environ.get("HTTP_AUTHORIZATION", f"/{region}/s3/"):
        raise Refused("301 Moved Permanently", "PermanentRedirect", f"the bucket is in {region}", region=region)
