"""What every kind of store is asked at a start, in `ObjectStore.probe`. What only S3 is asked is in `s3_probe`."""

from __future__ import annotations

from functools import partial

from trainer.contract import UserError
from trainer.store import ConflictError, ObjectStore, StoreError
from trainer.store.creation import write_new

PROBE = b"can write, read and list\n"  # always the same, since two runs may probe at the same time
MISWRITTEN = "Miswritten"  # the code of the StoreError if something else arrived than what was sent
_NO_ETAG = '"00000000000000000000000000000000"'


def probe_store(store: ObjectStore, key: str, *, creates: bool) -> None:
    """Write, read and list a tiny object. If `creates`, it may be there already. Raises StoreError and UserError."""
    if creates:
        write_new(store, key, PROBE)
    else:
        store.put(key, PROBE)
    if store.read_range(key, 4, len(PROBE) - 4) != PROBE[4:]:
        raise StoreError(f"probe {store.describe(key)}: what was just written is not there", MISWRITTEN)
    if key not in (info.key for info in store.list(key)):
        raise StoreError(f"probe {store.describe(key)}: what was just written is not listed")


def probe_conditions(store: ObjectStore, key: str) -> None:
    """A condition that does not hold must be refused, and one that holds must not: else a UserError is raised.

    The UserError has no cause: what the store said would not pass, however long somebody waits.
    """
    other = b"written in spite of a condition\n"
    for condition, write in {
        "If-None-Match: *": partial(store.create, key, other),
        "If-Match": partial(store.replace, key, other, _NO_ETAG),
    }.items():
        try:
            write()
        except ConflictError:
            continue
        except StoreError as error:
            if not error.is_refusal:
                raise
            raise _unfenced(store, f"it refuses every write with {condition} ({error})") from None
        raise _unfenced(store, f"it ignores {condition}, and wrote over an object")
    refusal = ""
    for _ in range(5):  # another start may write the same object at the same time
        try:
            store.replace(key, PROBE, store.get_with_etag(key)[1])
        except ConflictError as error:
            refusal = str(error)
            continue
        return
    raise _unfenced(store, f"it refuses If-Match even with the etag that it gave ({refusal})")


def _unfenced(store: ObjectStore, lack: str) -> UserError:
    return UserError(
        f"the store {store.uri} cannot be used: {lack}; a run needs writes with a condition that is obeyed, else two "
        "machines could both own it and train it to the end: use a folder, or an S3 endpoint that obeys "
        "If-None-Match and If-Match (docs/guarantees.md names some)"
    )
