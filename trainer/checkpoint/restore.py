"""Reads checkpoints: finds them, verifies their bytes, and copies them into the tensors.

A store that refuses or fails never means "no checkpoint": that takes a missing HEAD.json and an empty list.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.layout import CHECKPOINT_FORMAT, DTYPES, NHWC, in_memory_order
from trainer.checkpoint.line import Checkpoints, Lineage, list_manifests, read_line
from trainer.contract import Lease, UserError, unseal
from trainer.manifest import Manifest, check_manifest
from trainer.store import NotFoundError, ObjectStore, StoreError
from trainer.store.checksum import Checksums, crc64
from trainer.text import show_sha256
from trainer.values import as_list, as_object, as_text, as_whole, parse_object, show

READERS = 4  # parts that are read and checked at the same time
DAMAGES = ("FlexibleChecksumError", "InvalidRange")  # the codes of a store for damaged bytes
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
# What decides whether a checkpoint has tensors of a kind, beside the model's own: by how their names begin.
DECIDED_BY = {
    "ema": "--average.half-life-steps or --regularize.ema-decay", "swa": "--average.late-epochs",
    **dict.fromkeys(("momentum", "exp_avg", "exp_avg_sq", "optimizer"), "--optim.name or --optim.freeze-stages"),
}  # fmt: skip
DTYPE_NAMES = "|".join(TORCH_DTYPES)


class DamagedError(Exception):
    """A checkpoint's bytes are not those that were saved."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds beside its tensors."""

    key: str
    manifest: Manifest
    sha256: str = ""  # of the manifest
    is_vouched: bool = True  # see Digests.vouch

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def counters(self) -> Mapping[str, Any]:
        counters: Mapping[str, Any] = self.manifest["counters"]
        return counters


class Digests:
    """The SHA-256 of manifests as HEAD.json and newer manifests know them: each manifest knows that of the one before.

    Manifests must be read from the newest to the oldest.
    """

    def __init__(self, lease: Lease | None) -> None:
        self.known = dict(lease.sha256) if lease is not None else {}
        self.is_empty = not self.known

    def vouch(self, key: str, manifest: Manifest) -> bool:
        """Whether HEAD.json or a newer manifest knows this one, or an older version wrote it, without any SHA-256."""
        return key in self.known or (self.is_empty and not manifest["object"].get("sha256"))

    def check(self, key: str, sha256: str, manifest: Manifest) -> None:
        """Raises DamagedError if the manifest of this key is known to be another one."""
        if (known := self.known.get(key)) is None:
            return
        if known != sha256:
            raise DamagedError(
                f"its manifest has {show_sha256(sha256)}, and HEAD.json or a newer one says {known[:16]}"
            )
        if (parent := manifest.get("parent")) and parent["sha256"]:
            self.known.setdefault(parent["manifest"], parent["sha256"])


def read_manifest(store: ObjectStore, run_id: str, key: str, digests: Digests | None = None) -> Manifest:
    """Raises DamagedError when it is not the one that was stored under this key, UserError for a newer format."""
    return read_digest(store, run_id, key, digests)[0]


def read_digest(store: ObjectStore, run_id: str, key: str, digests: Digests | None) -> tuple[Manifest, str]:
    """The manifest and its SHA-256. Raises as `read_manifest`."""
    try:
        manifest = unseal(body := store.get(key))
    except NotFoundError as error:
        raise DamagedError(f"it is missing ({error})") from error
    except ValueError as error:
        raise DamagedError(f"the manifest is damaged: {error}") from error
    if manifest.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"{store.describe(key)} has format {manifest.get('format')}, and this trainer reads {CHECKPOINT_FORMAT}: "
            "use the version that wrote it, or start a new run (RUN=another-name)"
        )
    try:
        check_manifest(manifest, run_id, key)
    except ValueError as error:
        raise DamagedError(str(error)) from error
    sha256 = hashlib.sha256(body).hexdigest()
    if digests is not None:
        digests.check(key, sha256, manifest)
    return manifest, sha256


