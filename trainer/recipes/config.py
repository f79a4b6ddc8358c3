"""The config of a run: what it computes, as a tree of frozen dataclasses with strict JSON.

`contract.RunEnv` says where a run lives. `named` has the named configs. torch is not imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.contract import UserError

Precision = Literal["fp32", "bf16", "fp16"]
# A run may continue with another value of these fields: they change speed or safety, but nothing that is computed.
OPERATIONAL = MappingProxyType({"operational": True})
ADDED = MappingProxyType({"added": True})  # a config of an older version lacks it, and its default is what that did


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = "resnet50"  # a torchvision classification model: resnet18, resnet50, …
    num_classes: int = 1000  # outputs; labels in the data must be below it
    weights: str = ""  # start from: "" = random, IMAGENET1K_V1 or _V2 = torchvision's, or a file or s3:// URI
    blocked_stem: bool = field(default=False, metadata=ADDED)  # ResNet's first convolution over 2x2 blocks of pixels


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    resolution: int = 224  # training pixels after the ramp
    start_resolution: int = 224  # training pixels before the ramp (progressive resizing)
    ramp_start_epoch: float = 0.0  # the ramp from start_resolution to resolution begins here
    ramp_end_epoch: float = 0.0  # and ends here
    resolution_multiple: int = 32  # resolutions on the ramp are multiples of this
    val_resize: int = 232  # validation: short side after resizing
    val_crop: int = 224  # validation: centre crop
    crop_scale: tuple[float, float] = (0.08, 1.0)  # random resized crop: share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random resized crop: width over height
    flip_probability: float = 0.5  # horizontal flip
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in 0..1; ImageNet's by default
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # likewise
    train_sides: tuple[int, ...] = (256, 128)  # preparation: short sides that training images are stored with
    val_side: int = 320  # preparation: short side that validation images are stored with
    quality: int = 90  # preparation: JPEG quality of what is re-encoded
    workers: int = field(default=8, metadata=OPERATIONAL)  # decoding threads; 0 = one per core


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    peak_lr: float = 0.5  # highest learning rate, for the global batch
    momentum: float = 0.9  # of SGD
    nesterov: bool = False  # Nesterov's form of momentum
    weight_decay: float = 5e-5  # not applied to norms and biases
    div: float = 25.0  # OneCycle starts at peak_lr / div
    final_div: float = 1e4  # and ends at peak_lr / div / final_div
    pct_start: float = 0.3  # share of the steps that the learning rate rises
    anneal: Literal["cos", "linear"] = "cos"  # shape of rise and fall


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig:
    label_smoothing: float = 0.1  # share of the target spread over all classes
    mixup_alpha: float = 0.0  # 0 = off; with cutmix on too, each micro-batch gets one of them
    cutmix_alpha: float = 0.0  # 0 = off
    augment: Literal["none", "trivial", "rand"] = "none"  # TrivialAugment or RandAugment, on the device
    rand_ops: int = 2  # RandAugment: operations per image
    rand_magnitude: int = 9  # RandAugment: 0 (weak) to 30
    erasing_probability: float = 0.0  # of erasing a random box (random erasing); 0 = off
    ema_decay: float = 0.0  # average of weights and BatchNorm buffers, per step; 0 = off


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_seconds: float = field(default=45.0, metadata=OPERATIONAL)  # the promise is a minute
    accept_changes: bool = field(default=False, metadata=OPERATIONAL)  # continue a run with another config than before


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `global_batch_size` images make a step; gradients accumulate where a device takes fewer."""

    recipe: str = "custom"  # the name that reports show
    epochs: int = 90  # passes over the training images
    global_batch_size: int = 256  # images per step, over all devices
    device_batch_size: int = 256  # images per micro-batch on one device
    device: Literal["auto", "cuda", "cpu"] = field(
        default="auto", metadata=OPERATIONAL | ADDED
    )  # auto: a GPU, or a CPU
    precision: Precision = "bf16"  # of the forward pass; weights and optimizer stay fp32
    channels_last: bool = True  # NHWC in memory: what tensor cores want
    compile: bool = False  # torch.compile: slower start, faster steps; where it fails, the attempt goes on without
    compile_strict: bool = field(default=False, metadata=OPERATIONAL | ADDED)  # stop where compiling fails
    cuda_graphs: bool = field(default=False, metadata=ADDED)  # launch a step whole: for small images on a fast GPU
    fused_norm: bool = field(default=False, metadata=ADDED)  # BatchNorm, addition and ReLU as one kernel, on a GPU
    deterministic: bool = False  # only bitwise reproducible kernels, at a cost in speed
    seed: int = 0  # of weights, order, crops and mixing
    val_every_epochs: int = 1  # validate after every so many epochs, and at the end
    val_batch_size: int = field(default=256, metadata=OPERATIONAL)  # images per device
    log_every_steps: int = field(default=20, metadata=OPERATIONAL)  # steps between console lines and finite checks
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    regularize: RegularizeConfig = RegularizeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def grad_accum_steps(self, world_size: int) -> int:
        """Micro-batches per step and device; UserError unless global = device x world x accumulation exactly."""
        accum, rest = divmod(self.global_batch_size, self.device_batch_size * world_size)
        if rest or not accum:
            raise UserError(
                f"global_batch_size={self.global_batch_size} is not a multiple of device_batch_size="
                f"{self.device_batch_size} x {world_size} device(s) = {self.device_batch_size * world_size}: "
                f"choose --device-batch-size so that it divides {self.global_batch_size // world_size or 1}, "
                "or change --global-batch-size"
            )
        return accum

    def resolution_at(self, epoch: int) -> int:
        """Training pixels of an epoch: flat, a linear ramp in multiples, flat (progressive resizing)."""
        data = self.data
        if epoch >= data.ramp_end_epoch or data.start_resolution == data.resolution:
            return data.resolution
        if epoch <= data.ramp_start_epoch:
            return data.start_resolution
        share = (epoch - data.ramp_start_epoch) / (data.ramp_end_epoch - data.ramp_start_epoch)
        pixels = data.start_resolution + share * (data.resolution - data.start_resolution)
        rounded = int(round(pixels / data.resolution_multiple) * data.resolution_multiple)
        low, high = sorted((data.start_resolution, data.resolution))
        return max(low, min(high, rounded))  # buffers are as large as the larger end

    def resolutions(self) -> frozenset[int]:
        """Training pixels of all epochs."""
        return frozenset(self.resolution_at(epoch) for epoch in range(self.epochs))

    def validate(self) -> Config:
        """Return this config. Raises UserError with the first value that breaks a rule, and the rule."""
        for option, value, holds, rule in rules_of(self):
            if not holds:
                raise UserError(f"{option} is {value}: it must be {rule}; pass another value for {option}")
        self.grad_accum_steps(1)  # if one device cannot share out the batch, more cannot either
        return self


