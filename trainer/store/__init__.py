"""Object stores: one interface to a directory and to S3 (`s3://bucket/prefix`), which behave the same.

Nothing here knows what the keys mean, or waits for a store to come back: after a few quick attempts an operation raises
StoreError. boto3 is imported when an S3 store is opened, not before.
"""

from __future__ import annotations

import contextlib
import errno
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from trainer.contract import UserError, is_key

if TYPE_CHECKING:
    from trainer.store.checksum import Checksums

READ_BYTES = 1 << 20  # how much of a large body is read at a time


class StoreError(Exception):
    """The store answered with a fault, or not at all. This never means that an object does not exist.

    `code` is S3's error code, the name of botocore's exception, or the name of the errno. `is_refusal`: because of what
    is in the request, which the store would refuse again. After a failed write the object may have been written or
    not, but never half.
    """

    def __init__(self, message: str, code: str = "", *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.code, self.is_refusal = code, is_refusal


class NotFoundError(StoreError):
    """The store answered that the key does not exist."""


class ConflictError(StoreError):
    """A conditional write was refused: the object exists already, or has changed since it was read."""


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    bytes: int
    etag: str  # opaque: another one after every change of the content


class ObjectStore(Protocol):
    """What the rest of the trainer knows of a store. Keys are relative to the store's URI, with '/' between parts.

    Every method raises StoreError for a fault of the store, and ValueError for a string that is no key. Threads may
    share a store. Processes may not, since S3 has open connections: each opens its own from `uri`.
    """

    uri: str

    def get(self, key: str) -> bytes:
        """The whole object; NotFoundError if there is none."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The object, and the etag of exactly these bytes for `replace`; NotFoundError if there is none."""

    def info(self, key: str) -> ObjectInfo:
        """Size and etag; NotFoundError if there is none."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Exactly `size` bytes from `start`; StoreError if the object ends before."""

    def stream(self, key: str, start: int, size: int, buffer: memoryview) -> Iterator[memoryview]:
        """`size` bytes from `start`, in pieces; StoreError if the object ends before. A piece is a view of `buffer`,
        valid until the next one. So an object larger than the memory goes through a small buffer."""

    def read_into(self, key: str, buffer: memoryview, start: int | None = None) -> None:
        """Fill the buffer with a large object; StoreError if the sizes differ. With `start`, fill it with the range
        that begins there, as `read_range`."""

    def put(self, key: str, body: bytes | BinaryIO) -> str:
        """Write or overwrite. Readers see the old object or the new one, whole. A file is read from its position."""

    def put_large(self, key: str, body: memoryview, checksums: Checksums) -> None:
        """As `put`, without a copy of the body. The store compares the checksums (StoreError "BadDigest"). ValueError
        if the sizes differ. The body must not change meanwhile; nothing reads it afterwards."""

    def create(self, key: str, body: bytes) -> str:
        """Write only if there is no such object, else ConflictError. Exactly one of many callers succeeds."""

    def replace(self, key: str, body: bytes, etag: str) -> str:
        """Write only if the object still has this etag, else (or if there is none) ConflictError."""

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with the prefix (a string, not a folder), sorted by key, page by page. `after`
        leaves out the keys up to that one, which then cost nothing."""

    def folders(self, folder: str) -> Sequence[str]:
        """The names of the folders directly below one, such as "runs/", sorted. However much is in them, that costs
        little. A store in a folder names empty ones, too."""

    def retire(self, key: str) -> None:
        """Give up a superseded object. A directory removes it now, S3 lets it expire. A missing one is no fault."""

    @property
    def keeps_all(self) -> bool:
        """Whether what is retired stays for ever, since nobody may tag or delete it."""

    def abort_uploads(self, prefix: str) -> int:
        """Remove what unfinished writes of keys with this prefix have left, and return how many there were. Writes that
        are still going on fail."""

    def free_bytes(self) -> int | None:
        """How much room is left; None where nobody knows."""

    def probe(self, key: str, *, for_checkpoints: bool = False, creates: bool = False) -> tuple[str, ...]:
        """Try on a tiny object what a run will ask of the store, and use from now on what it can do.

        If `creates`, objects there are only created, so one of an earlier probe stays as it is.

        Returns a sentence for each lack that costs something. UserError with reason and fix if the user has to do
        something: it may not be written, or, for checkpoints, it does not obey the condition of a write.
        """

    def describe(self, key: str) -> str:
        """Where the object is, for messages: `s3://bucket/prefix/key`, or the path of the file."""


def open_store(uri: str) -> ObjectStore:
    """The store at `s3://bucket/prefix`, `file:///folder` or a folder, which the first write makes."""
    rule = "a store is s3://bucket/prefix or a folder"
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.removesuffix("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise UserError(f"{uri!r} names no bucket: {rule}; write s3://, a bucket (a-z, 0-9, '-', '.'), a prefix")
        if prefix and not is_key(prefix):
            raise UserError(f"{uri!r} has an empty part or '..' in its prefix: {rule}; write s3://bucket/some/prefix")
        from trainer.store.s3 import S3Store

        return S3Store(bucket, prefix)
    path = uri
    if uri.startswith("file:///"):
        path = urllib.parse.unquote(uri.removeprefix("file://"))
    elif not uri.strip() or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|(s3a?|gs|file|https?)//", uri):
        raise UserError(f"{uri!r} is not a store: {rule}; write s3://bucket/prefix, file:///folder or ./folder")
    from trainer.store.directory import DirectoryStore

    return DirectoryStore(Path(path).expanduser().absolute())


def check_prefix(prefix: str) -> str:
    if prefix and not is_key(prefix.removesuffix("/")):
        raise ValueError(f"{prefix!r} is not a prefix of keys: use the beginning of a key, or '' for all")
    return prefix


def check_size(body: memoryview, checksums: Checksums) -> memoryview:
    """The body as bytes."""
    view = body.cast("B")
    if len(view) != checksums.bytes:
        raise ValueError(f"the body has {len(view)} bytes, its checksums are of {checksums.bytes}")
    return view


def check_range(start: int, size: int) -> None:
    if start < 0 or size < 1:
        raise ValueError(f"start={start}, size={size} is not a range: start at 0 or later, read 1 byte or more")


DENIED = ("AccessDenied", "AllAccessDisabled", "403")
_FIXES = {
    "allow the role or user to list, get and put there (or name another bucket or prefix; one of another account where "
    "the requester pays cannot be used)": DENIED,
    "give credentials that are valid: AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws sso login`": (
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
        "UnauthorizedSSOTokenError", "SSOTokenLoadError", "InvalidAccessKeyId", "SignatureDoesNotMatch",
        "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired",
    ),
    "enable the KMS key of the bucket, or choose another encryption": (
        "KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException",
    ),
    "restore the objects from the archive (Glacier) first": ("InvalidObjectState",),
    "set the clock of this machine": ("RequestTimeTooSkewed", "RequestExpired"),
    "create the bucket, or correct its name": ("NoSuchBucket",),
    "set AWS_DEFAULT_REGION to the region of the bucket": (
        "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
    ),
    "check the network, and AWS_ENDPOINT_URL and AWS_DEFAULT_REGION": (
        "EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError",
        "ProxyConnectionError", "SSLError", "HTTPClientError",
    ),
    "make the folder writable for this user, or name another one": ("EACCES", "EPERM", "EROFS"),
    "name a folder: something on this path is a file or a broken link": ("ENOTDIR", "EEXIST", "EISDIR"),
    "free disk space (or quota), or name a folder on another disk": ("ENOSPC", "EDQUOT", "EFBIG"),
    "name a folder on a file system that has locks (flock)": ("ENOLCK", "ENOSYS", "EOPNOTSUPP"),
    "name a folder with a shorter path": ("ENAMETOOLONG",),
    "name a folder without a loop of links": ("ELOOP",),
    "raise the limit of open files, for example `ulimit -n 65536`": ("EMFILE", "ENFILE"),
    "use a machine with more memory": ("ENOMEM",),
}  # fmt: skip


_KMS_FIX = "allow the role or user kms:GenerateDataKey and kms:Decrypt on the key by which the bucket encrypts"
# These may mend themselves: credentials are renewed, clocks are set after a boot, networks return and carry all bytes.
_MAY_PASS = (
    "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "CredentialRetrievalError",
    "RequestTimeTooSkewed", "EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError",
    "ReadTimeoutError", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
)  # fmt: skip


def may_pass(error: Exception) -> bool:
    """Whether a fault of a store may be gone in a minute, though nobody does anything."""
    cause = error if isinstance(error, StoreError) else error.__cause__
    if not isinstance(cause, StoreError) or cause.code in _MAY_PASS:
        return isinstance(cause, StoreError)
    return not cause.is_refusal and all(cause.code not in codes for codes in _FIXES.values())


@contextlib.contextmanager
def naming_the_fix(what: str) -> Iterator[None]:
    """Turn a fault that only the user can mend into a UserError with its fix. Let other faults through."""
    try:
        yield
    except (StoreError, OSError) as error:
        code = error.code if isinstance(error, StoreError) else errno.errorcode.get(error.errno or 0, "")
        for fix, codes in _FIXES.items():
            if code in codes:
                fix = _KMS_FIX if code == "AccessDenied" and "kms:" in str(error) else fix
                raise UserError(f"{what} cannot be used: {error}; {fix}") from error
        raise
    except MemoryError as error:
        raise UserError(
            f"{what} cannot be used: {str(error) or 'no memory is left'}; use a machine with more"
        ) from error
