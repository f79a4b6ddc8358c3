"""The config of a run: what it computes, as a tree of frozen dataclasses.

`contract.RunEnv` says where a run lives. `named` has the named configs, `rules` what the values must be, `fields` their
JSON. torch is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from trainer.contract import RefusedError, UserError

Precision = Literal["fp32", "bf16", "fp16"]
# A run may continue with another value of these fields: they change speed or safety, but nothing that is computed.
OPERATIONAL = MappingProxyType({"operational": True})
ADDED = MappingProxyType({"added": True})  # a config of an older version lacks it, and its default is what that did


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = "resnet50"  # a torchvision classification model: resnet18, resnet50, …
    num_classes: int = 1000  # outputs; 0 = as many as the data has classes
    weights: str = ""  # start from: "" = random, IMAGENET1K_V1 or _V2 = torchvision's, or a file or s3:// URI
    blocked_stem: bool = field(default=False, metadata=ADDED)  # ResNet's first convolution over 2x2 blocks of pixels
    blur_pool: Literal["none", "convs", "all"] = field(default="none", metadata=ADDED)  # blur before what shrinks
    init: Literal["torchvision", "composer"] = field(default="torchvision", metadata=ADDED)  # whose random start
    zero_init: bool = field(default=False, metadata=ADDED)  # each residual block begins as the identity
    # BatchNorm over what all processes compute at once: what is computed then depends on their number
    sync_norm: bool = field(default=False, metadata=ADDED)
    stochastic_depth: float = field(default=0.0, metadata=ADDED)  # chance to skip the last block; 0: torchvision's


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    resolution: int = 224  # training pixels after the ramp
    start_resolution: int = 224  # training pixels before the ramp (progressive resizing)
    ramp_start_epoch: float = 0.0  # the ramp from start_resolution to resolution begins here
    ramp_end_epoch: float = 0.0  # the ramp from start_resolution to resolution ends here, before the last epoch
    resolution_multiple: int = 32  # resolutions on the ramp are multiples of this
    val_resize: int = 232  # validation: short side after resizing
    val_crop: int = 224  # validation: centre crop
    crop_scale: tuple[float, float] = (0.08, 1.0)  # random resized crop: share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random resized crop: width over height
    flip_probability: float = 0.5  # horizontal flip
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in 0..1; ImageNet's by default
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # pixels are divided by it; ImageNet's by default
    train_sides: tuple[int, ...] = (256, 128)  # preparation: short sides that training images are stored with
    val_side: int = 320  # preparation: short side that validation images are stored with
    quality: int = 90  # preparation: JPEG quality of what is re-encoded
    workers: int = field(default=8, metadata=OPERATIONAL)  # decoding threads; 0 = one per core
    copy_per_crop: bool = field(default=False, metadata=ADDED)  # each crop from the smallest stored copy that serves it
    sampling: Literal["shuffled", "balanced"] = field(default="shuffled", metadata=ADDED)  # balanced: all classes alike
    repeats: int = field(default=1, metadata=ADDED)  # crops of each image in a batch (repeated augmentation)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    name: Literal["sgd", "adamw", "lamb"] = field(default="sgd", metadata=ADDED)  # what moves the weights
    peak_lr: float = 0.5  # highest learning rate, for the global batch
    momentum: float = 0.9  # of SGD
    nesterov: bool = False  # Nesterov's form of momentum
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=ADDED)  # of AdamW and LAMB
    eps: float = field(default=1e-8, metadata=ADDED)  # of AdamW and LAMB: added to what they divide by
    weight_decay: float = 5e-5  # pull towards zero, of the weights that optim.decayed names
    # Which weights decay. not_norms: biases, too; not_bn: by name, as FFCV, so that norms of shortcuts decay, too
    decayed: Literal["weights", "not_norms", "not_bn", "all"] = field(default="weights", metadata=ADDED)
    decoupled_decay: bool = field(default=False, metadata=ADDED)  # of SGD: shrink by weight_decay x lr / peak_lr
    clip_norm: float = field(default=0.0, metadata=ADDED)  # longest gradient of all weights together; 0 = off
    head_lr_multiplier: float = field(default=1.0, metadata=ADDED)  # learning rate of the classifier, over the others'
    layer_decay: float = field(default=1.0, metadata=ADDED)  # each stage's learning rate over that of the next one
    freeze_stages: int = field(default=0, metadata=ADDED)  # so many stages from the first on keep their weights
    div: float = 25.0  # OneCycle starts at peak_lr / div
    final_div: float = 1e4  # and ends at peak_lr / div / final_div
    pct_start: float = 0.3  # share of the steps that the learning rate rises
    anneal: Literal["cos", "linear"] = "cos"  # shape of rise and fall


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Of the learning rate. OneCycle has its numbers in `optim`; all others have theirs here."""

    kind: Literal["one_cycle", "cosine", "linear", "step", "constant"] = "one_cycle"  # after the warm-up
    warmup_epochs: float = 0.0  # rise along a line to peak_lr
    warmup_start: float = 0.0  # from this share of it
    warmup_overlaps: bool = False  # the fall counts from the first epoch, as timm's, not from the warm-up
    final_share: float = 0.0  # of peak_lr, at the end of cosine, linear, and of a cool-down
    decay_epochs: tuple[int, ...] = ()  # of step: here the learning rate is multiplied
    decay_factor: float = 0.1  # of step: the learning rate is multiplied by this
    cooldown_epochs: float = 0.0  # of constant: fall along a line at the end
    by_epoch: bool = False  # the learning rate stays the same in an epoch


