"""What TensorBoard shows beside curves, each as the content of a `Summary.Value`: a picture, a text, the options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from trainer.upload.records import double_field, field, file_name, whole_field

OPENING = file_name(0, "opening")  # of an attempt that begins a run: the first file of its folder
FLOATS, TEXTS = 1, 7  # numbers of tensor types
HPARAM_TYPES = {str: 1, bool: 2, float: 3}  # of an option, by its type
HParam = str | bool | float


def picture(tag: str, width: int, height: int, encoded: bytes) -> bytes:
    """A PNG or JPEG with three colours."""
    size = whole_field(1, height) + whole_field(2, width) + whole_field(3, 3)
    return field(1, tag.encode()) + field(4, size + field(4, encoded))


def text(tag: str, markdown: str) -> bytes:
    tensor = whole_field(1, TEXTS) + field(2, b"") + field(8, markdown.encode())
    return _of_plugin(f"{tag}/text_summary", "text", b"", tensor)


def hparams(values: Mapping[str, object], metrics: Iterable[str], started: float) -> tuple[bytes, bytes]:
    """The options of a run for the tab "HPARAMS": which there are, and their values.

    Beside them stands the newest value of each of these metrics.
    """
    plain = {name: _as_hparam(value) for name, value in values.items()}
    infos = [
        field(4, field(1, name.encode()) + whole_field(4, HPARAM_TYPES[type(value)])) for name, value in plain.items()
    ]
    infos += [field(5, field(1, field(2, metric.encode()))) for metric in metrics]
    given = [field(1, field(1, name.encode()) + field(2, _value(value))) for name, value in plain.items()]
    nothing = whole_field(1, FLOATS) + field(2, field(2, whole_field(1, 0)))  # a tensor of no numbers
    return (
        _of_plugin("_hparams_/experiment", "hparams", field(2, b"".join(infos)), nothing),
        _of_plugin(
            "_hparams_/session_start_info", "hparams", field(3, b"".join(given) + double_field(5, started)), nothing
        ),
    )


def _as_hparam(value: object) -> HParam:
    """TensorBoard knows texts, switches and numbers. All other values are shown as JSON."""
    if isinstance(value, str | bool):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _value(value: HParam) -> bytes:
    """A `google.protobuf.Value`."""
    if isinstance(value, str):
        return field(3, value.encode(errors="replace"))  # a path may have bytes that are no UTF-8
    return whole_field(4, int(value)) if isinstance(value, bool) else double_field(2, value)


def _of_plugin(tag: str, plugin: str, content: bytes, tensor: bytes) -> bytes:
    metadata = field(1, field(1, plugin.encode()) + field(2, content))
    return field(1, tag.encode()) + field(9, metadata) + field(8, tensor)
