"""What the values of a config must be. Each rule names its option, the value, and what it must be.

torch is not imported here.
"""

from __future__ import annotations

import math
from itertools import pairwise

from trainer.contract import UserError
from trainer.recipes.config import AverageConfig, Config, DataConfig
from trainer.recipes.effects import effect_rules
from trainer.recipes.networks import has_skipped_blocks, is_resnet, network_of
from trainer.recipes.pixels import pixel_rules, ramp_rules, stem_rules
from trainer.recipes.rule import Rule, how_to_type


def checked(config: Config) -> Config:
    """Return this config. Raises UserError with the first value that breaks a rule, and the rule."""
    for option, value, holds, rule in rules_of(config):
        if not holds:
            fix = "" if "; pass " in rule else f"; pass another value for {option}"
            raise UserError(f"{option} is {value}: it must be {rule}{fix}")
    _ = config.micro_batches  # whole, or a UserError
    return config


def rules_of(config: Config) -> list[Rule]:
    """What the values of a config must be."""
    rules = [
        *general_rules(config),
        *model_rules(config),
        *data_rules(config.data),
        *order_rules(config),
        *optim_rules(config),
    ]
    rules += [*schedule_rules(config), *average_rules(config.average, config), *regularize_rules(config)]
    rules += [*pixel_rules(config), *stem_rules(config)]
    return [*rules, *ramp_rules(config), *effect_rules(config)]


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
        *sync_norm_rules(config),
        ("--seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63-1"),
        ("--patience", config.patience, config.patience >= 0, "at least 0 (0 = train to the end)"),
        ("--checkpoint.every-seconds", seconds, seconds > 0, "positive"),
    ]


def model_rules(config: Config) -> list[Rule]:
    model, network = config.model, network_of(config.model.name)
    name, classes, depth = model.name, model.num_classes, model.stochastic_depth
    named = not model.weights.startswith("IMAGENET1K_") or model.weights in network.weights
    choices = f"one that torchvision has of {name} ({', '.join(network.weights) or 'none'}), a file or s3://bucket/key"
    choices += f"; pass --model.weights {network.weights[-1] if network.weights else chr(34) * 2}"
    return [
        ("--model.name", name, not network.refused, network.refused),
        ("--model.num-classes", classes, classes == 0 or classes >= 2, "at least 2 (0 = as many as the data has)"),
        ("--model.weights", model.weights, named, choices),
        ("--model.stochastic-depth", depth, 0 <= depth < 1, "0 (as torchvision has it) to below 1"),
        ("--model.stochastic-depth", depth, has_skipped_blocks(name) or not depth,
         f"0 with --model.name {name}, which has no blocks to skip"),
        ("--cuda-graphs", config.cuda_graphs, not config.cuda_graphs or (is_resnet(name) and not depth),
         "off with a network that draws random numbers: a ResNet without --model.stochastic-depth draws none"),
        *resnet_rules(config),
    ]  # fmt: skip


def resnet_rules(config: Config) -> list[Rule]:
    """What is made for ResNets alone."""
    model, other = config.model, f"with --model.name {config.model.name}: it is made for ResNets"
    given = [
        ("--fused-norm", config.fused_norm, config.fused_norm, "off"),
        ("--model.blocked-stem", model.blocked_stem, model.blocked_stem, "off"),
        ("--model.blur-pool", model.blur_pool, model.blur_pool != "none", "none"),
        ("--model.init", model.init, model.init != "torchvision", "torchvision"),
        ("--model.zero-init", model.zero_init, model.zero_init, "off"),
    ]
    return [
        (option, value, is_resnet(model.name) or not used, f"{off} {other}; pass {how_to_type(option, off)}")
        for option, value, used, off in given
    ]


def sync_norm_rules(config: Config) -> list[Rule]:
    option, value, off = "--model.sync-norm", config.model.sync_norm, not config.model.sync_norm
    return [
        (option, value, off or not config.fused_norm, "off with --fused-norm, whose kernels know one process"),
        (option, value, off or not config.compile, "off with --compile, which does not trace its exchange"),
        (option, value, off or not config.cuda_graphs, "off with --cuda-graphs, which work for one process"),
    ]


def fused_norm_rules(config: Config) -> list[Rule]:
    option, value, off = "--fused-norm", config.fused_norm, not config.fused_norm
    return [
        (option, value, off or not config.compile, "off with --compile, which fuses these layers itself"),
        (option, value, off or config.channels_last, "off with --no-channels-last: its kernels want that layout"),
        (option, value, off or not config.model.stochastic_depth, "off with --model.stochastic-depth"),
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
        ("--data.mean", data.mean, all(0 <= value <= 1 for value in data.mean), "three numbers, 0 to 1"),
        ("--data.std", data.std, all(0 < value < math.inf for value in data.std), "three positive numbers"),
    ]