@dataclass(frozen=True, kw_only=True)
class RegularizeConfig:
    loss: Literal["cross_entropy", "bce", "bce_mean"] = field(default="cross_entropy", metadata=ADDED)  # bce: summed
    bce_threshold: float = field(default=0.0, metadata=ADDED)  # targets above it count as 1; 0 = as they are
    class_weights: Literal["none", "balanced"] = field(default="none", metadata=ADDED)  # rare classes count more
    label_smoothing: float = 0.1  # share of the target spread over all classes
    mixup_alpha: float = 0.0  # 0 = off; with cutmix on too, each micro-batch gets one of them
    cutmix_alpha: float = 0.0  # 0 = off
    augment: Literal["none", "trivial", "rand", "timm_rand"] = "none"  # TrivialAugment, RandAugment, or timm's
    # How pixels are read that augmentation moves
    interpolation: Literal["nearest", "bilinear"] = field(default="nearest", metadata=ADDED)
    rand_ops: int = 2  # RandAugment: operations per image
    rand_magnitude: int = 9  # RandAugment: 0 (weak) to 30, timm's to 10
    rand_std: float = field(default=0.0, metadata=ADDED)  # timm's: deviation of the magnitude
    erasing_probability: float = 0.0  # of erasing a random box (random erasing); 0 = off
    ema_decay: float = 0.0  # average of weights and BatchNorm buffers, per update; 0 = off


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Of the weights. An EMA by its decay is `regularize.ema_decay`."""

    half_life_steps: float = 0.0  # EMA: after so many steps a weight counts half; 0 = off
    every_steps: int = 1  # EMA: it moves after every so many steps
    start_epoch: float = 0.0  # EMA: until here it is a copy of the weights
    warms_up: bool = True  # EMA: its decay rises, so that a young one is not the random start
    late_epochs: int = 0  # mean of the weights after each of the last epochs (SWA), scored, too; 0 = off


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_seconds: float = field(default=45.0, metadata=OPERATIONAL)  # the promise is a minute
    accept_changes: bool = field(default=False, metadata=OPERATIONAL)  # continue a run with another config than before


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `global_batch_size` images make a step; gradients accumulate where a device takes fewer."""

    recipe: str = "custom"  # the name that reports show: that of the recipe, so leave it out
    epochs: int = 90  # passes over the training images; the ramp of a recipe that grows images follows in proportion
    global_batch_size: int = 256  # images per step, over all devices
    device_batch_size: int = 256  # images per micro-batch on one device
    # Where to train. auto: on a GPU, or on a CPU where there is none
    device: Literal["auto", "cuda", "cpu"] = field(default="auto", metadata=OPERATIONAL | ADDED)
    precision: Precision = "bf16"  # of the forward pass; weights and optimizer stay fp32
    channels_last: bool = True  # NHWC in memory: what tensor cores want
    compile: bool = False  # torch.compile: slower start, faster steps; where it fails, the attempt goes on without
    compile_strict: bool = field(default=False, metadata=OPERATIONAL | ADDED)  # stop where compiling fails
    cuda_graphs: bool = field(default=False, metadata=ADDED)  # launch a step whole: for small images on a fast GPU
    fused_norm: bool = field(default=False, metadata=ADDED)  # BatchNorm, addition and ReLU as one kernel, on a GPU
    bf16_gradients: bool = field(default=False, metadata=ADDED)  # several processes exchange half the bytes
    deterministic: bool = False  # only bitwise reproducible kernels, at a cost in speed
    seed: int = 0  # of weights, order, crops and mixing
    val_every_epochs: int = 1  # validate after every so many epochs, and at the end
    patience: int = field(default=0, metadata=ADDED)  # stop after so many validations without a better top-1; 0 = never
    val_batch_size: int = field(default=256, metadata=OPERATIONAL)  # images per device
    log_every_steps: int = field(default=20, metadata=OPERATIONAL)  # steps between console lines and finite checks
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = field(default=ScheduleConfig(), metadata=ADDED)
    average: AverageConfig = field(default=AverageConfig(), metadata=ADDED)
    regularize: RegularizeConfig = RegularizeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def keeps_ema(self) -> bool:
        """Whether there is an exponential moving average of the weights."""
        return bool(self.regularize.ema_decay or self.average.half_life_steps)

    @property
    def micro_batches(self) -> int:
        """Of a step, over all processes. Raises UserError unless that is a whole number."""
        count, rest = divmod(self.global_batch_size, self.device_batch_size)
        if rest or not count:
            fits = [n for n in range(1, self.global_batch_size + 1) if self.global_batch_size % n == 0]
            near = (max((n for n in fits if n < self.device_batch_size), default=1),
                    min((n for n in fits if n > self.device_batch_size), default=self.global_batch_size))  # fmt: skip
            raise UserError(
                f"global_batch_size={self.global_batch_size} is no multiple of device_batch_size="
                f"{self.device_batch_size}: pass --device-batch-size {' or '.join(map(str, sorted(set(near))))}, "
                "or change --global-batch-size"
            )
        return count

    def micro_batches_of(self, rank: int, world_size: int) -> range:
        """The numbers of a step's micro-batches that a process computes. Some processes may have one more than others.

        Raises RefusedError where a process would have none, or fewer than another and BatchNorm waits for all: with
        another number of processes the run may go on.
        """
        if self.model.sync_norm and self.micro_batches % world_size:
            even = [str(n) for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
            raise RefusedError(
                f"--model.sync-norm with {world_size} processes: each must compute as many of the {self.micro_batches} "
                f"micro-batches of a step as the others; use {', '.join(even)} processes (NPROC=), or leave it out"
            )
        if world_size > self.micro_batches:
            fits = [n for n in range(1, self.global_batch_size // world_size + 1) if self.global_batch_size % n == 0]
            smaller = f"pass --device-batch-size {fits[-1]}, or " if fits else ""
            raise RefusedError(
                f"{world_size} processes are too many for {self.micro_batches} micro-batches of a step: each computes "
                f"one at least, and there are global_batch_size={self.global_batch_size} / device_batch_size="
                f"{self.device_batch_size} of them; {smaller}use at most {self.micro_batches} processes (NPROC=)"
            )
        return range(rank, self.micro_batches, world_size)

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
