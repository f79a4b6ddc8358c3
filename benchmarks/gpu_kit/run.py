"""Run the GPU bench from this folder, on a box that may have no network:  python3 run.py RESULTS [options of the bench]

RESULTS is a folder for what is measured. `--check` only looks whether the bench can run here, `--tiny` is a trial that
needs no GPU, `--only NAME` and `--seconds N` go to the bench, as does whatever else is given.
Nothing is installed into this Python: the wheels beside this file are unpacked below the temporary folder (or
`--scratch FOLDER`), where compiled kernels stay, too, so that a second call starts faster.
If the kit lies in a checkout, the code of that checkout runs, else the code in the kit.
"""

# It must also start, and say what is wrong, with Pythons that the bench itself cannot run on. Standard library only.
from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

KIT = Path(__file__).resolve().parent
SECONDS = "540"  # one call of at most ten minutes, its start included
USER = 78  # the exit code of the trainer for what only the user can change


def stop(message: str) -> NoReturn:
    """Say it and end."""
    print("error: " + message, file=sys.stderr, flush=True)
    raise SystemExit(USER)


def read_kit() -> dict[str, Any]:
    """What kit.json says. Stops if the kit is not whole, or not as it was made."""
    try:
        kit = json.loads((KIT / "kit.json").read_text())
        whole = kit["whole"]
    except (OSError, ValueError, KeyError):
        stop(f"{KIT} has no kit.json that can be read: make the kit again (`make gpu-kit`) and copy all of it")
    if not whole:
        stop(f"{KIT} was not finished: run `make gpu-kit` again, until it says that it is done, and copy it then")
    return kit


def check_files(kit: dict[str, Any]) -> None:
    for place, digest in kit["files"].items():
        path = KIT / place
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            state = "is not as it was made" if path.is_file() else "is missing"
            stop(f"{path} {state}: copy the kit again, or repair it where it was made (`make gpu-kit`)")


def check_python(kit: dict[str, Any]) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if here != kit["python"]:
        stop(
            f"this is Python {here} ({sys.executable}), and the wheels of this kit are for {kit['python']}: "
            f"start run.py with python{kit['python']}, or make a kit for this one: make gpu-kit ARGS='--python {here}'"
        )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        stop(f"this is {sys.platform} on {platform.machine()}: the wheels are for Linux on x86_64")


def open_scratch(given: str | None) -> Path:
    """A folder of this user alone for wheels and caches."""
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"resnet-spot-gpu-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        stop(f"{folder} cannot be made ({error.strerror}): name a folder that can be written: --scratch FOLDER")
    if folder.stat().st_uid != os.getuid():
        stop(f"{folder} belongs to another user: name a folder of your own: --scratch FOLDER")
    return folder.resolve()


def unpack_wheels(scratch: Path) -> Path:
    """A folder with all packages of the wheels, made once for the same wheels."""
    wheels = sorted((KIT / "wheels").glob("*.whl"))
    name = hashlib.sha256(repr([(wheel.name, wheel.stat().st_size) for wheel in wheels]).encode()).hexdigest()[:12]
    site = scratch / ("site-" + name)
    if not site.is_dir():
        new = Path(tempfile.mkdtemp(dir=str(scratch)))
        for wheel in wheels:
            try:
                with zipfile.ZipFile(str(wheel)) as archive:
                    archive.extractall(str(new))
            except (OSError, zipfile.BadZipFile) as error:
                stop(f"{wheel} cannot be unpacked into {new}: {error}")
        try:
            new.rename(site)
        except OSError:  # another call was faster
            shutil.rmtree(str(new))
    return site


def check_packages(kit: dict[str, Any], site: Path) -> str:
    """Stops and names every package that this Python lacks, or has too old. Says which others would be of use."""
    from importlib.metadata import PackageNotFoundError, version

    sys.path.insert(0, str(site))

    def found(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3]]

    wrong = []
    for name, least in kit["needs"].items():
        here = found(name)
        if here is None or numbers(here) < numbers(least):
            wrong.append(f"'{name}>={least}'" + (f" (here: {here})" if here else ""))
    if wrong:
        stop(
            f"this Python ({sys.executable}) lacks {', '.join(wrong)}: install them (pip install …), or put their "
            f"wheels for Python {kit['python']} into {KIT / 'wheels'}, from which run.py takes all"
        )
    for name, loss in kit["optional"].items():
        if found(name) is None:
            print(f"{name} is not installed: {loss}", flush=True)
    return f"torch {found('torch')}, torchvision {found('torchvision')}"


