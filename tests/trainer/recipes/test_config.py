"""The config tree: strict JSON, what counts as another run, exact accumulation, the ramp, and every rule."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from trainer.contract import UserError
from trainer.recipes.config import (
    Config,
    DataConfig,
)
from trainer.recipes.fields import config_hash, differences, flatten, from_json, to_json

OPERATIONAL = {
    "data.workers", "val_batch_size", "log_every_steps", "checkpoint.every_seconds", "checkpoint.accept_changes",
    "device", "compile_strict",
}  # fmt: skip
FIELDS = sorted(flatten(Config()))
OTHER = {  # Literal fields need a value of their own
    "device": "cpu",
    "precision": "fp16",
    "optim.anneal": "linear",
    "regularize.augment": "trivial",
    "regularize.interpolation": "bilinear",
    "regularize.loss": "bce",
    "regularize.class_weights": "balanced",
    "model.blur_pool": "convs",
    "model.init": "composer",
    "data.sampling": "balanced",
    "optim.name": "lamb",
    "optim.decayed": "all",
    "schedule.kind": "cosine",
    "schedule.decay_epochs": (30, 60),
}


def with_value(config: Any, name: str, value: Any) -> Any:
    """The config with the field of a dotted name replaced."""
    head, _, rest = name.partition(".")
    return dataclasses.replace(config, **{head: with_value(getattr(config, head), rest, value) if rest else value})


def another(name: str, value: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value[:-1], type(value[-1])(value[-1] / 2))
    return value + "x" if isinstance(value, str) else value + 1


def test_a_config_survives_json_with_every_field_changed() -> None:
    config = Config()
    for name in FIELDS:
        config = with_value(config, name, another(name, flatten(config)[name]))
    read = from_json(Config, json.loads(json.dumps(to_json(config))))
    assert read == config
    assert not set(flatten(Config()).items()) & set(flatten(read).items())  # no field fell back to its default


def test_whole_numbers_of_json_become_floats_where_floats_belong() -> None:
    value = to_json(Config())
    value["optim"]["peak_lr"] = 1
    value["data"]["crop_scale"] = [1, 1]
    read = from_json(Config, value)
    assert [type(x) for x in (read.optim.peak_lr, *read.data.crop_scale)] == [float] * 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("epochs", "90"),
        ("epochs", 90.0),
        ("epochs", True),  # a bool is an int to Python
        ("compile", 1),
        ("precision", "fp8"),
        ("recipe", None),
        ("optim.peak_lr", "fast"),
        ("optim.peak_lr", True),
        ("optim.anneal", ["cos"]),
        ("data.mean", [0.5, 0.5]),
        ("data.crop_scale", 0.5),
    ],
)
def test_a_mistyped_field_is_named_with_path_and_value(path: str, value: Any) -> None:
    raw = to_json(Config())
    *parents, name = path.split(".")
    holder = raw
    for parent in parents:
        holder = holder[parent]
    holder[name] = value
    with pytest.raises(UserError, match=f"{re.escape(path)}={re.escape(repr(value))}.*RUN="):
        from_json(Config, raw)


def test_a_mistyped_element_is_named_with_its_field() -> None:
    raw = to_json(Config())
    raw["data"]["mean"] = [0.5, "x", 0.5]
    with pytest.raises(UserError, match=r"data\.mean\[\]='x'"):
        from_json(Config, raw)


def test_unknown_and_missing_fields_are_named_with_their_path() -> None:
    for parent, where in (("", "root"), ("optim", "optim")):
        raw = to_json(Config())
        (raw[parent] if parent else raw)["warp"] = 9
        with pytest.raises(UserError, match=rf"config {where}: fields \['warp'\]"):
            from_json(Config, raw)
    for parent, name, where in (("", "epochs", "root"), ("data", "val_crop", "data")):
        raw = to_json(Config())
        del (raw[parent] if parent else raw)[name]
        with pytest.raises(UserError, match=rf"config {where}: fields \['{name}'\]"):
            from_json(Config, raw)
    older = to_json(Config())
    del older["device"], older["model"]["blocked_stem"]  # which no run had before, so this one began with the default
    assert from_json(Config, older) == Config()
    with pytest.raises(UserError, match="config root: fields 7"):
        from_json(Config, 7)


@pytest.mark.parametrize("name", FIELDS)
def test_hash_and_differences_see_every_field_that_changes_what_is_computed(name: str) -> None:
    old = Config()
    new = with_value(old, name, another(name, flatten(old)[name]))
    if name in OPERATIONAL:
        assert config_hash(new) == config_hash(old)
        assert differences(old, new) == []
    else:
        assert config_hash(new) != config_hash(old)
        assert differences(old, new) == [f"{name}: {flatten(old)[name]!r} -> {flatten(new)[name]!r}"]


def test_the_operational_fields_are_these() -> None:
    assert set(flatten(Config())) - set(flatten(Config(), operational=False)) == OPERATIONAL


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("device", [1, 3, 24, 32, 128, 512, 1024])
def test_accumulation_is_exact_or_refused(world: int, device: int) -> None:
    config = Config(global_batch_size=512, device_batch_size=device)
    if 512 % (device * world) == 0:
        assert config.grad_accum_steps(world) * device * world == 512
        return
    with pytest.raises(UserError) as caught:
        config.grad_accum_steps(world)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "global_batch_size=512" in message
    assert f"device_batch_size={device} x {world} device(s) = {device * world}" in message
    assert "--device-batch-size" in message


def ramp(config: DataConfig, epochs: int) -> list[int]:
    return [Config(data=config).resolution_at(epoch) for epoch in range(epochs)]


def test_the_resolution_is_flat_then_rises_in_multiples_then_is_flat() -> None:
    data = DataConfig(start_resolution=128, resolution=224, ramp_start_epoch=2, ramp_end_epoch=8)
    assert ramp(data, 11) == [128, 128, 128, 128, 160, 192, 192, 192, 224, 224, 224]
    assert ramp(dataclasses.replace(data, resolution_multiple=16), 11) == [
        128, 128, 128, 144, 160, 176, 192, 208, 224, 224, 224,
    ]  # fmt: skip


def test_without_a_ramp_the_resolution_is_that_of_training_and_may_fall_as_well() -> None:
    assert ramp(DataConfig(), 3) == [224, 224, 224]
    assert ramp(DataConfig(start_resolution=128, resolution=160), 3) == [160, 160, 160]
    falling = DataConfig(start_resolution=224, resolution=128, ramp_end_epoch=3)
    assert ramp(falling, 4) == [224, 192, 160, 128]


def test_the_ramp_never_leaves_its_two_ends() -> None:
    """Buffers are as large as the larger end, and a multiple may be coarser than the ramp."""
    for start, end in ((96, 120), (120, 96), (33, 40)):
        for multiple in (32, 64, 512):
            data = DataConfig(
                start_resolution=start, resolution=end, ramp_end_epoch=20, resolution_multiple=multiple
            )  # fmt: skip
            assert all(min(start, end) <= pixels <= max(start, end) for pixels in ramp(data, 25))
