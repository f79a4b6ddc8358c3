"""How fast prepared data comes from a store: `stage`, checksums included, against plain downloads without any.

make bench-stage        nginx serves the shards on 127.0.0.1 (apt install nginx-light), once as fast as it can, and
once with 16 connections sharing 10 Gb/s. Both sides of the copy lie in memory where there is /dev/shm: no disk is
measured. Seconds of the processor are those of the client alone.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from benchmarks.machine import write
from trainer.contract import dataset_key
from trainer.data.format import INDEX, Copies, Index, Shard, Size, SplitIndex
from trainer.data.stage import stage

ROUNDS = 7  # interleaved
SHARDS, SHARD_BYTES = 16, 128 << 20
STREAMS = 16
TEN_GIGABIT = 1.25e9  # bytes per second
FULL_SET_BYTES = (22e9, 40e9)
WANTED = {"train": frozenset({(256, 256)}), "val": frozenset({(232, 232)})}
LIMIT = 0.8  # of a plain parallel download's speed, at least
BUCKET = "bucket"
PLAIN = ("one curl", "a curl per file")

Arm = Callable[[str, Path], object]


def make_shards(root: Path) -> Index:
    """A prepared folder in a bucket whose shards are noise: nothing is read of them but their bytes."""
    folder = root / BUCKET / dataset_key("noise", "v1", "")
    folder.mkdir(parents=True)
    shards = []
    for number in range(SHARDS):
        body = os.urandom(SHARD_BYTES)
        sums = zlib.crc32(body), hashlib.sha256(body).hexdigest()
        shards.append(Shard(f"train-256px-{number:05d}.arrow", 1, len(body), *sums))
        (folder / shards[-1].file).write_bytes(body)
    splits = {
        "train": SplitIndex(SHARDS - 1, (Size(256, 90, tuple(shards[1:])),)),
        "val": SplitIndex(1, (Size(320, 90, tuple(shards[:1])),)),
    }
    index = Index("noise", "v1", ("noise",), splits, "")
    (folder / INDEX).write_text(index.to_json())
    return index


@contextmanager
def nginx(root: Path, bytes_per_second: float = 0) -> Iterator[str]:
    """The endpoint of a server of the files below `root`; the limit is shared by STREAMS connections."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        sys.exit("error: no nginx here: apt install nginx-light")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Path(tempfile.mkdtemp(prefix="nginx-"))
    limit = f"limit_rate {int(bytes_per_second / STREAMS)};" if bytes_per_second else ""
    temporary = " ".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} worker_processes auto; daemon off; pid {home}/pid; "
        f"error_log {home}/error.log; events {{ worker_connections 256; }} "
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; {temporary} {limit} "
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    server = subprocess.Popen([binary, "-e", home / "error.log", "-c", home / "nginx.conf"])
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 0.1).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            sys.exit(f"error: nginx has not started: {(home / 'error.log').read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(home)


def arms(index: Index) -> dict[str, Arm]:
    """What is compared: each fetches all shards from an endpoint into an empty folder."""
    prefix = dataset_key(index.name, index.version, "")
    files = [shard.file for shard in index.shards()]

    def ours(endpoint: str, folder: Path) -> None:
        stage(f"s3://{BUCKET}/{prefix}", folder, Copies(), WANTED)

    def one_curl(endpoint: str, folder: Path) -> None:
        urls = [argument for file in files for argument in ("-o", folder / file, f"{endpoint}/{BUCKET}/{prefix}{file}")]
        subprocess.run(
            ["curl", "--parallel", "--parallel-max", str(STREAMS), *urls], check=True, stderr=subprocess.DEVNULL
        )

    def curls(endpoint: str, folder: Path) -> None:
        def one(file: str) -> None:
            subprocess.run(["curl", "-sS", "-o", folder / file, f"{endpoint}/{BUCKET}/{prefix}{file}"], check=True)

        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(one, files))

    def boto(endpoint: str, folder: Path) -> None:
        client = boto3.session.Session().client("s3")
        for file in files:
            client.download_file(BUCKET, prefix + file, str(folder / file))

    return {"stage": ours, PLAIN[0]: one_curl, PLAIN[1]: curls, "boto3 download_file": boto}


def measure(arm: Arm, endpoint: str, folder: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor (this process and its children that have ended)."""

    def processor() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    folder.mkdir()
    clock, before = time.perf_counter(), processor()
    arm(endpoint, folder)
    seconds = time.perf_counter() - clock, processor() - before
    shutil.rmtree(folder)
    return seconds


def compare(index: Index, root: Path, bytes_per_second: float) -> dict[str, Any]:
    """Medians of every arm, and of the ratios to `stage` in the same round."""
    total = sum(shard.bytes for shard in index.shards())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms(index)}
    with nginx(root, bytes_per_second) as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        for number in range(ROUNDS + 1):
            for name, arm in arms(index).items():
                seconds = measure(arm, endpoint, root / "copy")
                if number:  # the first round warms up
                    found[name].append(seconds)
    results: dict[str, Any] = {"bytes": total, "limit_bytes_per_second": bytes_per_second or None}
    for name, rounds in found.items():
        results[name] = {
            "bytes_per_second": round(total / statistics.median(wall for wall, _ in rounds)),
            "wall_seconds": [round(wall, 3) for wall, _ in rounds],
            "processor_seconds_per_gb": round(statistics.median(cpu for _, cpu in rounds) / total * 1e9, 3),
            "stage_speed_over_this": round(
                statistics.median(wall / ours for (wall, _), (ours, _) in zip(rounds, found["stage"], strict=True)), 3
            ),
        }
    results["stage_speed_over_fastest_plain"] = min(results[name]["stage_speed_over_this"] for name in PLAIN)
    return results


def main() -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        if shutil.disk_usage(folder).free < 3 * SHARDS * SHARD_BYTES:
            sys.exit(f"error: {folder} has no room for {3 * SHARDS * SHARD_BYTES / 1e9:.1f} GB: free some")
        index = make_shards(Path(folder))
        results = {
            name: compare(index, Path(folder), limit) for name, limit in (("unlimited", 0.0), ("10 Gb/s", TEN_GIGABIT))
        }
    rate = results["10 Gb/s"]["stage"]["bytes_per_second"]
    results["full_set_seconds_at_10_gigabit"] = {f"{size / 1e9:.0f} GB": round(size / rate) for size in FULL_SET_BYTES}
    for name in ("unlimited", "10 Gb/s"):
        print(f"\n{name:22} GB/s   CPU s/GB  stage is faster by")
        for arm in arms(index):
            one = results[name][arm]
            print(f"{arm:22} {one['bytes_per_second'] / 1e9:5.2f}  {one['processor_seconds_per_gb']:8.2f}"
                  f"  {one['stage_speed_over_this']:8.2f} x")  # fmt: skip
        print(f"of the faster plain download: {results[name]['stage_speed_over_fastest_plain']:.2f} (must be {LIMIT})")
    print(f"\nthe full set at 10 Gb/s: {results['full_set_seconds_at_10_gigabit']}")
    print(f"written to {write('stage', results).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
