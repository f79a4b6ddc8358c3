"""Writes objects whose bytes follow from what they are made of, under names that nobody had before.

On AWS a preparation may create datasets and overwrite none.
"""

from __future__ import annotations

from trainer.contract import UserError
from trainer.store import DENIED, ConflictError, ObjectStore, StoreError, may_pass


def write_new(store: ObjectStore, key: str, body: bytes) -> None:
    """Create the object. One that is there and has the same bytes is as good: another call has made it.

    One with other bytes is damaged, and is written over where that is allowed. Where it is not, raises UserError: then
    somebody else has written it. Raises StoreError for a fault of the store.
    """
    differs = False
    try:
        store.create(key, body)
    except ConflictError:
        if store.get(key) == body:
            return
        differs = True
    except StoreError as error:
        if not error.is_refusal or may_pass(error):
            raise
    else:
        return
    try:
        store.put(key, body)  # over what is damaged, or at an endpoint that does not know the condition
    except StoreError as error:
        if not differs or error.code not in DENIED:
            raise
        raise UserError(
            f"{store.describe(key)} holds other bytes than those that were just made for it, and it may not be "
            "overwritten: find out who wrote it, delete it, and run the same command again"
        ) from error
