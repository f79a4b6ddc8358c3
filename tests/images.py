"""Small images and data sets for the tests: real JPEGs, the hub's own schema. No assertions live here."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.format import Copies, read_index
from trainer.data.making.prepare import Prepared, prepare
from trainer.data.making.revision.manifest import SourceMemory
from trainer.data.reading.split import PreparedSplit
from trainer.store import open_store

CLASSES = ("n01440764", "n01443537", "n01484850")


def photo(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """An RGB picture with soft colours and some detail, another for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def decode(data: bytes | memoryview | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, as torchvision's loader sees it."""
    return np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))


def image_folder(root: Path, *, classes: Iterable[str] = CLASSES, train: int = 4, val: int = 2, side: int = 40) -> Path:
    """`train/<class>/*.JPEG` and `val/<class>/*.JPEG`, so many per class."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = photo(1000 * label + i + 500 * (split == "val"), side + 8, side)
                (folder / f"{name}_{i}.JPEG").write_bytes(encode(image, quality=92))
    return root


def rows(count: int, *, classes: int = len(CLASSES), first: int = 0, side: int = 40) -> list[dict[str, Any]]:
    """Rows of the hub's schema: `image{bytes,path}` and `label`, the labels taking turns."""
    return [
        {
            "image": {"bytes": encode(photo(i, side + 8, side), quality=92), "path": f"image_{i}.JPEG"},
            "label": i % classes,
        }
        for i in range(first, first + count)
    ]


def write_parquet(path: Path, content: list[dict[str, object]], *, names: Iterable[str] | None = CLASSES) -> Path:
    """A parquet file as `datasets` writes it to the hub; without names, plain columns that carry no metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    if names is None:
        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        schema = pa.schema({"image": image, "label": pa.int64()})
        pq.write_table(pa.Table.from_pylist(content, schema), path)
        return path
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    columns = {key: [row[key] for row in content] for key in ("image", "label")}
    Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=5)
    return path


def parquet_folder(root: Path, *, train: int = 12, val: int = 6) -> Path:
    """Files named as the hub's ImageNet is: two of training, one of validation."""
    half = train // 2
    write_parquet(root / "data" / "train-00000-of-00002.parquet", rows(half))
    write_parquet(root / "data" / "train-00001-of-00002.parquet", rows(train - half, first=half))
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", rows(val, first=500))
    return root


def prepared(
    data: Path | str, store: Path | str, side: int = 32, copies: Copies | None = None, **options: Any
) -> Prepared:
    """Prepare into a folder or S3, with one copy of `side` pixels unless `copies` says otherwise."""
    if isinstance(store, Path):
        store.mkdir(exist_ok=True)
    return prepare(str(data), open_store(str(store)), copies or Copies((side,), (side,), 90), **options)


def again(data: Path, tmp_path: Path, **options: Any) -> Prepared:
    """Prepare on a machine that remembers what it has read."""
    memory = SourceMemory(tmp_path / "scratch", options.pop("verify", False))
    return prepared(data, tmp_path / "store", memory=memory, **options)


def open_split(store: Path, result: Prepared, split: str = "train", short_side: int = 32) -> PreparedSplit:
    return PreparedSplit(store / result.prefix, read_index(store / result.prefix), split, short_side)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