def read_known(store: ObjectStore, found: Checkpoints, key: str) -> tuple[Manifest, str, str]:
    """The manifest, its SHA-256, and both as text, with the doubt where nothing vouches. Raises as `read_manifest`.

    All newer manifests are read before, until one of them knows this one.
    """
    digests = Digests(found.lease)
    for newer in found.keys[: found.keys.index(key)]:
        if key in digests.known:
            break
        with suppress(DamagedError, UserError):
            read_digest(store, found.run_id, newer, digests)
    manifest, sha256 = read_digest(store, found.run_id, key, digests)
    return manifest, sha256, show_digest(sha256, is_vouched=digests.vouch(key, manifest))


def show_digest(sha256: str, *, is_vouched: bool) -> str:
    """The SHA-256 of a manifest, and what to do with it."""
    doubt = "" if is_vouched else ", which neither HEAD.json nor a newer one has"
    return f"{show_sha256(sha256)}{doubt}: compare it with the log"


def read_object(store: ObjectStore, manifest: Manifest, progress: Callable[[], object] = lambda: None) -> memoryview:
    """The verified bytes of a checkpoint; `progress` is called after each part, from several threads.

    Raises DamagedError, and StoreError if the store fails.
    """
    key, expected = manifest["object"]["key"], Checksums.from_json(manifest["object"])
    try:
        size = store.info(key).bytes
    except NotFoundError as error:
        raise DamagedError(f"its object is missing ({error})") from error
    if size != expected.bytes:
        raise DamagedError(f"its object has {size} bytes instead of {expected.bytes}")
    try:
        body = memoryview(mmap.mmap(-1, size))
    except (OSError, ValueError) as error:
        raise DamagedError(f"no memory of the {size} bytes of its object can be had: {error}") from error

    def read_part(number: int) -> memoryview:
        start = number * expected.part_bytes
        part = body[start : start + expected.part_bytes]
        for is_last in (False, True):  # a bit may have flipped on the way: read it once more
            try:
                store.read_into(key, part, start)
            except NotFoundError as error:
                raise DamagedError(f"its object is missing ({error})") from error
            except StoreError as error:
                if error.code not in DAMAGES:
                    raise
                if is_last:
                    raise DamagedError(str(error)) from error
            else:
                progress()
                if crc64(part) == expected.parts[number]:
                    return part
        raise DamagedError(f"the checksum of part {number} of its object is wrong")

    sha256 = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for part in pool.map(read_part, range(len(expected.parts))):
            if expected.sha256:  # while the next parts are read
                sha256.update(part)
    if expected.sha256 and (found := sha256.hexdigest()) != expected.sha256:
        raise DamagedError(f"its object has {show_sha256(found)}, and its manifest says {expected.sha256[:16]}")
    return body


def read_header(body: memoryview) -> tuple[int, dict[str, Any], set[str]]:
    """How many bytes the header has, the entry of each tensor, and the names of those whose channels are last.

    Raises ValueError where the entries do not tell where each byte of the file belongs.
    """
    size, end = int.from_bytes(body[:8], "little"), 0
    header = parse_object(bytes(body[8 : 8 + size]))
    about = as_object("__metadata__", header.pop("__metadata__", {}))
    nhwc = set(as_text(NHWC, about.get(NHWC, "")).split())
    for name, entry in header.items():
        kind = TORCH_DTYPES[as_text(f"dtype of {name}", as_object(name, entry).get("dtype"), DTYPE_NAMES)]
        shape = [as_whole(f"shape of {name}", one) for one in as_list(f"shape of {name}", entry.get("shape"))]
        start, end = end, end + math.prod(shape) * kind.itemsize
        if entry.get("data_offsets") != [start, end] or (name in nhwc and len(shape) != 4):
            raise ValueError(f"{show(name)} of shape {shape} is not at {start} to {end}")
    if 8 + size + end != len(body):
        raise ValueError(f"the file has {len(body)} bytes, and its header tells of {8 + size + end}")
    return size, header, nhwc