def order_rules(config: Config) -> list[Rule]:
    repeats, batch, weights = config.data.repeats, config.global_batch_size, config.regularize.class_weights
    reg, is_balanced = config.regularize, config.data.sampling == "balanced"
    mixes = reg.mixup_alpha or reg.cutmix_alpha
    return [
        ("--data.repeats", repeats, repeats >= 1, "at least 1"),
        ("--data.repeats", repeats, repeats == 1 or not is_balanced,
         "1 with balanced sampling; pass --data.repeats 1"),
        ("--data.repeats", repeats, repeats < 1 or batch % repeats == 0, f"a divisor of --global-batch-size {batch}"),
        ("--data.repeats", repeats, not mixes or repeats < max(2, batch),
         f"below --global-batch-size {batch} with mixup or CutMix, which would mix an image with itself"),
        ("--regularize.class-weights", weights, weights == "none" or not is_balanced,
         "none with --data.sampling balanced: each of them alone makes the classes equal"),
    ]  # fmt: skip


def optim_rules(config: Config) -> list[Rule]:
    optim, fp16 = config.optim, config.precision == "fp16"
    betas, multiplier, decay, stages = optim.betas, optim.head_lr_multiplier, optim.layer_decay, optim.freeze_stages
    return [
        ("--optim.name", optim.name, not (optim.name == "lamb" and fp16), "sgd or adamw with --precision fp16"),
        ("--optim.betas", betas, all(0 <= beta < 1 for beta in betas), "two numbers, 0 to below 1"),
        ("--optim.eps", optim.eps, 0 < optim.eps < math.inf, "positive"),
        ("--optim.weight-decay", optim.weight_decay, 0 <= optim.weight_decay < math.inf, "at least 0 (0 = none)"),
        ("--optim.weight-decay", optim.weight_decay, optim.weight_decay < 1 or not optim.decoupled_decay,
         "below 1 with --optim.decoupled-decay: it is the share that a step at --optim.peak-lr takes off each weight"),
        ("--optim.decoupled-decay", optim.decoupled_decay, optim.name == "sgd" or not optim.decoupled_decay,
         f"off with --optim.name {optim.name}, which has a decay of its own"),
        ("--optim.clip-norm", optim.clip_norm, 0 <= optim.clip_norm < math.inf, "at least 0 (0 = off)"),
        ("--optim.head-lr-multiplier", multiplier, 0 < multiplier < math.inf, "positive"),
        ("--optim.layer-decay", decay, 0 < decay <= 1, "above 0, at most 1 (1 = all alike)"),
        ("--optim.freeze-stages", stages, stages >= 0, "at least 0 (0 = none)"),
        ("--optim.freeze-stages", stages, stages < 6 or not is_resnet(config.model.name),
         f"at most 5 with --model.name {config.model.name}: the last of its 6 stages, the classifier, must train"),
        ("--optim.freeze-stages", stages, bool(config.model.weights) or not stages,
         "0 without --model.weights: random weights would stay random"),
        ("--optim.nesterov", optim.nesterov, optim.momentum > 0 or not optim.nesterov, "off without momentum"),
        ("--optim.div", optim.div, 0 < optim.div < math.inf, "positive"),
        ("--optim.final-div", optim.final_div, 0 < optim.final_div < math.inf, "positive"),
        ("--optim.pct-start", optim.pct_start, 0 < optim.pct_start < 1, "between 0 and 1, both excluded"),
        ("--optim.peak-lr", optim.peak_lr, 0 < optim.peak_lr < math.inf, "positive"),
        ("--optim.momentum", optim.momentum, 0 <= optim.momentum < 1, "0 to below 1"),
    ]  # fmt: skip


def schedule_rules(config: Config) -> list[Rule]:
    schedule, epochs = config.schedule, config.epochs
    kind, warmup, cooldown, drops = (
        schedule.kind,
        schedule.warmup_epochs,
        schedule.cooldown_epochs,
        schedule.decay_epochs,
    )
    end = schedule.final_share
    is_step, is_constant, rest = kind == "step", kind == "constant", epochs - warmup
    return [
        ("--schedule.warmup-epochs", warmup, 0 <= warmup < epochs,
         f"0 to below --epochs {epochs}; pass --schedule.warmup-epochs {epochs / 4:g}"),
        ("--schedule.kind", kind, kind != "one_cycle" or not warmup, "another one with a warm-up; OneCycle has one"),
        ("--schedule.warmup-start", schedule.warmup_start, 0 <= schedule.warmup_start <= 1, "a share, 0 to 1"),
        ("--schedule.warmup-start", schedule.warmup_start, bool(warmup or not schedule.warmup_start),
         "0 without --schedule.warmup-epochs"),
        ("--schedule.warmup-start", schedule.warmup_start, not (warmup and schedule.by_epoch and not
         schedule.warmup_start), "above 0 with --schedule.by-epoch: else the whole first epoch has a rate of 0"),
        ("--schedule.final-share", end, 0 <= end <= 1, "a share, 0 to 1"),
        ("--schedule.final-share", end, kind in ("cosine", "linear") or not end or cooldown > 0,
         "0 with --schedule.kind one_cycle (see --optim.final-div), step, and constant without a cool-down"),
        ("--schedule.decay-epochs", drops, not drops or is_step, "given with --schedule.kind step alone"),
        ("--schedule.decay-epochs", drops, bool(drops) or not is_step, "one or several epochs"),
        ("--schedule.decay-epochs", drops, not drops or rises((0, *drops, epochs)),
         f"rising epochs above 0 and below --epochs {epochs}"),
        ("--schedule.decay-epochs", drops, not drops or warmup <= drops[0],
         f"epochs from --schedule.warmup-epochs {warmup:g} on: the warm-up would hide the earlier ones"),
        ("--schedule.decay-factor", schedule.decay_factor, 0 < schedule.decay_factor <= 1, "above 0, at most 1"),
        ("--schedule.cooldown-epochs", cooldown, 0 <= cooldown <= rest, f"0 to {rest:g}, the epochs after the warm-up"),
        ("--schedule.cooldown-epochs", cooldown, is_constant or not cooldown, "0 unless --schedule.kind is constant"),
    ]  # fmt: skip