def cuda_of_torch() -> tuple[int, int]:
    """The CUDA version that torch was built for, as (13, 0); torch itself takes seconds to import."""
    text = Path(find_spec("torch").origin).with_name("version.py").read_text()
    built = re.search(r"^cuda\b.*?= *'(\d+)\.(\d+)'", text, re.MULTILINE)
    if not built:
        stop("this torch was built without CUDA: install one with CUDA, or try the bench without a GPU: --tiny")
    return int(built.group(1)), int(built.group(2))


def check_card() -> str:
    """What the driver says of itself and the first card. Stops if torch could not use it."""
    built = cuda_of_torch()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        stop(
            "there is no NVIDIA driver here (no libcuda.so.1): take a box with a GPU, or start the container with it "
            "(docker run --gpus all); --tiny is a trial without one"
        )
    number, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(100)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
    if version[0] < built[0]:
        stop(
            f"the driver is too old: it is made for CUDA {version[0]}.{version[1]}, and torch for CUDA {built[0]}."
            f"{built[1]}: renew the driver, or install a torch for CUDA {version[0]}"
        )
    code = cuda.cuInit(0)
    if not code:
        code = cuda.cuDeviceGetCount(ctypes.byref(number))
    if code or not number.value:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(text))
        hidden = "".join(f"; {name}={os.environ[name]}" for name in ["CUDA_VISIBLE_DEVICES"] if name in os.environ)
        stop(
            f"the driver offers no GPU ({(text.value or b'it lists none').decode()}{hidden}): see what nvidia-smi "
            "says, and take another box if it lists none"
        )
    cuda.cuDeviceGetName(name, 100, 0)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    more = f" (the first of {number.value})" if number.value > 1 else ""
    card = f"{name.value.decode()}, {memory.value / 2**30:.1f} GiB{more}"
    return f"{card}; driver {driver_version()} for CUDA {version[0]}.{version[1]}, torch for {built[0]}.{built[1]}"


def driver_version() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, stdout=subprocess.PIPE, timeout=10, check=False).stdout.decode().split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "of unknown version"


def choose_code(kit: dict[str, Any]) -> tuple[Path, str]:
    """The folder with the code, and its commit: that of the checkout around the kit, if it is another one."""
    around = KIT.parent
    if not all((around / package / "__init__.py").is_file() for package in ("trainer", "benchmarks/gpu")):
        return KIT / "code", kit["commit"]
    own = {place[5:]: digest for place, digest in kit["files"].items() if place.startswith("code/")}
    if all(
        (around / place).is_file() and hashlib.sha256((around / place).read_bytes()).hexdigest() == digest
        for place, digest in own.items()
    ):
        return around, kit["commit"]
    return around, "" if (around / ".git").exists() else kit["commit"] + " and later changes"


def environ(scratch: Path, site: Path, code: Path, commit: str) -> dict[str, str]:
    behind = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = dict(os.environ)
    found.update(
        PYTHONPATH=os.pathsep.join([str(code), str(site), *behind]),
        PYTHONUNBUFFERED="1",
        PYTORCH_ALLOC_CONF="expandable_segments:True",
        TORCHINDUCTOR_CACHE_DIR=str(scratch / "torchinductor"),
        TRITON_CACHE_DIR=str(scratch / "triton"),
        NUMBA_CACHE_DIR=str(scratch / "numba"),
        HF_HUB_OFFLINE="1",
    )
    if commit:
        found["TRAINER_COMMIT"] = commit
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULTS", type=Path)
    parser.add_argument("--check", action="store_true", help="only look whether the bench can run here")
    parser.add_argument("--scratch", help="folder for wheels and caches")
    given, rest = parser.parse_known_args()
    kit = read_kit()
    check_python(kit)
    check_files(kit)
    scratch = open_scratch(given.scratch)
    site = unpack_wheels(scratch)
    torch = check_packages(kit, site)
    code, commit = choose_code(kit)
    print(f"code {code}, commit {commit or 'as git says'}", flush=True)
    print(f"Python {platform.python_version()}, {torch}", flush=True)
    print("no GPU is looked for: a trial" if "--tiny" in rest else check_card(), flush=True)
    if given.check:
        return
    given.results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(given.results.resolve())]
    os.chdir(str(code))  # `python -m` looks there first
    command += ["--images", str(KIT / "data"), "--scratch", str(scratch / "bench"), "--seconds", SECONDS]
    os.execve(sys.executable, command + rest, environ(scratch, site, code, commit))


if __name__ == "__main__":
    main()