def tensors_of(body: memoryview) -> dict[str, Tensor]:
    """The tensors of a checkpoint, over its bytes, in their logical shapes (N, C, H, W). Raises DamagedError."""
    try:
        return _views(body, *read_header(body))
    except (ValueError, RuntimeError) as error:  # torch refuses odd shapes
        raise DamagedError(f"its header is none: {error}") from error


def _views(body: memoryview, size: int, header: Mapping[str, Any], nhwc: Collection[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for dtype, group in groupby(header.items(), key=lambda item: item[1]["dtype"]):  # those of one type lie together
        entries = dict(group)
        kind, offsets = TORCH_DTYPES[dtype], [entry["data_offsets"] for entry in entries.values()]
        sizes = [(end - start) // kind.itemsize for start, end in offsets]
        flat = torch.frombuffer(body, dtype=kind, count=sum(sizes), offset=8 + size + offsets[0][0])
        for (name, entry), piece in zip(entries.items(), torch.split(flat, sizes), strict=True):
            tensor = piece.view(entry["shape"])
            found[name] = tensor.permute(0, 3, 1, 2) if name in nhwc else tensor
    return found


@torch.no_grad()
def load(found: Mapping[str, Tensor], tensors: Mapping[str, Tensor], key: str) -> None:
    """Copy what was found into the tensors. Raises UserError before any change if it has others."""
    names = sorted(found.keys() | tensors.keys())
    odd = [name for name in names if not alike(found.get(name), tensors.get(name))]
    if odd:
        first = [f"{n}: {describe_tensor(found.get(n))} there, {describe_tensor(tensors.get(n))} here" for n in odd[:3]]
        options = dict.fromkeys(DECIDED_BY.get(name.partition(".")[0], "") for name in odd)
        other = "is of another model" if "" in options else f"was saved with another {' and '.join(options)}"
        raise UserError(
            f"checkpoint {key} {other}: {'; '.join(first)}{'; …' * (len(odd) > 3)}: "
            "use the config that it was trained with, or start a new run (RUN=another-name)"
        )
    into = {name: in_memory_order(tensor) for name, tensor in tensors.items()}
    torch._foreach_copy_(
        list(into.values()),
        [found[name] if into[name] is tensors[name] else found[name].permute(0, 2, 3, 1) for name in into],
    )


def alike(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape


def describe_tensor(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{DTYPES[tensor.dtype]} {list(tensor.shape)}"


def restore(
    store: ObjectStore, run_id: str, tensors: Mapping[str, Tensor], progress: Callable[[], object] = lambda: None
) -> tuple[Restored | None, list[str]]:
    """Load the newest checkpoint whose bytes verify. Returns it, and the reasons why newer ones were skipped.

    The tensors are changed only after all bytes are verified. None means that the run has no checkpoint yet. Raises
    UserError if none of its checkpoints can be used or if they are of another model, StoreError if the store fails.
    """
    lease, candidates = list_manifests(store, run_id)
    digests = Digests(lease)
    skipped: list[str] = []
    line: Lineage | None = None
    for key in candidates:
        if skipped:
            line = line or read_line(store, run_id, candidates[0])
            if not line.has(key):  # a rewind has left it
                continue
        try:
            manifest, sha256 = read_digest(store, run_id, key, digests)
            found = tensors_of(read_object(store, manifest, progress))
        except DamagedError as error:
            skipped.append(f"{store.describe(key)}: {error}")
        else:
            load(found, tensors, key)
            return Restored(key, manifest, sha256, digests.vouch(key, manifest)), skipped
    if candidates:
        raise UserError(
            f"run {run_id!r} has checkpoints, but none can be used ({'; '.join(skipped)}): restore the objects, "
            "start a new run (RUN=another-name), or see what else there is with `make checkpoints`"
        )
    return None, skipped
