"""Labels of parquet files: they mean one thing in all files, or the data is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.images import CLASSES, rows, write_parquet
from trainer.contract import UserError
from trainer.data.making.forms.sources import Source, open_source
from trainer.data.making.layout import Choices

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def opened(folder: Path, **choices: Any) -> Source:
    return open_source(str(folder), Choices(**choices))


def write_table(path: Path, content: list[dict[str, Any]], label: pa.DataType, image: pa.DataType = IMAGE) -> None:
    """Plain columns, as other tools than `datasets` write them."""
    pq.write_table(pa.table({"image": pa.array([row["image"] for row in content], image),
                             "label": pa.array([row["label"] for row in content], label)}), path)  # fmt: skip


def both(folder: Path, label: pa.DataType, of_row: Callable[[dict[str, Any]], object], **image: Any) -> Source:
    for split, count in (("train", 6), ("validation", 3)):
        content = [{"image": row["image"], "label": of_row(row)} for row in rows(count)]
        write_table(folder / f"{split}-0.parquet", content, label, **image)
    return opened(folder)


def by_name(source: Source, split: str = "train") -> list[str]:
    return [source.classes[label] for label in source.splits[split].labels]


def test_files_whose_classes_have_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    swapped = (CLASSES[2], CLASSES[0], CLASSES[1])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", rows(6))
    content = [{**row, "label": swapped.index(CLASSES[row["label"]])} for row in rows(6, first=6)]
    write_parquet(tmp_path / "train-00001-of-00002.parquet", content, names=swapped)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows(3))
    source = opened(tmp_path)
    assert source.classes == CLASSES
    assert by_name(source) == [CLASSES[row["label"]] for row in rows(12)]
    assert "class names in another order, mapped by name: train-00001-of-00002.parquet" in source.said


def test_a_label_out_of_range_stays_so_when_names_are_mapped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows(6))
    write_parquet(tmp_path / "validation.parquet", [{**rows(1)[0], "label": -1}], names=CLASSES[::-1])
    with pytest.raises(UserError, match="label -1 of image 0 in split val is out of range"):
        opened(tmp_path)


def test_a_file_without_class_names_beside_one_with_names_is_refused_unless_declared(
    tmp_path: Path,
) -> None:
    write_parquet(tmp_path / "train-0.parquet", rows(6))
    write_parquet(tmp_path / "train-1.parquet", rows(6), names=None)
    write_parquet(tmp_path / "validation-0.parquet", rows(3))
    with pytest.raises(UserError, match=r"train-1.parquet has no class names, and train-0.parquet has them"):
        opened(tmp_path)
    declare(tmp_path, CLASSES)
    assert len(opened(tmp_path).splits["train"]) == 12


def declare(folder: Path, classes: tuple[str, ...], **examples: int) -> None:
    names = {str(i): name for i, name in enumerate(classes)}
    info = {"features": [{"name": "label", "dtype": {"class_label": {"names": names}}}],
            "splits": [{"name": name, "num_examples": count} for name, count in examples.items()]}  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'dataset_info': info})}---\n")


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (CLASSES[:2], r"validation.parquet and train.parquet \(for example 'n01484850'; 2 and 3 names\)"),
        ((*CLASSES[:2], "cat"), r"class names of train and val differ"),
    ],
)
def test_other_class_names_are_refused(val: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows(6))
    write_parquet(tmp_path / "validation.parquet", rows(2, classes=2), names=val)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_what_readme_declares_is_compared(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows(6))
    write_parquet(tmp_path / "validation.parquet", rows(3))
    declare(tmp_path, CLASSES, train=6, validation=3)
    opened(tmp_path)
    declare(tmp_path, CLASSES[::-1])
    with pytest.raises(UserError, match=r"README.md declares other class names.*0 is 'n01484850' and 'n01440764'"):
        opened(tmp_path)
    declare(tmp_path, CLASSES, train=24)
    with pytest.raises(UserError, match=r"declares 24 images of split train, the files have 6.*--accept-incomplete"):
        opened(tmp_path)
    said = opened(tmp_path, accept_incomplete=True).said
    assert "README.md declares 24 images of split train, the files have 6, which is accepted" in said


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int8(), pa.int32(), pa.uint64()])
def test_every_integer_type_serves_as_a_label(kind: pa.DataType, tmp_path: Path) -> None:
    assert list(both(tmp_path, kind, lambda row: row["label"]).splits["train"].labels) == [0, 1, 2, 0, 1, 2]


def test_labels_without_a_value_or_too_large_for_any_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label -1 of image 0 in split train is out of range"):
        both(tmp_path, pa.uint8(), lambda row: row["label"] or None)
    with pytest.raises(UserError, match=r"the labels of train-0.parquet are no classes"):
        both(tmp_path, pa.uint64(), lambda row: 2**63 + row["label"])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_labels_that_are_text_are_the_sorted_texts_of_training(kind: pa.DataType, tmp_path: Path) -> None:
    source = both(tmp_path, kind, lambda row: ("dog", "cat", "ant")[row["label"]])
    assert source.classes == ("ant", "cat", "dog")
    assert by_name(source) == ["dog", "cat", "ant"] * 2
    assert by_name(source, "val") == ["dog", "cat", "ant"]


def test_a_text_that_training_does_not_have_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", [{**row, "label": "cat"} for row in rows(3)], pa.string())
    write_table(tmp_path / "validation.parquet", [{**row, "label": "Cat"} for row in rows(3)], pa.string())
    with pytest.raises(UserError, match=r"label 'Cat' of split val is no class of training"):
        opened(tmp_path)
    write_table(tmp_path / "validation.parquet", rows(3), pa.int64())
    with pytest.raises(UserError, match=r"labels of train.parquet are text, those of validation.parquet are numbers"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_()])
def test_labels_of_another_kind_are_refused_with_their_type(kind: pa.DataType, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"label: {'double' if kind == pa.float64() else 'bool'}: the hub's ImageNet schema"
    ):
        both(tmp_path, kind, lambda row: kind.to_pandas_dtype()(row["label"] > 0))


def test_images_may_be_plain_bytes_or_lack_a_path_and_types_may_be_large(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("validation", 3)):
        content = [{"image": row["image"]["bytes"], "label": row["label"]} for row in rows(count)]
        write_table(tmp_path / f"{split}-0.parquet", content, pa.int64(), pa.binary())
    example = opened(tmp_path).splits["train"][4]
    assert (example.image, example.name, example.label) == (rows(6)[4]["image"]["bytes"], "train[4]", 1)
    large = pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
    assert both(tmp_path, pa.int64(), lambda row: row["label"], image=large).splits["train"][4].name == "image_4.JPEG"
    bare = pa.struct({"bytes": pa.binary()})
    assert both(tmp_path, pa.int64(), lambda row: row["label"], image=bare).splits["train"][4].image == example.image


def test_other_columns_are_chosen_by_name(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": list(CLASSES)},
                "coarse": {"_type": "ClassLabel", "names": ["a", "b"]}}  # fmt: skip
    schema = pa.schema({"img": IMAGE, "fine": pa.int64(), "coarse": pa.int64()}).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    content = [{"img": row["image"], "fine": row["label"], "coarse": row["label"] % 2} for row in rows(6)]
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(content, schema), tmp_path / f"{split}-0.parquet")
    with pytest.raises(UserError, match=r"train-0.parquet has no column 'image', only \['img', .*--image-column img"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"has no column 'label', only .*--label-column fine"):
        opened(tmp_path, image_column="img")
    assert opened(tmp_path, image_column="img", label_column="fine").classes == CLASSES
    source = opened(tmp_path, image_column="img", label_column="coarse")
    assert by_name(source) == ["a", "b", "a"] * 2
    assert source.splits["train"][5].image == content[5]["img"]["bytes"]


def test_names_of_images_that_are_no_utf_8_are_kept_and_such_a_label_names_its_file(tmp_path: Path) -> None:
    latin = pa.array([b"caf\xe9.jpg"] * 3).view(pa.string())
    image = pa.StructArray.from_arrays([pa.array([row["image"]["bytes"] for row in rows(3)]), latin], ["bytes", "path"])
    for name in ("train", "validation"):
        pq.write_table(pa.table({"image": image, "label": pa.array([0, 1, 2])}), tmp_path / f"{name}.parquet")
    assert opened(tmp_path).splits["train"][1].name == "caf\udce9.jpg"
    pq.write_table(pa.table({"image": image, "label": latin}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": image, "label": latin}), tmp_path / "validation.parquet")
    with pytest.raises(UserError, match=r"train.parquet is damaged in column label .*fetch it again"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.int32()])
def test_class_names_count_whatever_integers_the_labels_are(kind: pa.DataType, tmp_path: Path) -> None:
    """`datasets` forgets the names of a ClassLabel that is not int64, so its Features are not asked for them."""
    swapped = (CLASSES[2], CLASSES[0], CLASSES[1])
    for name, names in (("train-0", CLASSES), ("train-1", swapped), ("validation-0", CLASSES)):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, [{**row, "label": names.index(CLASSES[row["label"]])} for row in rows(6)], names=names)
        table = pq.read_table(path)
        pq.write_table(table.cast(table.schema.set(1, pa.field("label", kind, nullable=False))), path)
    source = opened(tmp_path)
    assert source.classes == CLASSES
    assert by_name(source) == [CLASSES[row["label"]] for row in [*rows(6), *rows(6)]]


def test_a_plain_number_that_no_count_of_images_explains_is_refused_at_once(tmp_path: Path) -> None:
    content = [*rows(5), {**rows(1)[0], "label": 2**31}]
    write_table(tmp_path / "train-0.parquet", content, pa.int64())
    write_table(tmp_path / "validation-0.parquet", rows(3), pa.int64())
    with pytest.raises(UserError, match=r"label 2147483648 of image 5 in split train is out of range.*only 6 images"):
        opened(tmp_path)