def rises(numbers: tuple[int, ...]) -> bool:
    return all(before < after for before, after in pairwise(numbers))


def average_rules(average: AverageConfig, config: Config) -> list[Rule]:
    half, start, late = average.half_life_steps, average.start_epoch, average.late_epochs
    decay, every, ema = config.regularize.ema_decay, average.every_steps, config.keeps_ema
    alone = "without an EMA (--average.half-life-steps or --regularize.ema-decay)"
    return [
        ("--average.half-life-steps", half, 0 <= half < math.inf, "at least 0 (0 = off)"),
        (
            "--average.half-life-steps",
            half,
            not (half and decay),
            "0 with --regularize.ema-decay, since one of them says it; pass --average.half-life-steps 0",
        ),
        ("--average.every-steps", every, every >= 1, "at least 1"),
        ("--average.every-steps", every, ema or every == 1, f"1 {alone}"),
        ("--average.start-epoch", start, 0 <= start < config.epochs, f"0 to below --epochs {config.epochs}"),
        ("--average.start-epoch", start, ema or not start, f"0 {alone}"),
        ("--average.late-epochs", late, 0 <= late <= config.epochs, f"0 (off) to --epochs {config.epochs}"),
        ("--average.late-epochs", late, not (late and config.patience), "0 with --patience, which may spare them"),
    ]


def regularize_rules(config: Config) -> list[Rule]:
    reg, batch = config.regularize, config.device_batch_size
    smoothing = reg.label_smoothing
    erasing, threshold, most = reg.erasing_probability, reg.bce_threshold, 10 if reg.augment == "timm_rand" else 30
    alone, is_bce = "0 with --device-batch-size 1: there is no other image to mix with", reg.loss != "cross_entropy"
    return [
        ("--regularize.bce-threshold", threshold, 0 <= threshold < 1, "0 (off) to below 1"),
        ("--regularize.bce-threshold", threshold, is_bce or not threshold, "0 with --regularize.loss cross_entropy"),
        ("--regularize.bce-threshold", threshold, not threshold or smoothing / 2 <= threshold <= 1 - smoothing,
         f"{smoothing / 2:g} to {1 - smoothing:g}, between the targets of --regularize.label-smoothing {smoothing:g}"),
        ("--regularize.label-smoothing", reg.label_smoothing, 0 <= reg.label_smoothing < 1, "0 to below 1"),
        ("--regularize.ema-decay", reg.ema_decay, 0 <= reg.ema_decay < 1, "0 (off) to below 1"),
        ("--regularize.mixup-alpha", reg.mixup_alpha, 0 <= reg.mixup_alpha < math.inf, "at least 0 (0 = off)"),
        ("--regularize.mixup-alpha", reg.mixup_alpha, batch > 1 or not reg.mixup_alpha, alone),
        ("--regularize.cutmix-alpha", reg.cutmix_alpha, 0 <= reg.cutmix_alpha < math.inf, "at least 0 (0 = off)"),
        ("--regularize.cutmix-alpha", reg.cutmix_alpha, batch > 1 or not reg.cutmix_alpha, alone),
        ("--regularize.rand-ops", reg.rand_ops, reg.rand_ops >= 1, "at least 1"),
        ("--regularize.rand-magnitude", reg.rand_magnitude, 0 <= reg.rand_magnitude <= most, f"0 to {most}"),
        ("--regularize.rand-std", reg.rand_std, 0 <= reg.rand_std < math.inf, "at least 0"),
        ("--regularize.rand-std", reg.rand_std, reg.augment == "timm_rand" or not reg.rand_std,
         "0 unless --regularize.augment is timm_rand"),
        ("--regularize.erasing-probability", erasing, 0 <= erasing <= 1, "0 (off) to 1"),
    ]  # fmt: skip
