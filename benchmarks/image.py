"""What the container image weighs, unpacked and compressed (gzip, as a registry keeps it), which package how much, and
which layer: a machine pulls three layers at a time, so the largest one decides.

Reads the layers as the Docker engine saves them. Says nothing about how long a pull takes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.limits import Limit
from benchmarks.machine import write

CHUNK_BYTES = 1 << 20
LIMIT_GB = 3.6  # compressed, so that a machine pulls it in a minute or two
LIMIT_SHARE = 0.4  # of the largest layer
PACKAGE = re.compile(r"opt/venv/lib/python[0-9.]+/site-packages/((?:nvidia/(?:cu[0-9]+/lib/)?)?[A-Za-z0-9_]+)")


@dataclass
class Weight:
    """Bytes of one package, of a part of the system, or of a layer."""

    unpacked: int = 0
    compressed: int = 0
    gzip: Any = field(default_factory=lambda: zlib.compressobj(6, wbits=31))  # the level that Docker pushes with

    def add(self, chunk: bytes) -> None:
        self.unpacked += len(chunk)
        self.compressed += len(self.gzip.compress(chunk))

    def end(self) -> None:
        self.compressed += len(self.gzip.flush())


def owner(path: str) -> str:
    """Who a file of the image belongs to."""
    if found := PACKAGE.match(path):
        return found[1]
    if path.startswith("opt/venv"):
        return "the rest of the virtual environment"
    return "trainer" if path.startswith("app") else "Debian, Python, g++"


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def weigh(image: str) -> tuple[dict[str, Weight], list[Weight]]:
    """Every file of every layer, once, in one pass over what `docker save` streams: by owner, and by layer."""
    weights: defaultdict[str, Weight] = defaultdict(Weight)
    layers = list[Weight]()
    with subprocess.Popen(["docker", "image", "save", image], stdout=subprocess.PIPE) as save:
        assert save.stdout is not None
        with tarfile.open(fileobj=save.stdout, mode="r|") as outer:
            for entry in outer:
                content = outer.extractfile(entry) if entry.isfile() else None
                if content is None or not (entry.name.endswith("layer.tar") or "blobs/sha256" in entry.name):
                    continue
                try:
                    with tarfile.open(fileobj=content, mode="r|*") as layer:
                        layers.append(Weight())
                        for member in layer:
                            if member.isfile() and (file := layer.extractfile(member)):
                                for chunk in chunks(file):
                                    weights[owner(member.name)].add(chunk)
                                    layers[-1].add(chunk)
                except tarfile.ReadError:  # a config or an index among the blobs
                    continue
    if save.returncode:
        sys.exit(f"error: docker image save {image} failed: build it with `make image`, or name another: IMAGE=…")
    for weight in (*weights.values(), *layers):
        weight.end()
    return weights, layers


def main() -> None:
    weights, layers = weigh(os.environ.get("IMAGE", "resnet-spot"))
    rows = sorted(weights.items(), key=lambda item: -item[1].compressed)
    total = sum(weight.compressed for weight in weights.values()) / 1e9
    unpacked = sum(weight.unpacked for weight in weights.values()) / 1e9
    sizes = sorted((layer.compressed / 1e6 for layer in layers), reverse=True)
    limits = [
        Limit("compressed image, GB", total, most=LIMIT_GB),
        Limit("share of the largest layer", sizes[0] / sum(sizes), most=LIMIT_SHARE),
    ]
    print(f"{'':40} {'unpacked MB':>12} {'gzip MB':>9}")
    for name, weight in rows[:30]:
        print(f"{name:40} {weight.unpacked / 1e6:12.0f} {weight.compressed / 1e6:9.0f}")
    print(f"{'all':40} {unpacked * 1e3:12.0f} {total * 1e3:9.0f}")
    print("layers, gzip MB:", *(f"{size:.0f}" for size in sizes if size >= 1))
    print(*limits, sep="\n")
    results = {
        "unpacked_gb": round(unpacked, 2),
        "compressed_gb": round(total, 2),
        "limits": [limit.row() for limit in limits],
        "layers_megabytes": [round(size, 1) for size in sizes if size >= 1],
        "megabytes": {
            name: {"unpacked": round(weight.unpacked / 1e6, 1), "compressed": round(weight.compressed / 1e6, 1)}
            for name, weight in rows
            if weight.compressed >= 1e6
        },
    }
    print(f"written to {write('image', results)}")


if __name__ == "__main__":
    main()