Rule = tuple[str, object, bool, str]  # an option, its value, whether its rule holds, and the rule


def rules_of(config: Config) -> list[Rule]:
    """What the values of a config must be."""
    rules = [*general_rules(config), *data_rules(config.data), *optim_rules(config.optim)]
    return [*rules, *regularize_rules(config.regularize), *pixel_rules(config.data), *stem_rules(config)]


def general_rules(config: Config) -> list[Rule]:
    seconds, strict = config.checkpoint.every_seconds, config.compile_strict
    return [
        ("--epochs", config.epochs, config.epochs >= 1, "at least 1"),
        ("--global-batch-size", config.global_batch_size, config.global_batch_size >= 1, "at least 1"),
        ("--device-batch-size", config.device_batch_size, config.device_batch_size >= 1, "at least 1"),
        ("--val-every-epochs", config.val_every_epochs, config.val_every_epochs >= 1, "at least 1"),
        ("--val-batch-size", config.val_batch_size, config.val_batch_size >= 1, "at least 1"),
        ("--log-every-steps", config.log_every_steps, config.log_every_steps >= 1, "at least 1"),
        ("--compile-strict", strict, config.compile or not strict, "off without --compile"),
        *fused_norm_rules(config),
        ("--seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63-1"),
        ("--model.num-classes", config.model.num_classes, config.model.num_classes >= 2, "at least 2"),
        ("--checkpoint.every-seconds", seconds, seconds > 0, "positive"),
    ]


def fused_norm_rules(config: Config) -> list[Rule]:
    option, value, off = "--fused-norm", config.fused_norm, not config.fused_norm
    is_resnet = config.model.name.startswith(("resnet", "resnext", "wide_resnet"))
    return [
        (option, value, off or not config.compile, "off with --compile, which fuses these layers itself"),
        (option, value, off or config.channels_last, "off with --no-channels-last: its kernels want that layout"),
        (option, value, off or is_resnet, f"off with --model.name {config.model.name}: it is made for ResNets"),
    ]


def data_rules(data: DataConfig) -> list[Rule]:
    sides, scale, ratio = data.train_sides, data.crop_scale, data.crop_ratio
    return [
        ("--data.workers", data.workers, data.workers >= 0, "at least 0 (0 = one per core)"),
        ("--data.val-crop", data.val_crop, data.val_crop <= data.val_resize, f"≤ val_resize={data.val_resize}"),
        ("--data.flip-probability", data.flip_probability, 0 <= data.flip_probability <= 1, "0 to 1"),
        ("--data.quality", data.quality, 1 <= data.quality <= 95, "1 to 95"),
        ("--data.train-sides", sides, len(set(sides)) == len(sides) > 0, "one or several different short sides"),
        ("--data.crop-scale", scale, 0 < scale[0] <= scale[1] <= 1, "0 < low ≤ high ≤ 1"),
        ("--data.crop-ratio", ratio, 0 < ratio[0] <= ratio[1] < math.inf, "0 < low ≤ high"),
        ("--data.std", data.std, all(0 < value < math.inf for value in data.std), "three positive numbers"),
    ]


