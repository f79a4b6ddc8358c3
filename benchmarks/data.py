"""The input pipeline against its peers, on the CPU: cost per image, fidelity, resolutions, stored sizes, a paced GPU.

make bench-data      ARGS="--images FOLDER" measures real JPEG files instead of the photographs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks import feeding, photographs, stored
from benchmarks.cpu import Measurable, Run, interleaved, rate, ratio
from benchmarks.ffcv_peer import Ffcv
from benchmarks.fidelity import against_pil, evaluation_error
from benchmarks.images import BATCH, THREADS, Images, originals, prepared, unpacked, without_markers
from benchmarks.limits import Limit
from benchmarks.machine import write
from benchmarks.peers import (
    Contender,
    bare,
    classic,
    dali,
    full_decode,
    nvimagecodec,
    opencv,
    ours,
    pooled,
    torchvision_v2,
)
from trainer.data.format import Copies, Index
from trainer.data.reading.copies import wanted_span
from trainer.data.reading.split import PreparedSplit
from trainer.recipes.config import DataConfig

COPIES = Copies(train=(256, 128), val=(320,))
ORIGINAL = 2048  # larger than any image here: nothing is shrunk
RESOLUTIONS = (88, 96, 112, 128, 160, 176, 224)
PACED = (88, 160, 224)
TABLE_IMAGES = 3 * BATCH  # for the choice of stored sizes: each is prepared twelve times
DECODERS: dict[str, Contender] = {
    "ours": ours,
    "torchvision v2": torchvision_v2,
    "DALI": dali(antialias=True),
    "DALI, not antialiased": dali(antialias=False),
    "pool + nvImageCodec": pooled(nvimagecodec),
    "pool + OpenCV": pooled(opencv),
}
CONTENDERS: dict[str, Contender] = {"classic": classic, **DECODERS, "full decode alone": pooled(full_decode)}
NO_FFCV = "not run: --ffcv PYTHON names an interpreter that has it (it has no wheels: built against system libraries)"


@dataclass(frozen=True)
class Material:
    """Where images lie, and the forms that contenders read."""

    folder: Path
    originals: Images
    large: Images  # the 256-px copies
    small: Images  # the 128-px copies
    plain: Images  # the 256-px copies without restart markers
    marked: Images  # the pixels of the originals, prepared: with restart markers
    evaluation: PreparedSplit
    index: Index

    def copy_for(self, pixels: int) -> Images:
        """The one that training reads."""
        (side,) = self.index.sides_for("train", wanted_span(DataConfig(), "train", pixels))
        return {256: self.large, 128: self.small}[side]


def lay_out(make: Any, count: int, scratch: Path) -> Material:
    folder = make(scratch / "images", count, count // 8)
    index, splits = prepared(folder, scratch / "prepared", COPIES)
    _, whole = prepared(folder, scratch / "whole", Copies(train=(ORIGINAL,), val=(320,)))
    large, small = (unpacked(splits["train", side], scratch / str(side)) for side in COPIES.train)
    return Material(
        folder=folder,
        originals=originals(folder, scratch / "originals"),
        large=large,
        small=small,
        plain=without_markers(large, scratch / "plain"),
        marked=unpacked(whole["train", ORIGINAL], scratch / "marked"),
        evaluation=splits["val", COPIES.val[0]],
        index=index,
    )


def costs(material: Material, ffcv: str, scratch: Path, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds per image at 224 px, `<contender>, <images>`."""
    runs: dict[str, Measurable] = {}
    for name, contender in CONTENDERS.items():
        runs[f"{name}, originals"] = Run(contender, material.originals)
        runs[f"{name}, prepared"] = Run(contender, material.large)
    for name in ("torchvision v2", "DALI, not antialiased"):
        runs[f"{name}, prepared without restart markers"] = Run(CONTENDERS[name], material.plain)
    runs["ours, originals prepared without a loss"] = Run(ours, material.marked)
    runs["our decoding alone, prepared"] = Run(bare, material.large)
    with ExitStack() as stack:
        if ffcv:
            for name, images in (("originals", material.originals), ("prepared", material.large)):
                beton = scratch / f"{name}.beton"
                peer = Ffcv(ffcv, images.folder, beton, 224, max_side=500)
                runs[f"FFCV, {name}, written again at most 500 px"] = stack.enter_context(peer)
        return interleaved(runs, rounds)


def fidelity(material: Material) -> dict[str, Any]:
    return {
        "prepared_256_to_224": against_pil(DECODERS, material.large, 224),
        "prepared_128_to_96": against_pil(DECODERS, material.small, 96),
        "originals_to_224": against_pil(DECODERS, material.originals, 224),
        "evaluation_232_224": evaluation_error(material.evaluation),
    }


def paced(material: Material, rounds: int) -> dict[int, float]:
    """Data-wait share by resolution, of a consumer with the pace of an A10G, scaled to the cores here."""
    return {
        pixels: round(
            statistics.median(
                feeding.data_wait(material.copy_for(pixels), pixels, feeding.scaled_need("A10G", pixels))
                for _ in range(rounds)
            ),
            5,
        )
        for pixels in PACED
    }


