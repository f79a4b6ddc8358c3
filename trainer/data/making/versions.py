"""Says what else is prepared under the name of a source, so that nobody takes one version for another."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.contract import UserError, dataset_key
from trainer.data.format import INDEX, Copies, Index, Origin, SplitIndex
from trainer.store import ObjectStore
from trainer.text import say, show_bytes

VERSIONS_NAMED = 3


def say_others(store: ObjectStore, name: str, prefix: str, copies: Copies, origin: Origin) -> list[Index]:
    """The versions of the same name and options that were made from other contents, or nobody knows from what.

    Those of the same images in other sizes are said, too.
    """
    _say_other_sizes(store, name, prefix, origin)
    others = [
        index
        for index in _indexes(store, prefix.rpartition("-")[0] + "-")
        if (index.source is None or index.source.digest != origin.digest)
        and all(copies.sides(split) == tuple(s.short_side for s in index.splits[split].sizes) for split in index.splits)
    ]
    for index in others[-VERSIONS_NAMED:]:
        where = store.describe(dataset_key(name, index.version, "").rstrip("/"))
        if index.source is None:
            say(
                f"{name}: {where} is kept, but an older version of this program made it and did not record from what: "
                "so it is prepared again. If the images are the same, the result is the same"
            )
        else:
            say(f"{name}: {where} is kept. It was made from other contents: {_show(index.source)}; now {_show(origin)}")
    if len(others) > VERSIONS_NAMED:
        say(f"{name}: and {len(others) - VERSIONS_NAMED} more versions are kept")
    return others


def _say_other_sizes(store: ObjectStore, name: str, prefix: str, origin: Origin) -> None:
    """Say which versions hold the same images with other short sides, or at another quality."""
    version = prefix.rpartition("/")[2]
    family = version.rpartition("-")[0]
    others = [
        index
        for index in _indexes(store, prefix.removesuffix(version))
        if index.source == origin and index.version.rpartition("-")[0] != family
    ]
    for index in others[-VERSIONS_NAMED:]:
        where = store.describe(dataset_key(name, index.version, "").rstrip("/"))
        sizes = ", ".join(f"{split} {_sides(content)} px" for split, content in index.splits.items())
        say(f"{name}: {where} is kept. It has the same images in other sizes: {sizes}. Its runs go on with it")


def _sides(content: SplitIndex) -> str:
    return " ".join(str(size.short_side) for size in content.sizes)


def say_same(others: Iterable[Index], index: Index) -> None:
    """Say which of the others holds the same bytes."""
    for other in others:
        if other.fingerprint == index.fingerprint:
            say(f"  the same bytes as version {other.version}: runs that began on that continue on this")


def _indexes(store: ObjectStore, prefix: str) -> list[Index]:
    """Those that can be read, of all versions whose key begins so."""
    found = []
    for info in store.list(prefix):
        if info.key.endswith(f"/{INDEX}"):
            try:
                found.append(Index.from_json(store.get(info.key), store.describe(info.key)))
            except UserError as error:
                say(f"{error}")
    return found


def _show(origin: Origin) -> str:
    commit = f", commit {origin.commit[:12]}" if origin.commit else ""
    return f"{origin.files:,} files, {show_bytes(origin.bytes)}{commit}"
