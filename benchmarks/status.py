"""How long `make runs` takes for 200 runs, and `make status` for a run of 100,000 rows, against the emulated S3.

make bench-status

Each command is timed in a process of its own, as the user starts it, and once more inside this one, without the start
of Python. Beside it stands how long the emulator takes to answer as many plain requests, one after the other and at
once: on the same cores it takes longer for a request than S3 does, and cannot answer two at once. So `make runs` is
measured once more behind a server that gives the same answers, each after 30 ms and many at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.limits import Limit
from benchmarks.logs import emulator
from benchmarks.machine import RESULTS, write
from benchmarks.replayed import LATENCY_SECONDS, Replayed
from infra.run.spec import Spec
from infra.run.spend import Machine, Spend
from tests.emulator.aws import Aws
from tests.infra.deployed import Deployed, client, deploy
from tests.infra.operator import operate
from trainer.contract import (
    Lease,
    attempt_key,
    checkpoint_key,
    manifest_key,
    metrics_key,
    run_key,
)

ROOT = Path(__file__).parents[1]
RUNS, DONE, FAILED = 200, 170, 15  # the others were stopped, and the newest runs
ROWS, ROWS_PER_SEGMENT, SAMPLES_PER_SEGMENT = 100_000, 30, 6  # at a step a second
ROUNDS = 5
LIMIT_SECONDS = 2.0
LONG_RUN = "rn50-long"


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def segments(run_id: str, rows: int) -> dict[str, bytes]:
    """Metrics, a row each step, validated each 5,000."""
    found = {}
    for first in range(0, rows, ROWS_PER_SEGMENT):
        steps = range(first, min(first + ROWS_PER_SEGMENT, rows))
        body = [
            {"step": s, "time": 1.8e9 + s, "train/loss": 7 - s / rows, "train/top1": 0.5, "train/epoch": s / 5000,
             "train/lr": 0.1} | ({"val/top1": 0.6} if s and s % 5000 == 0 else {})
            for s in steps
        ]  # fmt: skip
        body[-1] |= {"speed/images_per_second": 250.0, "speed/data_wait_fraction": 0.02}
        found[metrics_key(run_id, 1, f"{steps[0]:08d}-{steps[-1]:08d}.jsonl")] = jsonl(body)
    return found


def samples(run_id: str, rows: int) -> dict[str, bytes]:
    found = {}
    for number in range(rows // 10 // SAMPLES_PER_SEGMENT):
        body = [{"step": 1, "time": 1.8e9 + i, "gpu/utilization": 0.9} for i in range(SAMPLES_PER_SEGMENT)]
        found[run_key(run_id, f"telemetry/1/{number:06d}.jsonl")] = jsonl(body)
    return found


def run_files(run_id: str, rows: int) -> dict[str, Mapping[str, Any] | bytes]:
    """What a run of so many steps leaves, but its segments."""
    now = time.time()
    spec = Spec(run_id=run_id, kind="train", recipe="rn50", budget_usd=10, hours=10, nodes=1, created=now,
                deadline=now + 36000, prices={"g6.xlarge": 0.8})  # fmt: skip
    machine = Machine(id="i-1", type="g6.xlarge", zone="us-east-1b", market="spot", launched=now - 7200, ended=now,
                      usd_per_hour=0.4)  # fmt: skip
    manifest, validated = manifest_key(run_id, rows, 1), rows // 5000 * 5000
    counters = {"step": rows, "validated": validated, "best": {"top1": 0.63, "step": validated, "weights": "ema"}}
    return {
        run_key(run_id, "spec.json"): spec.to_json(),
        run_key(run_id, "config.json"): {"epochs": rows / 5000, "global_batch_size": 256},
        run_key(run_id, "spend.json"): Spend(at=now, machines=(machine,)).to_json(),
        run_key(run_id, "heartbeat.json"): {"phase": "training", "step": rows, "progress": 1, "attempt": 1, "time": now,
                                            "observed": {"sample": {"gpu/utilization": 0.9}, "alerts": []}},
        attempt_key(run_id, 1): {"attempt": 1, "started": now, "machine": {"type": "g6.xlarge"}},
        manifest: {"step": rows, "attempt": 1, "time": now, "counters": counters, "steps_per_epoch": 5000,
                   "config": {"epochs": rows / 5000, "global_batch_size": 256}},
        checkpoint_key(run_id, "HEAD.json"): Lease(attempt=1, newest=manifest, best=manifest).to_json(),
    }  # fmt: skip


def ended_files(run_id: str, number: int) -> dict[str, Mapping[str, Any] | bytes]:
    end = {"attempt": 1, "message": "1,000 steps are done", "ended": time.time()}
    if number < DONE:
        result = {"run_id": run_id, "recipe": "rn50", "steps": 1000, "epochs": 10, "steps_per_epoch": 100,
                  "last": {"val/top1": 0.61, "val_ema/top1": 0.625}, "best": {"top1": 0.63, "step": 900}}  # fmt: skip
        return {run_key(run_id, "done.json"): end | {"result": result}, run_key(run_id, "result.json"): result}
    return {run_key(run_id, "failed.json" if number < DONE + FAILED else "guard.json"): end}


def fill(deployed: Deployed, files: Mapping[str, Mapping[str, Any] | bytes]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: deployed.put(key, files[key]), files))


def timed(aws: Aws, *command: str) -> dict[str, Any]:
    """Seconds of a command, and its requests. The quickest of its rounds: other work on the machine only adds."""
    inside, found = [], started(aws.environ, *command)
    for _ in range(ROUNDS):
        aws.clear_calls()
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            operate(*command)
        inside.append(time.perf_counter() - begin)
    return found | {"seconds_without_start": round(min(inside), 3), "requests": dict(Counter(aws.calls()))}


def started(environ: Mapping[str, str], *command: str) -> dict[str, Any]:
    """Seconds of a command in a process of its own, and of the processor."""
    seconds, cpu = [], []
    for _ in range(ROUNDS):
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "infra", *command], cwd=ROOT, env={"PATH": os.environ["PATH"]} | environ,
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begin)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the command; the emulator has not ended
        cpu.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
    return {"seconds": round(min(seconds), 3), "cpu_seconds": round(min(cpu), 3)}


def plain_requests(deployed: Deployed, count: int) -> dict[str, float]:
    """Seconds for so many reads of one small object."""
    s3, bucket = client(deployed.aws, "s3"), deployed.bucket

    def read(_: int) -> None:
        s3.get_object(Bucket=bucket, Key=run_key(LONG_RUN, "spec.json"))["Body"].read()

    found = {}
    for threads in (1, 8):
        begin, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(count)))
        found[f"seconds_{threads}_at_once"] = round(time.perf_counter() - begin, 3)
        found["cpu_seconds_here"] = round(time.process_time() - cpu, 3)
    return {"requests": count} | found


def main() -> int:
    results: dict[str, Any] = {"runs": RUNS, "rows": ROWS}
    with emulator() as aws:
        os.environ |= aws.environ
        deployed = deploy(aws)
        files: dict[str, Mapping[str, Any] | bytes] = {}
        for number in range(RUNS - 1):
            run_id = f"rn50-{number:03d}"
            files |= run_files(run_id, 1000) | segments(run_id, 1000 // 10) | ended_files(run_id, number)
        fill(deployed, files)
        deployed.launch(LONG_RUN)
        fill(deployed, run_files(LONG_RUN, ROWS))
        results["plain requests"] = plain_requests(deployed, 400)
        results["make runs"] = timed(aws, "runs")
        server = Replayed(aws.endpoint)
        answers = aws.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
        told = {"requests": sum(results["make runs"]["requests"].values()), "latency_ms": 1000 * LATENCY_SECONDS}
        results["make runs, 30 ms"] = started(answers, "runs") | told  # the first of its rounds asks the emulator
        fill(deployed, segments(LONG_RUN, ROWS) | samples(LONG_RUN, ROWS))
        results["make status"] = timed(aws, "status", "--run", LONG_RUN)
    limits = [
        Limit(f"seconds, {command}", results[command]["seconds"], most=LIMIT_SECONDS)
        for command in ("make status", "make runs, 30 ms")
    ]
    for name in ("plain requests", "make status", "make runs", "make runs, 30 ms"):
        print(f"{name:16} {results[name]}")
    print(*limits, sep="\n")
    results["limits"] = [limit.row() for limit in limits]
    write("status", results)
    print(f"written to {RESULTS / 'status.json'}")
    return 0 if all(limit.holds for limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