def optim_rules(optim: OptimConfig) -> list[Rule]:
    return [
        ("--optim.weight-decay", optim.weight_decay, 0 <= optim.weight_decay < math.inf, "at least 0 (0 = none)"),
        ("--optim.nesterov", optim.nesterov, optim.momentum > 0 or not optim.nesterov, "off without momentum"),
        ("--optim.div", optim.div, 0 < optim.div < math.inf, "positive"),
        ("--optim.final-div", optim.final_div, 0 < optim.final_div < math.inf, "positive"),
        ("--optim.pct-start", optim.pct_start, 0 < optim.pct_start < 1, "between 0 and 1, both excluded"),
        ("--optim.peak-lr", optim.peak_lr, 0 < optim.peak_lr < math.inf, "positive"),
        ("--optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "0 to below 1"),
    ]


def regularize_rules(reg: RegularizeConfig) -> list[Rule]:
    erasing = reg.erasing_probability
    return [
        ("--regularize.label-smoothing", reg.label_smoothing, 0 <= reg.label_smoothing < 1, "0 to below 1"),
        ("--regularize.ema-decay", reg.ema_decay, 0 <= reg.ema_decay < 1, "0 (off) to below 1"),
        ("--regularize.mixup-alpha", reg.mixup_alpha, 0 <= reg.mixup_alpha < math.inf, "at least 0 (0 = off)"),
        ("--regularize.cutmix-alpha", reg.cutmix_alpha, 0 <= reg.cutmix_alpha < math.inf, "at least 0 (0 = off)"),
        ("--regularize.rand-ops", reg.rand_ops, reg.rand_ops >= 1, "at least 1"),
        ("--regularize.rand-magnitude", reg.rand_magnitude, 0 <= reg.rand_magnitude <= 30, "0 to 30"),
        ("--regularize.erasing-probability", erasing, 0 <= erasing <= 1, "0 (off) to 1"),
    ]


def pixel_rules(data: DataConfig) -> list[Rule]:
    # The networks shrink an image 32 times. For smaller images, bf16 gradients of the last stage are garbage on a CPU,
    # and sometimes NaN (measured at 16 px with torch 2.15: in 13 of 45 short runs).
    least = [
        ("--data.resolution", data.resolution, 32),
        ("--data.start-resolution", data.start_resolution, 32),
        ("--data.val-crop", data.val_crop, 32),
        *(("--data.train-sides", side, 8) for side in data.train_sides),
        ("--data.val-side", data.val_side, 8),
        ("--data.resolution-multiple", data.resolution_multiple, 1),
    ]
    return [(option, pixels, low <= pixels <= 2048, f"{low} to 2048 pixels") for option, pixels, low in least]


def stem_rules(config: Config) -> list[Rule]:
    data, rule = config.data, "even with --model.blocked-stem, which takes pixels in blocks of 2x2"
    sizes = [
        ("--data.resolution", data.resolution),
        ("--data.start-resolution", data.start_resolution),
        ("--data.val-crop", data.val_crop),
        ("--data.resolution-multiple", data.resolution_multiple),
    ]
    return [(option, size, size % 2 == 0, rule) for option, size in sizes if config.model.blocked_stem]


def to_json(config: Any) -> dict[str, Any]:
    """The tree as plain JSON values."""
    return dataclasses.asdict(config)


def from_json(kind: Any, value: Any, path: str = "") -> Any:
    """Build `kind` from JSON values. An unknown, missing or mistyped field raises UserError with its path."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints, known = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
        needed = {f.name for f in dataclasses.fields(kind) if not f.metadata.get("added")}
        if not isinstance(value, dict) or not needed <= set(value) <= known:
            odd = sorted(set(value) - known | needed - set(value)) if isinstance(value, dict) else value
            raise UserError(
                f"config {path or 'root'}: fields {odd} are unknown or missing: it was written by another version "
                "of resnet-spot; use that version, or start a new run (RUN=another-name)"
            )
        return kind(**{name: from_json(hints[name], value[name], f"{path}.{name}".lstrip(".")) for name in value})
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[1:] == (...,) else kinds
        if len(kinds) == len(value):
            return tuple(from_json(k, v, f"{path}[]") for k, v in zip(kinds, value, strict=True))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and (isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"config {path}={value!r} is not a {kind}: fix the file or start a new run (RUN=another-name)")


def flatten(config: Any, *, operational: bool = True, prefix: str = "") -> dict[str, Any]:
    """The values by dotted name, with or without the operational fields."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, operational=operational, prefix=f"{name}.")
        elif operational or not f.metadata.get("operational"):
            flat[name] = value
    return flat


def config_hash(config: Config) -> str:
    """A hash of what is computed: operational fields do not count."""
    return hashlib.sha256(json.dumps(flatten(config, operational=False), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Config, new: Config) -> list[str]:
    """`optim.peak_lr: 0.1 -> 0.2` for every field that changes what is computed."""
    before, after = flatten(old, operational=False), flatten(new, operational=False)
    return [f"{name}: {before[name]!r} -> {after[name]!r}" for name in before if before[name] != after[name]]
