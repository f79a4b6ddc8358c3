"""What the container image weighs, unpacked and compressed (gzip, as a registry keeps it), and which package how much.

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
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.limits import Limit
from benchmarks.machine import write

CHUNK_BYTES = 1 << 20
LIMIT_GB = 4.0  # compressed, so that a machine pulls it in a minute or two
PACKAGE = re.compile(r"opt/venv/lib/python[0-9.]+/site-packages/((?:nvidia/(?:cu[0-9]+/lib/)?)?[A-Za-z0-9_]+)")


@dataclass
class Weight:
    """Bytes of one package, or of a part of the system."""

    unpacked: int = 0
    compressed: int = 0
    gzip: Any = field(default_factory=lambda: zlib.compressobj(6, wbits=31))  # the level that Docker pushes with

    def add(self, file: IO[bytes]) -> None:
        while chunk := file.read(CHUNK_BYTES):
            self.unpacked += len(chunk)
            self.compressed += len(self.gzip.compress(chunk))


def owner(path: str) -> str:
    """Who a file of the image belongs to."""
    if found := PACKAGE.match(path):
        return found[1]
    if path.startswith("opt/venv"):
        return "the rest of the virtual environment"
    return "trainer" if path.startswith("app") else "Debian, Python, g++"


def weigh(image: str) -> dict[str, Weight]:
    """Every file of every layer, once, in one pass over what `docker save` streams."""
    weights: defaultdict[str, Weight] = defaultdict(Weight)
    with subprocess.Popen(["docker", "image", "save", image], stdout=subprocess.PIPE) as save:
        assert save.stdout is not None
        with tarfile.open(fileobj=save.stdout, mode="r|") as outer:
            for entry in outer:
                content = outer.extractfile(entry) if entry.isfile() else None
                if content is None or not (entry.name.endswith("layer.tar") or "blobs/sha256" in entry.name):
                    continue
                try:
                    with tarfile.open(fileobj=content, mode="r|*") as layer:
                        for member in layer:
                            if member.isfile() and (file := layer.extractfile(member)):
                                weights[owner(member.name)].add(file)
                except tarfile.ReadError:  # a config or an index among the blobs
                    continue
    if save.returncode:
        sys.exit(f"error: docker image save {image} failed: build it with `make image`, or name another: IMAGE=…")
    for weight in weights.values():
        weight.compressed += len(weight.gzip.flush())
    return weights


def main() -> None:
    weights = weigh(os.environ.get("IMAGE", "resnet-spot"))
    rows = sorted(weights.items(), key=lambda item: -item[1].compressed)
    total = sum(weight.compressed for weight in weights.values()) / 1e9
    unpacked = sum(weight.unpacked for weight in weights.values()) / 1e9
    limit = Limit("compressed image, GB", total, most=LIMIT_GB)
    print(f"{'':40} {'unpacked MB':>12} {'gzip MB':>9}")
    for name, weight in rows[:30]:
        print(f"{name:40} {weight.unpacked / 1e6:12.0f} {weight.compressed / 1e6:9.0f}")
    print(f"{'all':40} {unpacked * 1e3:12.0f} {total * 1e3:9.0f}\n{limit}")
    results = {
        "unpacked_gb": round(unpacked, 2),
        "compressed_gb": round(total, 2),
        "limits": [limit.row()],
        "megabytes": {
            name: {"unpacked": round(weight.unpacked / 1e6, 1), "compressed": round(weight.compressed / 1e6, 1)}
            for name, weight in rows
            if weight.compressed >= 1e6
        },
    }
    print(f"written to {write('image', results)}")


if __name__ == "__main__":
    main()
