"""What a checkpoint's manifest must be like, whoever wrote it: its values are checked before anything uses them.

No torch here, since the uploader reads manifests, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer.contract import Lease, parse_manifest_key
from trainer.store.checksum import Checksums
from trainer.values import SHA256, as_number, as_object, as_text, as_time, as_whole, check_known, show

Manifest = Mapping[str, Any]


def data_key(manifest: str) -> str:
    """The key of the object of a manifest."""
    return manifest.replace("/manifest/", "/data/").removesuffix(".json") + ".safetensors"


def check_manifest(manifest: Manifest, run_id: str, key: str) -> None:
    """Raises ValueError where it is not what a trainer of this run writes under this key."""
    told = (as_text("run_id", check_known(manifest, "run_id")), *(_count_of(manifest, n) for n in ("attempt", "step")))
    if told != (run_id, *(parse_manifest_key(key) or ())):
        raise ValueError(f"it is the manifest of run {show(told[0])}, attempt {told[1]}, step {told[2]}")
    as_time("time", check_known(manifest, "time"))
    data = as_object("data", check_known(manifest, "data"))
    for name in data:
        as_text(f"data.{name}", data[name])
    config = as_object("config", check_known(manifest, "config"))
    for name in config.keys() & {"model", "optim"}:
        as_object(f"config.{name}", config[name])
    _check_counters(as_object("counters", check_known(manifest, "counters")))
    stored = as_object("object", check_known(manifest, "object"))
    if stored.get("key") != data_key(key):
        raise ValueError(f"its object is {show(stored.get('key'))}, and not {data_key(key)}")
    Checksums.from_json(stored)
    if parent := as_object("parent", manifest.get("parent", {})):
        as_text("parent.manifest", check_known(parent, "manifest"))
        as_text("parent.sha256", check_known(parent, "sha256"), f"|{SHA256}")
    if "rewind" in manifest:
        rewind = as_object("rewind", manifest["rewind"])
        as_text("rewind.best", check_known(rewind, "best"))
        _count_of(rewind, "swept")


def _check_counters(counters: Mapping[str, Any]) -> None:
    """What a resume takes over beside the tensors. Older versions wrote fewer of them."""
    for name in counters.keys() & {"step", "validated", "swa_step", "swa_count"}:
        _count_of(counters, name)
    if "seconds" in counters:
        as_number("seconds", counters["seconds"])
    for name in counters.keys() & {"scores", "scaler", "best"}:
        as_object(name, counters[name])
    for name, value in counters.get("scaler", {}).items():
        as_number(f"scaler.{name}", value)
    if best := counters.get("best"):
        as_number("best.top1", check_known(best, "top1"))
        _count_of(best, "step")
        as_text("best.weights", check_known(best, "weights"), "model|ema|swa")


def _count_of(value: Mapping[str, Any], name: str) -> int:
    return as_whole(name, check_known(value, name))


def is_best(manifest: Manifest) -> bool:
    """Whether the manifest says that its checkpoint is the best so far."""
    best = manifest.get("counters", {}).get("best", {})
    return bool(best) and best["step"] == manifest["step"]


def newest_manifest(lease: Lease | None, manifests: Iterable[str]) -> str:
    """The key of the newest checkpoint, from the lease and the keys of all manifests; "" where there is none.

    Usually the lease names it. If the owner died after its manifest and before its lease, or if HEAD.json is missing or
    was put back, a manifest of the owner or of a later attempt is newer. Manifests of attempts before the owner do not
    count: such an attempt may have lost the run when it wrote them.
    """
    floor = (lease.attempt, 0) if lease else (0, 0)
    newest = parse_manifest_key(lease.newest) if lease and lease.newest else None
    found = {order: key for key in manifests if (order := parse_manifest_key(key)) and order >= floor}
    if found and (newest is None or max(found) > newest):
        return found[max(found)]
    return lease.newest if lease else ""
