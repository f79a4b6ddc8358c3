"""What is in a file of weights: safetensors, or what torch.save wrote. A file that is neither is told as what it is.

No code of a file is ever run: torch.load is called with weights_only=True. Which of the tensors are the model's is a
question for `matching`.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from typing import Any

import numpy as np
import safetensors.torch
import torch

from trainer.checkpoint.layout import BLUR_POOL, NHWC
from trainer.contract import UserError
from trainer.text import tell

Explained = tuple[str, str]  # what is wrong with a file, and the fix

LONGEST_HEADER = 100_000_000  # bytes: the limit of safetensors itself
FETCH_AGAIN = "download or copy it again, and compare its size"
UNPACK = "unpack it, and name the .pth or .safetensors file that is in it"
TENSORS_ONLY = "save one with torch.save(model.state_dict(), …) or safetensors"
SAVE_ALONE = (
    "if you trust the file, save its weights alone in Python: found = torch.load(FILE, weights_only=False), then "
    "torch.save(found.state_dict(), NEW) for a whole model, or torch.save(found['state_dict'], NEW)"
)

# How the usual files that are no weights begin.
BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, without the file behind it", "run `git lfs pull` there"),
    (b"<?xml", "XML, as a store answers with an error", "look into it for the reason, and download the file again"),
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"(\xb5/\xfd", "compressed with Zstandard", UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "take weights of PyTorch for this model"),
    (b"\x93NUMPY", "an array of NumPy", TENSORS_ONLY),
    (b"GGUF", "a GGUF file", "take weights of PyTorch for this model"),
)

# Numbers of NumPy and the options of a command line stand in many checkpoints beside the tensors. None of them can run
# code. NumPy 1 and 2 name the maker of a number differently.
MAKE_NUMBER: Any = np.float64().__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *((MAKE_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]  # fmt: skip


def parse_file(body: bytes, origin: str) -> object:
    """What a file holds, usually tensors by name, or such a mapping inside of others. Raises UserError."""
    if is_safetensors(body):
        try:
            return in_logical_order(safetensors.torch.load(body), body)
        except Exception as error:
            raise no_state_dict(origin, *explain_safetensors(body, error)) from error
    if explained := explain_file(body):
        raise no_state_dict(origin, *explained)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise no_state_dict(origin, *explain_pickle(body, error)) from error


def metadata(body: bytes) -> dict[str, str]:
    """What the header of a safetensors file says beside its tensors."""
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def check_blur(body: bytes, origin: str, blur: str) -> None:
    """Raises UserError for a file of a run of this trainer with another --model.blur-pool: a checkpoint, or an export.

    Files of others do not say how they were trained. Of a checkpoint of an older version a line says that it does not.
    The file must have passed `parse_file`.
    """
    about = metadata(body) if is_safetensors(body) else {}
    trained = about.get(BLUR_POOL, blur)
    if NHWC in about and BLUR_POOL not in about:
        tell(
            f"{origin} is a checkpoint of an older version, which does not say whether its network blurs: this run has "
            f"--model.blur-pool {blur}, and with another one than its own the weights compute something else"
        )
    if trained != blur:
        raise UserError(
            f"--model.weights {origin!r} was trained with --model.blur-pool {trained}, and this run has {blur}: the "
            f"same weights would compute something else; pass --model.blur-pool {trained}"
        )


def in_logical_order(tensors: dict[str, torch.Tensor], body: bytes) -> dict[str, torch.Tensor]:
    """The tensors as (N, C, H, W). A checkpoint of this trainer names those that it holds as (N, H, W, C)."""
    nhwc = set(metadata(body).get(NHWC, "").split())
    return {name: t.permute(0, 3, 1, 2) if name in nhwc and t.ndim == 4 else t for name, t in tensors.items()}


def no_state_dict(origin: str, what: str, fix: str) -> UserError:
    return UserError(f"--model.weights {origin!r} is no state dict: it is {what}; {fix}")


def is_safetensors(body: bytes) -> bool:
    """By its content: people give such files other names, too."""
    return body[8:9] == b"{" and int.from_bytes(body[:8], "little") < LONGEST_HEADER


def explain_safetensors(body: bytes, error: Exception) -> Explained:
    size = int.from_bytes(body[:8], "little")
    try:
        header = json.loads(body[8 : 8 + size])
        whole = 8 + size + max(value["data_offsets"][1] for name, value in header.items() if name != "__metadata__")
    except Exception:  # noqa: BLE001  # a header may have anything in it
        whole = 8 + size
    if len(body) < whole:
        return f"cut off: it has {len(body):,} of at least {whole:,} bytes", FETCH_AGAIN
    return f"a damaged safetensors file ({error})", FETCH_AGAIN


def explain_file(body: bytes) -> Explained | None:
    """What a file is that cannot hold weights; None for one that may."""
    head = body[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not body.strip(b"\0"):
        return ("empty" if not body else f"nothing but {len(body):,} zero bytes"), FETCH_AGAIN
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: the download brought a page in place of the file", "take the direct link, or log in first"
    for beginning, what, fix in BEGINNINGS:
        if body.startswith(beginning):
            return what, fix
    if body[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if body.startswith(b"PK"):
        return explain_zip(body)
    if b'"weight_map"' in body[:100_000] and head.startswith(b"{"):
        return "the index of weights in several files", "join those files into one state dict, and name that"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text that begins with {body[:60].decode(errors='replace')!r}", "name the file that has the tensors"
    return None


def explain_zip(body: bytes) -> Explained | None:
    """torch.save writes a zip archive, whose directory is at its end."""
    try:
        names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    except zipfile.BadZipFile:
        return f"cut off after {len(body):,} bytes", FETCH_AGAIN
    except Exception as error:  # noqa: BLE001  # a directory may have anything in it
        return f"a damaged zip archive ({error})", FETCH_AGAIN
    parts = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in parts:
        return "a TorchScript archive", "save torch.jit.load(FILE).state_dict() with torch.save, and name that file"
    if "data.pkl" not in parts:
        return f"a zip archive without weights of PyTorch (it has {', '.join(names[:3])})", UNPACK
    return None


def explain_pickle(body: bytes, error: Exception) -> Explained:
    """Why torch.load refuses a file: usually it holds objects whose loading would run code."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(body)))
    except Exception:  # noqa: BLE001  # of an older form, or damaged: the first error says what is known
        foreign = []
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in foreign):
        return f"a whole model, whose loading would run code ({', '.join(foreign[:3])}, …)", SAVE_ALONE
    if foreign:
        return f"a file with objects whose loading would run code ({', '.join(foreign[:4])})", SAVE_ALONE
    if isinstance(error, EOFError | RuntimeError):
        return f"cut off or damaged ({type(error).__name__})", FETCH_AGAIN
    return (
        f"not what torch.save writes of tensors ({type(error).__name__}), or damaged",
        f"{FETCH_AGAIN}; or {SAVE_ALONE}",
    )
