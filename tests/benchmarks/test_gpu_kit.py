"""`make gpu-kit`: a folder that is whole or says that it is not, and its script on boxes that cannot run it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu_kit import __main__ as gpu_kit
from benchmarks.gpu_kit import contents
from benchmarks.gpu_kit.wheels import CARRIED
from trainer.contract import Exit, UserError

HERE = f"3.{sys.version_info.minor}"
LIBCUDA = """
#include <stddef.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = VERSION; return 0; }
int cuInit(unsigned f) { return INIT; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuGetErrorName(int code, const char **text) { *text = "CUDA_ERROR_SYSTEM_NOT_READY"; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strcpy(name, "NVIDIA Stand-in"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
"""


def write_wheel(folder: Path, name: str, version: str = "1.0", tag: str = "py3-none-any") -> Path:
    """A wheel of one module that says its version."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-{tag}.whl"
    info = f"{module}-{version}.dist-info"
    files = {
        f"kit_{module}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text)  # the same bytes each time
    return path


def write_lock(path: Path, wheels: list[Path]) -> Path:
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{digest}\n    # via test\n")
    path.write_text("".join(lines))
    return path


def prepare_nothing(folder: Path, name: str, *, tiny: bool) -> None:
    """In the place of the preparation, which has tests of its own."""
    made = folder / "datasets" / name / "1"
    made.mkdir(parents=True)
    (made / "index.json").write_text(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu_kit.Wanted]:
    """A kit for this Python, from a folder of wheels."""
    folder = tmp_path_factory.mktemp("kit")
    (folder / "source").mkdir()
    wheels = [write_wheel(folder / "source", name) for name in CARRIED]
    wanted = gpu_kit.Wanted(
        folder=folder / "box" / "gpu-kit", python=HERE, wheels=folder / "source",
        lock=write_lock(folder / "lock.txt", wheels),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.gpu.images.make", prepare_nothing)
        gpu_kit.build(wanted)
        yield wanted


@pytest.fixture
def kit(made: gpu_kit.Wanted, tmp_path: Path) -> gpu_kit.Wanted:
    """A copy of the kit, to be damaged."""
    shutil.copytree(made.folder, tmp_path / "gpu-kit")
    return gpu_kit.Wanted(folder=tmp_path / "gpu-kit", python=made.python, wheels=made.wheels, lock=made.lock)


def box(folder: Path, *arguments: str, python: tuple[str, ...] = (), **environ: str) -> tuple[int, str]:
    """What run.py of the kit answers."""
    words = [sys.executable, *python, str(folder / "run.py"), str(folder.parent / "results"), *arguments]
    command = [*words, "--scratch", str(folder.parent / "scratch")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environ, timeout=60)
    return ended.returncode, ended.stdout + ended.stderr


def stand_in_driver(folder: Path, version: int = 99000, init: int = 0, count: int = 1) -> str:
    """The folder of a libcuda.so.1 that answers so."""
    (folder / "cuda.c").write_text(LIBCUDA)
    values = [f"-DVERSION={version}", f"-DINIT={init}", f"-DCOUNT={count}"]
    library = str(folder / "libcuda.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", *values, "-o", library, str(folder / "cuda.c")], check=True)
    return str(folder)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# Making it


def test_a_kit_holds_wheels_images_and_all_code_that_the_bench_imports(made: gpu_kit.Wanted) -> None:
    marker = json.loads((made.folder / "kit.json").read_text())
    assert marker["whole"] is True
    assert len(list((made.folder / "wheels").iterdir())) == len(CARRIED)
    for place in ("run.py", "code/trainer/train.py", "code/benchmarks/gpu/__main__.py", "code/trainer/report/page.css"):
        assert place in marker["files"]
    assert sorted(path.parts[-3] for path in made.folder.rglob("index.json")) == ["digits", "photographs"]
    assert marker["bytes"] == sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file()) - (
        (made.folder / "kit.json").stat().st_size
    )
    assert not [path for path in made.folder.rglob("*") if path.name.startswith(".") or "pycache" in path.name]


def test_what_the_box_must_have_is_what_training_imports_and_the_kit_does_not_carry() -> None:
    assert contents.needs().keys() == {"torch", "torchvision", "numpy", "numba", "safetensors", "tqdm", "pyarrow"}


def test_a_second_call_changes_nothing(kit: gpu_kit.Wanted) -> None:
    before = times(kit.folder)
    assert gpu_kit.build(kit)[1] == []
    assert times(kit.folder) == before


def test_only_what_is_damaged_or_missing_is_made_again(kit: gpu_kit.Wanted) -> None:
    whole = json.loads((kit.folder / "kit.json").read_text())
    for place, part in (
        ("wheels/awscrt-1.0-py3-none-any.whl", "wheels"),
        ("data/datasets/digits/1/index.json", "images"),
        ("code/trainer/train.py", "code"),
        ("run.py", "code"),
    ):
        (kit.folder / place).write_text("damaged")
        assert gpu_kit.build(kit)[1] == [part]
        assert contents.hashes(kit.folder, *contents.PLACES) == whole["files"]
    (kit.folder / "code/trainer/left_over.py").touch()
    assert gpu_kit.build(kit)[1] == ["code"]
    assert not (kit.folder / "code/trainer/left_over.py").exists()


def test_a_call_that_breaks_off_leaves_a_kit_that_says_so_and_the_next_one_goes_on(
    kit: gpu_kit.Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(folder: Path, name: str, *, tiny: bool) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(kit.folder / "data")
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.gpu.images.make", break_off)
        with pytest.raises(KeyboardInterrupt):
            gpu_kit.build(kit)
    code, said = box(kit.folder)
    assert code == Exit.USER
    assert "was not finished: run `make gpu-kit` again" in said
    assert gpu_kit.build(kit)[1] == ["images"]
    assert json.loads((kit.folder / "kit.json").read_text())["whole"] is True


def test_wheels_that_are_not_to_be_had_are_named_and_the_kit_stays_as_it_is(
    kit: gpu_kit.Wanted, tmp_path: Path
) -> None:
    before = times(kit.folder)
    newer = [write_wheel(tmp_path, name, "2.0" if name == "tyro" else "1.0") for name in CARRIED]
    lock = write_lock(tmp_path / "lock", newer)
    with pytest.raises(UserError, match=r"tyro for Python 3.* not to be had \(.*tyro==2.0.*requirements/trainer.txt"):
        gpu_kit.build(gpu_kit.Wanted(folder=kit.folder, python=HERE, wheels=kit.wheels, lock=lock))
    assert times(kit.folder) == before
    gpu_kit.build(gpu_kit.Wanted(folder=kit.folder, python=HERE, wheels=tmp_path, lock=lock))
    assert [path.name for path in (kit.folder / "wheels").glob("tyro*")] == ["tyro-2.0-py3-none-any.whl"]


def test_a_wheel_that_differs_from_the_lock_is_refused(kit: gpu_kit.Wanted, tmp_path: Path) -> None:
    for wheel in (kit.wheels or tmp_path).iterdir():
        shutil.copy(wheel, tmp_path)
    with zipfile.ZipFile(tmp_path / "tyro-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("more.py", "")
    (kit.folder / "wheels/tyro-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"tyro for Python.*DO NOT MATCH THE HASHES"):
        gpu_kit.build(gpu_kit.Wanted(folder=kit.folder, python=HERE, wheels=tmp_path, lock=kit.lock))


def test_a_folder_that_is_something_else_is_refused_and_kept(
    made: gpu_kit.Wanted, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.jpg").touch()
    monkeypatch.setattr(sys, "argv", ["gpu-kit", "--folder", str(tmp_path), "--wheels", str(made.wheels)])
    assert gpu_kit.main() == Exit.USER
    assert f"error: {tmp_path} is there, and it is no kit" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_kit_that_grows_too_large_is_refused_with_what_is_large(kit: gpu_kit.Wanted) -> None:
    with (kit.folder / "wheels/added-1.0-py3-none-any.whl").open("wb") as file:
        file.truncate(contents.MOST_BYTES)
    with pytest.raises(UserError, match=r"has 6\d.\d MB, and 60 MB is the most; the largest files are wheels/added-"):
        gpu_kit.build(kit)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--python", "3.9"], "--python 3.9: give the version"), (["--wheels", "/none"], "--wheels /none is no folder")],
)
def test_an_option_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        gpu_kit.parse(words)


# Running it


def test_a_box_that_has_all_runs_the_bench_of_the_kit_with_the_wheels_of_the_kit(
    kit: gpu_kit.Wanted, tmp_path: Path
) -> None:
    driver = stand_in_driver(tmp_path)
    code, said = box(kit.folder, "--check", LD_LIBRARY_PATH=driver)
    assert code == 0, said
    assert f"code {kit.folder}/code, commit " in said
    assert "NVIDIA Stand-in, 80.0 GiB; driver" in said
    assert not (tmp_path / "results").exists()
    assert next((tmp_path / "scratch").glob("site-*/kit_tyro.py")).read_text() == "VERSION = '1.0'\n"
    code, said = box(kit.folder, "--list", LD_LIBRARY_PATH=driver)
    assert code == 0, said
    assert "ours_bf16" in said


def test_the_code_of_a_checkout_around_the_kit_runs_instead_of_the_copy(kit: gpu_kit.Wanted, tmp_path: Path) -> None:
    for package in ("trainer", "benchmarks"):
        shutil.copytree(kit.folder / "code" / package, tmp_path / package)
    commit = json.loads((kit.folder / "kit.json").read_text())["commit"]
    assert f"code {tmp_path}, commit {commit}\n" in box(kit.folder, "--tiny", "--check")[1]
    (tmp_path / "trainer/train.py").write_text("changed")
    assert f"code {tmp_path}, commit {commit} and later changes\n" in box(kit.folder, "--tiny", "--check")[1]


def test_a_box_without_the_packages_is_told_all_of_them_and_where_wheels_may_lie(kit: gpu_kit.Wanted) -> None:
    code, said = box(kit.folder, python=("-S",))
    assert code == Exit.USER
    for name in contents.needs():
        assert f"'{name}>=" in said
    assert f"put their wheels for Python {HERE} into {kit.folder}/wheels" in said


def test_another_python_than_that_of_the_wheels_is_refused(kit: gpu_kit.Wanted) -> None:
    marker = json.loads((kit.folder / "kit.json").read_text())
    (kit.folder / "kit.json").write_text(json.dumps(marker | {"python": "3.99"}))
    code, said = box(kit.folder)
    assert code == Exit.USER
    assert f"this is Python {HERE}" in said
    assert f"start run.py with python3.99, or make a kit for this one: make gpu-kit ARGS='--python {HERE}'" in said


def test_a_file_that_was_damaged_on_the_way_is_named(kit: gpu_kit.Wanted) -> None:
    (kit.folder / "data/datasets/digits/1/index.json").write_text("other")
    assert "index.json is not as it was made: copy the kit again" in box(kit.folder)[1]
    (kit.folder / "data/datasets/digits/1/index.json").unlink()
    assert "index.json is missing: copy the kit again" in box(kit.folder)[1]
    (kit.folder / "kit.json").write_text("{")
    assert "has no kit.json that can be read" in box(kit.folder)[1]


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ({"version": 11080}, "the driver is too old: it is made for CUDA 11.8, and torch for CUDA 1"),
        ({"init": 802}, "the driver offers no GPU (CUDA_ERROR_SYSTEM_NOT_READY)"),
        ({"count": 0}, "the driver offers no GPU"),
    ],
)
def test_a_gpu_that_torch_cannot_use_stops_the_call_at_once(
    kit: gpu_kit.Wanted, tmp_path: Path, driver: dict[str, int], said: str
) -> None:
    code, answer = box(kit.folder, LD_LIBRARY_PATH=stand_in_driver(tmp_path, **driver))
    assert code == Exit.USER
    assert said in answer


def test_a_box_without_a_driver_stops_at_once(kit: gpu_kit.Wanted, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")  # also where this machine has one
    code, said = box(kit.folder, LD_LIBRARY_PATH=str(tmp_path))
    assert code == Exit.USER
    assert "there is no NVIDIA driver here (no libcuda.so.1)" in said