def limits(cost: dict[str, list[float]], by_pixels: dict[int, list[float]], found: dict[str, Any]) -> list[Limit]:
    """The promises of this pipeline."""
    mine, reference = cost["ours, prepared"], cost["classic, originals"]
    fidelity: dict[str, Any] = found["fidelity"]
    crops = {name: fidelity[name]["ours"] for name in fidelity if name != "evaluation_232_224"}
    return [
        Limit("prepared: times the classic on originals", ratio(reference, mine), least=7),
        Limit("prepared: times torchvision v2", ratio(cost["torchvision v2, prepared"], mine), least=2),
        Limit("prepared: times DALI, not antialiased", ratio(cost["DALI, not antialiased, prepared"], mine), least=2.5),
        Limit("originals, no pixel changed: times the classic",
              ratio(reference, cost["ours, originals prepared without a loss"]), least=3),
        Limit("prepared: on top of decoding, %",
              100 * ratio(mine, cost["our decoding alone, prepared"]) - 100, most=15),
        Limit("96 px from 128 px: times 224 px from 256 px", ratio(by_pixels[224], by_pixels[96]), least=3),
        *(Limit(f"{name}: median dB to PIL", crop["median_db"], least=45) for name, crop in crops.items()),
        *(Limit(f"{name}: first percentile dB", crop["first_percentile_db"], least=38) for name, crop in crops.items()),
        Limit("evaluation crops: mean difference, 1/255", fidelity["evaluation_232_224"]["mean"], most=1),
        *(Limit(f"data-wait at {pixels} px, %", 100 * share, most=3) for pixels, share in found["data_wait"].items()),
    ]  # fmt: skip


def show(results: dict[str, Any], checks: list[Limit]) -> None:
    print(f"\n{'CPU us per image at 224 px':58} {'median':>8} {'classic on originals is':>25}")
    for name, row in results["cpu_us"].items():
        print(f"  {name:56} {row['median']:8} {row['classic_times']:20} times")
    print("\nours, by resolution       from copy   images/s per core")
    for row in results["resolutions"]:
        print(f"  {row['pixels']:4} px {row['copy']:21} {row['images_per_second_per_core']:12,}")
    print(f"\n{'PSNR to PIL, dB':26} {'contender':24} median   first percentile")
    for images, found in results["fidelity"].items():
        if images != "evaluation_232_224":
            for name, row in found.items():
                print(f"  {images:24} {name:24} {row['median_db']:6} {row['first_percentile_db']:10}")
    print("\nstored copies   quality     GB   CPU us at 224 px   dB to the original's crops: median, first percentile")
    for row in results["stored"]:
        print(f"  {row['short_side']:4} px {row['quality']:13} {row['imagenet_gb']:8} {row['cpu_us']:12} "
              f"{row['median_db']:20} {row['first_percentile_db']:8}")  # fmt: skip
    print(f"\nfour vCPU, each {feeding.VCPU_SHARE} of a core here, cannot feed:")
    for row in results["fed"]:
        if not row["fed"]:
            print(
                f"  {row['gpu']:5}{row['pixels']:4} px: needs {row['needs']:,} images/s, gets {row['four_vcpu_give']:,}"
            )
    print()
    for check in checks:
        print(check)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, whose medians count")
    parser.add_argument("--count", type=int, default=8 * BATCH, help=f"training images, at least {TABLE_IMAGES}")
    parser.add_argument("--images", type=Path, help="a folder with real JPEG files, at any depth")
    parser.add_argument("--ffcv", default="", help="a Python interpreter that has FFCV and torchvision")
    options = parser.parse_args()
    torch.set_num_threads(1)  # of the bench itself and of every thread that decodes
    cv2.setNumThreads(1)

    def make(folder: Path, train: int, val: int) -> Path:
        if options.images:
            return photographs.link(folder, options.images, train, val)
        return photographs.make(folder, train, val)

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        material = lay_out(make, options.count, scratch)
        described = photographs.describe([Path(path) for path, _ in material.originals.listed.samples])
        print(f"{'real files' if options.images else 'photographs'}: {described}", flush=True)
        cost = costs(material, options.ffcv, scratch, options.rounds)
        runs = {pixels: Run(ours, material.copy_for(pixels), pixels) for pixels in RESOLUTIONS}
        by_name = interleaved({str(pixels): run for pixels, run in runs.items()}, options.rounds)
        by_pixels = {pixels: by_name[str(pixels)] for pixels in RESOLUTIONS}
        few = make(scratch / "few", TABLE_IMAGES, 16)
        found = {
            "fidelity": fidelity(material),
            "data_wait": paced(material, options.rounds),
            "stored": stored.table(few, originals(few, scratch / "few-originals"), scratch / "stored", options.rounds),
        }

    checks = limits(cost, by_pixels, found)
    reference = cost["classic, originals"]
    results = {
        "images": {"from": "real files" if options.images else "photographs", **described},
        "rounds": options.rounds,
        "threads": THREADS,
        "batch": BATCH,
        "limits": [check.row() for check in checks],
        "cpu_us": {
            name: {"median": round(statistics.median(us)), "classic_times": round(ratio(reference, us), 2),
                   "all": [round(value) for value in us]}
            for name, us in cost.items()
        },
        "ffcv": "a row of cpu_us" if options.ffcv else NO_FFCV,
        "resolutions": [
            {"pixels": pixels, "copy": runs[pixels].images.split.short_side,
             "images_per_second_per_core": round(rate(us)), "all_cpu_us": [round(value) for value in us]}
            for pixels, us in by_pixels.items()
        ],
        "fed": feeding.fed({pixels: rate(us) for pixels, us in by_pixels.items()}),
        **found,
    }  # fmt: skip
    show(results, checks)
    print(f"written to {write('data', results).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
