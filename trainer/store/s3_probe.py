"""Tries at the start what S3 itself does and other endpoints may not, by the requests that a run will make.

Each lack becomes a sentence that says what it costs. The last way that works is used from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from trainer.contract import SUPERSEDED_TAG
from trainer.store import DENIED
from trainer.store.checksum import Checksums
from trainer.store.s3_write import CRC64NVME, MD5, UNCOMPARED, put_view_in_parts

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TAG, DELETE, KEEP = "tag", "delete", "keep"  # how a superseded object is given up
TAGGING: Any = {"TagSet": [{"Key": SUPERSEDED_TAG[0], "Value": SUPERSEDED_TAG[1]}]}
UNSIGNED = ("SignatureDoesNotMatch", "AuthorizationHeaderMalformed")  # so some refuse a header that they do not know
_MISSING = ("NoSuchKey", "404")
OLD_VERSIONS = (
    "the bucket keeps old versions: what is overwritten, deleted or expired still takes room there. Add a lifecycle "
    "rule that expires noncurrent versions, or use a bucket without versions and object lock"
)
_PASSING = {  # status 400, too: they say nothing about what the endpoint can do
    "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestTimeout",
    "AuthorizationHeaderMalformed",
}  # fmt: skip


@dataclass(frozen=True)
class Ways:
    """How this endpoint does what not every one does alike. Until somebody has tried, it is taken for S3 itself."""

    compared_by: str = CRC64NVME
    gives_up_by: str = TAG
    bare_etags: bool = False  # If-Match has an etag without its quotes: so Ceph wants it


def refuses(error: BaseException | None) -> bool:
    """Whether an endpoint refuses a request because of what is in it, which it would do again."""
    if not isinstance(error, ClientError) or error.response["Error"]["Code"] in _PASSING:
        return False
    return error.response["ResponseMetadata"].get("HTTPStatusCode", 0) in (400, 405, 411, 412, 415, 501)


def find_ways(client: S3Client, place: dict[str, Any], body: bytes, ways: Ways) -> tuple[Ways, tuple[str, ...]]:
    """Try what `Ways` begins with, on the object at `place`. Returns the ways, and a sentence for each lack.

    Raises ClientError where nothing can be written at all, and BotoCoreError.
    """
    compared_by, first = _find_comparison(client, place, body)
    found = client.head_object(**place)  # it has no tag yet, so a rule that it names is none of ours
    others = (*DENIED, *_MISSING, *UNSIGNED)
    untagged = _refusal(lambda: client.put_object_tagging(**place, Tagging=TAGGING), *others)
    gives_up_by, second = _find_giving_up(client, place, untagged, expires_anyway="Expiration" in found)
    if found.get("VersionId", "null") != "null" and not _old_versions_go(client, place):
        second.append(OLD_VERSIONS)
    return replace(ways, compared_by=compared_by, gives_up_by=gives_up_by), (*first, *second)


def _find_comparison(client: S3Client, place: dict[str, Any], body: bytes) -> tuple[str, list[str]]:
    view = memoryview(body)
    right = Checksums.of(view)
    damage = b"damaged"
    wrong = replace(right, whole=Checksums.of(memoryview(body + damage)).whole)
    late = "A checkpoint is compared with its own checksums again before a start uses it."

    def put(checksums: Checksums, way: str, damage: bytes = b"") -> Callable[[], object]:
        return lambda: put_view_in_parts(client, place, view, checksums, 1, way, damage=damage)

    if _is_refused(put(wrong, CRC64NVME)) and not _is_refused(put(right, CRC64NVME)):
        return CRC64NVME, []
    if _is_refused(put(right, MD5, damage)) and not _is_refused(put(right, MD5)):
        return MD5, [
            f"the endpoint does not compare the CRC64NVME of a whole object: it compares the MD5 of each part. {late}"
        ]
    put(right, UNCOMPARED)()
    return UNCOMPARED, [
        "the endpoint compares neither CRC64NVME nor Content-MD5: only TLS (an https:// endpoint) or the signature "
        f"protects a checkpoint on its way. {late} A damaged one costs the work back to the one before"
    ]


def _is_refused(request: Callable[[], object]) -> bool:
    return bool(_refusal(request, *UNSIGNED))


def _refusal(request: Callable[[], object], *also: str) -> str:
    """The code with which the endpoint refuses what is in a request, or one of `also`; "" if it does not refuse."""
    try:
        request()
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        if not refuses(error) and code not in also:
            raise
        return code
    return ""


def _find_giving_up(
    client: S3Client, place: dict[str, Any], untagged: str, *, expires_anyway: bool
) -> tuple[str, list[str]]:
    """A tag, if something expires what has it; else a deletion, if that is allowed.

    `untagged`: why the object at `place` has no tag. `expires_anyway`: a rule expired it before it had one.
    """
    needed = f"lifecycle rule that expires what is tagged {SUPERSEDED_TAG[0]}={SUPERSEDED_TAG[1]}"
    if untagged:
        lack = "objects may not be tagged" if untagged in DENIED else f"the endpoint knows no tags ({untagged})"
    else:
        rules = _rules_for(client, place)
        if rules is None:  # the machine's role on AWS may not read them, but an answer about an object names its rule
            if expires_anyway:
                return TAG, [_too_much("a lifecycle rule")]
            unknown = f"whether the bucket has a {needed} could not be seen: without one, every checkpoint stays"
            return TAG, [] if "Expiration" in client.head_object(**place) else [unknown]
        if rules:
            return TAG, [
                _too_much(f"the lifecycle rule {rule.get('ID', '')!r}") for rule in rules if not _tags_of(rule)
            ]
        lack = f"the bucket has no {needed}"
    if not _may_delete(client, place):
        return KEEP, [
            f"{lack}, and objects may not be deleted: every checkpoint stays. Allow s3:DeleteObject, or allow "
            f"s3:PutObjectTagging and add a {needed}; or delete old ones yourself after the run"
        ]
    return DELETE, [f"{lack}: the run deletes a superseded checkpoint itself, at once, as in a folder"]


def _too_much(rule: str) -> str:
    return (
        f"{rule} expires every checkpoint with time, the newest one, too: "
        f"let it expire only what is tagged {SUPERSEDED_TAG[0]}={SUPERSEDED_TAG[1]}"
    )


def _may_delete(client: S3Client, place: dict[str, Any]) -> bool:
    """Delete an object that does not exist: the answer tells only whether that is allowed."""
    nothing: dict[str, Any] = {"Bucket": place["Bucket"], "Key": place["Key"] + ".none"}

    def delete() -> None:  # a bucket with versions makes a marker of it, which goes, too
        if version := client.delete_object(**nothing).get("VersionId"):
            _refusal(lambda: client.delete_object(**nothing, VersionId=version), *DENIED, *_MISSING)

    return _refusal(delete, *DENIED, *_MISSING) in ("", *_MISSING)


def _rules_for(client: S3Client, place: dict[str, Any]) -> list[Any] | None:
    """The lifecycle rules that expire the tagged object; None if nobody may know."""
    rules = _read_rules(client, place["Bucket"])
    return None if rules is None else [rule for rule in rules if _expires(rule, place["Key"])]


def _old_versions_go(client: S3Client, place: dict[str, Any]) -> bool:
    """Whether a rule removes old versions. Where none may be read, an answer about the tagged object that names a rule
    has to do: who made that one has thought of the old versions, too."""
    rules = _read_rules(client, place["Bucket"])
    if rules is None:
        return "Expiration" in client.head_object(**place)
    return any("NoncurrentVersionExpiration" in rule and _covers(rule, place["Key"]) for rule in rules)


def _read_rules(client: S3Client, bucket: str) -> list[Any] | None:
    try:
        return list(client.get_bucket_lifecycle_configuration(Bucket=bucket).get("Rules", []))
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in DENIED:
            return None
        if code == "NoSuchLifecycleConfiguration" or refuses(error) or code == "404":
            return []
        raise


def _expires(rule: Any, key: str) -> bool:
    """Whether a rule expires an object that has our tag and no other."""
    return bool({"Days", "Date"} & rule.get("Expiration", {}).keys()) and _covers(rule, key)


def _covers(rule: Any, key: str) -> bool:
    """Whether a rule is on and holds for an object that has our tag and no other."""
    prefix = _filter_of(rule).get("Prefix", rule.get("Prefix", ""))
    is_ours = key.startswith(prefix) and all(tag in TAGGING["TagSet"] for tag in _tags_of(rule))
    return bool(is_ours and rule["Status"] == "Enabled")


def _filter_of(rule: Any) -> dict[str, Any]:
    whole: dict[str, Any] = rule.get("Filter", {})
    found: dict[str, Any] = whole.get("And", whole)
    return found


def _tags_of(rule: Any) -> list[Any]:
    found = _filter_of(rule)
    return [*found.get("Tags", []), *([found["Tag"]] if "Tag" in found else [])]
