"""Whatever the libraries at the edges raise on a user's file: one message with the file and the fix, or a broken image.

The classes are found by looking through the libraries, so a new version's new exception is tried, too.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import operator
import pkgutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from tests.images import encode, image_folder, parquet_folder, photo
from tests.trainer.data.making.forms.test_folders import archives, devkit_archive
from trainer.contract import Exit, UserError
from trainer.data.making import restart_markers
from trainer.data.making.convert import BrokenImageError, convert
from trainer.data.making.forms.row_groups import RowGroups
from trainer.data.making.forms.sources import open_source
from trainer.prepare import main

NO_FAULTS = (UserError, BrokenImageError, Warning, StopIteration, StopAsyncIteration)  # what a call raises on purpose
ARGUMENTS = (
    (),
    ("said",),
    (errno.EIO, "Input/output error"),
    ("utf-8", b"\xe9", 0, 1, "said"),
    ("utf-8", "é", 0, 1, "said"),
    ("said", 0, 1, "said"),
    ("said", [ValueError("said")]),
)


def exceptions() -> list[Exception]:
    """One of each class that the standard library's builtins, Arrow, Pillow, NumPy, simplejpeg and others have."""
    modules = [builtins, pa, np.exceptions, simplejpeg, *map(importlib.import_module, ("struct", "zlib", "lzma"))]
    modules += [
        importlib.import_module(f"PIL.{module.name}")
        for module in pkgutil.iter_modules(PIL.__path__)
        if module.name in ("Image", "ImageFile", "UnidentifiedImageError", "TiffImagePlugin") or "Jpeg" in module.name
    ]
    kinds = {found for module in modules for found in vars(module).values() if isinstance(found, type)}
    made = [instance(kind) for kind in kinds if issubclass(kind, Exception) and not issubclass(kind, NO_FAULTS)]
    return [*made, *(OSError(number, "said") for number in sorted(errno.errorcode))]


def instance(kind: type[Exception]) -> Exception:
    for arguments in ARGUMENTS:
        try:
            return kind(*arguments)
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"{kind} takes other arguments: add them")


def raiser(error: BaseException) -> Callable[..., None]:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


EXCEPTIONS = exceptions()


def test_the_classes_that_once_went_through_are_among_them() -> None:
    kinds = {type(error) for error in EXCEPTIONS}
    assert {
        pa.ArrowNotImplementedError,
        pa.ArrowCapacityError,
        pa.ArrowInvalid,
        MemoryError,
        UnicodeEncodeError,
    } < kinds
    assert {PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, OverflowError} < kinds
    assert len(EXCEPTIONS) > 150


@pytest.mark.parametrize("call", ["__init__", "iter_batches"])
def test_what_reading_a_parquet_file_raises_names_the_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parquet_folder(tmp_path)
    files = [folder / "data" / "train-00000-of-00002.parquet"]
    for error in EXCEPTIONS:
        with monkeypatch.context() as patch:
            rows = RowGroups(files, "image")
            patch.setattr(pq.ParquetFile, call, raiser(error))
            with pytest.raises(
                UserError, match=rf"^{files[0]} (cannot be read|is damaged|needs more memory).*: "
            ) as told:
                rows[0]
            assert told.value.__cause__ is error


@pytest.mark.parametrize(
    ("module", "call"), [(pq, "read_schema"), (datasets.Features, "from_dict")], ids=["schema", "class names"]
)
def test_what_reading_a_schema_raises_names_the_file(
    module: object, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parquet_folder(tmp_path)
    for error in EXCEPTIONS:
        with monkeypatch.context() as patch:
            patch.setattr(module, call, raiser(error))
            with pytest.raises(UserError, match=r"train-00000-of-00002.parquet (cannot be|is|needs)[^:]*.*: ") as told:
                open_source(str(folder))
            assert told.value.__cause__ is error


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("call", ["tarfile.open", "tarfile.TarFile.next"])
def test_what_opening_an_archive_raises_names_it(
    call: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives(tmp_path)
    devkit_archive(tmp_path, of_train=2)
    real = operator.attrgetter(call.removeprefix("tarfile."))(tarfile)
    for error in EXCEPTIONS:

        def raise_for_it(*given: Any, error: Exception = error, **named: Any) -> Any:
            file = named.get("fileobj") or getattr(given[0], "fileobj", None)
            if str(getattr(file, "name", "")).endswith(name):
                raise error
            return real(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(call, raise_for_it)
            with pytest.raises(UserError, match=rf"{name} (cannot be read|is damaged|needs more memory).*: ") as told:
                open_source(str(tmp_path))
            assert told.value.__cause__ is error


@pytest.mark.parametrize(
    ("module", "call"),
    [
        (simplejpeg, "decode_jpeg"),
        (PIL.Image, "open"),
        (PIL.Image.Image, "save"),
        (PIL.Image, "frombuffer"),
        (restart_markers, "add_markers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_decoding_and_encoding_raise_is_a_broken_image_or_a_lack_of_memory(
    module: object, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = encode(photo(1))
    convert(jpeg, "a.JPEG", (64, 20), 90)
    for error in EXCEPTIONS:
        if call == "decode_jpeg" and isinstance(error, ValueError):
            continue  # Pillow has the last word on what simplejpeg finds wrong
        wanted = MemoryError if isinstance(error, MemoryError) else BrokenImageError
        with monkeypatch.context() as patch:
            patch.setattr(module, call, raiser(error))
            with pytest.raises(wanted) as told:
                convert(jpeg, "a.JPEG", (64, 20), 90)
        assert str(told.value) or told.value is error


def test_what_shrinking_raises_is_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.reading.decode.resize_into", raiser(RuntimeError("can't allocate memory")))
    with pytest.raises(MemoryError, match="allocate"):
        convert(encode(photo(1)), "a.JPEG", (20,), 90)


@pytest.mark.parametrize(
    ("edge", "error", "said"),
    [
        ("read", OSError(errno.EIO, "Input/output error"), "cannot be read (Input/output error): check the disk"),
        ("read", OSError(errno.EMFILE, "Too many open files"), "raise the limit of open files"),
        ("read", MemoryError(), "needs more memory than this machine has (MemoryError): use a machine with more"),
        ("convert", MemoryError("17 GB"), "needs more memory than this machine has (17 GB): use a machine with more"),
        ("store", MemoryError(), "no memory is left; use a machine with more"),
        ("store", OSError(errno.ENAMETOOLONG, "File name too long"), "name a folder with a shorter path"),
    ],
)
def test_the_command_ends_with_78_and_one_line(
    edge: str, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    call = {
        "read": "trainer.data.making.forms.source_formats.FolderSplit.__getitem__",
        "convert": "trainer.data.making.parts.convert",
        "store": "trainer.data.making.parts.write_shard",
    }[edge]
    monkeypatch.setattr(call, raiser(error))
    data, store = image_folder(tmp_path / "data"), tmp_path / "store"
    monkeypatch.setattr(sys, "argv", ["prepare", "--data", str(data), "--store", str(store)])
    monkeypatch.setattr("trainer.prepare.signal.signal", lambda *_: None)
    assert main() == Exit.USER
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert said in last
