"""The config tree: strict JSON, what counts as another run, exact accumulation, the ramp, and every rule."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from trainer.contract import RefusedError, UserError
from trainer.recipes.config import (
    Config,
    DataConfig,
    ModelConfig,
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


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("device", [1, 32, 64])
def test_processes_share_out_the_micro_batches_of_a_step_and_none_has_two_more_than_another(
    world: int, device: int
) -> None:
    config = Config(global_batch_size=512, device_batch_size=device)
    shares = [config.micro_batches_of(rank, world) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == list(range(512 // device))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [share[0] for share in shares] == list(range(world)), "the main process has the first, and never fewer"


@pytest.mark.parametrize(
    ("device", "fits"), [(3, "2 or 4"), (24, "16 or 32"), (500, "256 or 512"), (1024, "512"), (513, "512")]
)
def test_micro_batches_that_do_not_fill_a_step_are_refused_with_the_sizes_that_do(device: int, fits: str) -> None:
    with pytest.raises(UserError) as caught:
        _ = Config(global_batch_size=512, device_batch_size=device).micro_batches
    assert isinstance(caught.value, ValueError)
    assert f"global_batch_size=512 is no multiple of device_batch_size={device}: pass --device-batch-size {fits}," in (
        str(caught.value)
    )


@pytest.mark.parametrize(
    ("batch", "device", "world", "fits"),
    [(512, 128, 5, "pass --device-batch-size 64, or use at most 4 processes"),
     (96, 96, 7, "pass --device-batch-size 12, or use at most 1 processes"),
     (3, 1, 4, "; use at most 3 processes")],
)  # fmt: skip
def test_more_processes_than_micro_batches_are_refused_with_what_fits(
    batch: int, device: int, world: int, fits: str
) -> None:
    config = Config(global_batch_size=batch, device_batch_size=device)
    with pytest.raises(
        RefusedError, match=f"{world} processes are too many for {batch // device} micro-batches"
    ) as error:
        config.micro_batches_of(0, world)
    assert fits in str(error.value)
    if "--device-batch-size" in fits:
        smaller = int(fits.split(",")[0].rsplit(" ")[-1])
        replaced = dataclasses.replace(config, device_batch_size=smaller)
        assert replaced.micro_batches_of(world - 1, world)


def test_norms_that_wait_for_each_other_need_as_many_micro_batches_in_each_process() -> None:
    config = Config(global_batch_size=512, device_batch_size=64, model=ModelConfig(sync_norm=True))
    assert list(config.micro_batches_of(3, 4)) == [3, 7]
    with pytest.raises(RefusedError, match=r"--model.sync-norm with 3 processes: .* use 1, 2, 4, 8 processes"):
        config.micro_batches_of(0, 3)


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
