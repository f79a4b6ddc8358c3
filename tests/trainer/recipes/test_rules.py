"""Every rule of a config's values: what breaks it is named with the option, the value and the rule."""

from __future__ import annotations

import re

import pytest

from tests.trainer.recipes.test_config import with_value
from trainer.contract import UserError
from trainer.recipes.command_line import command_line
from trainer.recipes.config import (
    AverageConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    ScheduleConfig,
)
from trainer.recipes.fields import flatten
from trainer.recipes.rules import checked, rules_of

BREAKS = {
    "--epochs": Config(epochs=0),
    "--global-batch-size": Config(global_batch_size=0),
    "--device-batch-size": Config(device_batch_size=-1),
    "--val-every-epochs": Config(val_every_epochs=0),
    "--val-batch-size": Config(val_batch_size=0),
    "--log-every-steps": Config(log_every_steps=0),
    "--seed": Config(seed=-1),
    "--model.name": Config(model=ModelConfig(name="googlenet")),
    "--model.num-classes": Config(model=ModelConfig(num_classes=1)),
    "--model.weights": Config(model=ModelConfig(name="resnet18", weights="IMAGENET1K_V2")),
    "--data.workers": Config(data=DataConfig(workers=-1)),
    "--data.resolution": Config(data=DataConfig(resolution=16, start_resolution=32)),
    "--data.start-resolution": Config(data=DataConfig(start_resolution=4096)),
    "--data.val-crop": Config(data=DataConfig(val_crop=256, val_resize=232)),
    "--data.val-side": Config(data=DataConfig(val_side=0)),
    "--data.train-sides": Config(data=DataConfig(train_sides=(256, 256))),
    "--data.resolution-multiple": Config(data=DataConfig(resolution_multiple=0)),
    "--data.crop-scale": Config(data=DataConfig(crop_scale=(0.5, 0.2))),
    "--data.crop-ratio": Config(data=DataConfig(crop_ratio=(0.0, 1.0))),
    "--data.mean": Config(data=DataConfig(mean=(float("nan"), 0.0, 0.0))),
    "--data.ramp-start-epoch": Config(data=DataConfig(start_resolution=96, ramp_start_epoch=9, ramp_end_epoch=8)),
    "--data.ramp-end-epoch": Config(epochs=9, data=DataConfig(start_resolution=96, ramp_end_epoch=8.5)),
    "--data.std": Config(data=DataConfig(std=(0.2, 0.0, 0.2))),
    "--data.flip-probability": Config(data=DataConfig(flip_probability=1.1)),
    "--data.quality": Config(data=DataConfig(quality=101)),
    "--optim.pct-start": Config(optim=OptimConfig(pct_start=1.0)),
    "--optim.peak-lr": Config(optim=OptimConfig(peak_lr=float("nan"))),
    "--optim.momentum": Config(optim=OptimConfig(momentum=1.0)),
    "--optim.nesterov": Config(optim=OptimConfig(nesterov=True, momentum=0.0)),
    "--optim.weight-decay": Config(optim=OptimConfig(weight_decay=-1e-4)),
    "--optim.div": Config(optim=OptimConfig(div=0.0)),
    "--optim.final-div": Config(optim=OptimConfig(final_div=0.0)),
    "--regularize.label-smoothing": Config(regularize=RegularizeConfig(label_smoothing=1.0)),
    "--regularize.ema-decay": Config(regularize=RegularizeConfig(ema_decay=1.0)),
    "--regularize.mixup-alpha": Config(regularize=RegularizeConfig(mixup_alpha=-0.1)),
    "--regularize.cutmix-alpha": Config(regularize=RegularizeConfig(cutmix_alpha=float("inf"))),
    "--regularize.rand-ops": Config(regularize=RegularizeConfig(rand_ops=0)),
    "--regularize.rand-magnitude": Config(regularize=RegularizeConfig(rand_magnitude=31)),
    "--regularize.erasing-probability": Config(regularize=RegularizeConfig(erasing_probability=1.01)),
    "--data.repeats": Config(data=DataConfig(repeats=0)),
    "--regularize.class-weights": Config(
        data=DataConfig(sampling="balanced"), regularize=RegularizeConfig(class_weights="balanced")
    ),
    "--patience": Config(patience=-1),
    "--model.stochastic-depth": Config(model=ModelConfig(stochastic_depth=1.0)),
    "--model.blur-pool": Config(model=ModelConfig(name="vit_b_16", blur_pool="convs")),
    "--model.blocked-stem": Config(model=ModelConfig(name="vgg11", blocked_stem=True)),
    "--model.init": Config(model=ModelConfig(name="regnet_y_400mf", init="composer")),
    "--model.zero-init": Config(model=ModelConfig(name="regnet_y_400mf", zero_init=True)),
    "--optim.name": Config(precision="fp16", optim=OptimConfig(name="lamb")),
    "--optim.betas": Config(optim=OptimConfig(betas=(0.9, 1.0))),
    "--optim.eps": Config(optim=OptimConfig(eps=0.0)),
    "--optim.decoupled-decay": Config(optim=OptimConfig(name="adamw", decoupled_decay=True)),
    "--optim.clip-norm": Config(optim=OptimConfig(clip_norm=-1.0)),
    "--optim.head-lr-multiplier": Config(optim=OptimConfig(head_lr_multiplier=0.0)),
    "--optim.layer-decay": Config(optim=OptimConfig(layer_decay=1.1)),
    "--optim.freeze-stages": Config(optim=OptimConfig(freeze_stages=-1)),
    "--schedule.warmup-epochs": Config(epochs=5, schedule=ScheduleConfig(kind="cosine", warmup_epochs=5)),
    "--schedule.kind": Config(schedule=ScheduleConfig(warmup_epochs=5)),
    "--schedule.warmup-start": Config(schedule=ScheduleConfig(warmup_start=1.1)),
    "--schedule.final-share": Config(schedule=ScheduleConfig(final_share=-0.1)),
    "--schedule.decay-epochs": Config(epochs=90, schedule=ScheduleConfig(kind="step", decay_epochs=(60, 30))),
    "--schedule.decay-factor": Config(schedule=ScheduleConfig(decay_factor=0.0)),
    "--schedule.warmup-overlaps": Config(schedule=ScheduleConfig(kind="cosine", warmup_overlaps=True)),
    "--optim.anneal": Config(optim=OptimConfig(anneal="linear"), schedule=ScheduleConfig(kind="cosine")),
    "--schedule.cooldown-epochs": Config(schedule=ScheduleConfig(kind="cosine", cooldown_epochs=2)),
    "--average.half-life-steps": Config(
        average=AverageConfig(half_life_steps=9), regularize=RegularizeConfig(ema_decay=0.9)
    ),
    "--average.every-steps": Config(average=AverageConfig(every_steps=0)),
    "--average.start-epoch": Config(epochs=9, average=AverageConfig(start_epoch=9)),
    "--average.late-epochs": Config(epochs=9, average=AverageConfig(late_epochs=10)),
    "--regularize.bce-threshold": Config(regularize=RegularizeConfig(bce_threshold=0.2)),
    "--regularize.rand-std": Config(regularize=RegularizeConfig(augment="rand", rand_std=0.5)),
    "--cuda-graphs": Config(cuda_graphs=True, model=ModelConfig(stochastic_depth=0.05)),
    "--compile-strict": Config(compile_strict=True),
    "--fused-norm": Config(fused_norm=True, compile=True),
    "--model.sync-norm": Config(model=ModelConfig(sync_norm=True), compile=True),
    "--checkpoint.every-seconds": Config(checkpoint=CheckpointConfig(every_seconds=0.0)),
}


@pytest.mark.parametrize("option", BREAKS)
def test_a_value_out_of_range_is_named_with_its_rule(option: str) -> None:
    value = flatten(BREAKS[option])[option.removeprefix("--").replace("-", "_")]
    with pytest.raises(
        UserError, match=f"^{re.escape(f'{option} is {value}: it must be ')}.+; pass (another value|--[a-z])"
    ):
        checked(BREAKS[option])


@pytest.mark.parametrize("name", ["resolution", "start_resolution", "val_crop", "resolution_multiple"])
def test_the_blocked_stem_takes_even_sizes_alone(name: str) -> None:
    data = with_value(DataConfig(ramp_end_epoch=9), name, 225)
    assert checked(Config(data=data)) == Config(data=data)
    option = f"--data.{name.replace('_', '-')}"
    with pytest.raises(
        UserError, match=f"^{option} is 225: it must be even with --model.blocked-stem, .+ pass another"
    ):
        checked(Config(data=data, model=ModelConfig(blocked_stem=True)))
    assert checked(Config(model=ModelConfig(blocked_stem=True))).model.blocked_stem


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(schedule=ScheduleConfig(kind="step")), "--schedule.decay-epochs is .*one or several epochs"),
        (Config(schedule=ScheduleConfig(kind="cosine", decay_epochs=(3,))), "--schedule.decay-epochs .*step alone"),
        (Config(epochs=3, schedule=ScheduleConfig(kind="constant", cooldown_epochs=4)), "cooldown-epochs is 4.*0 to 3"),
        (
            Config(device_batch_size=1, regularize=RegularizeConfig(mixup_alpha=0.2)),
            "mixup-alpha is 0.2.*no other",
        ),
        (Config(device_batch_size=1, regularize=RegularizeConfig(cutmix_alpha=1)), "cutmix-alpha is 1.*no other"),
        (Config(schedule=ScheduleConfig(kind="cosine", warmup_start=0.1)), "warmup-start is 0.1.*0 without"),
        (Config(schedule=ScheduleConfig(final_share=0.1)), "final-share is 0.1.*0 with .*one_cycle .*final-div"),
        (Config(schedule=ScheduleConfig(kind="constant", final_share=0.1)), "final-share is 0.1.*without a cool-down"),
        (Config(average=AverageConfig(every_steps=20)), "every-steps is 20.*1 without an EMA"),
        (Config(epochs=9, average=AverageConfig(start_epoch=3)), "start-epoch is 3.*0 without an EMA"),
        (
            Config(schedule=ScheduleConfig(kind="cosine", warmup_epochs=5, by_epoch=True)),
            "warmup-start is 0.0.*above 0 with --schedule.by-epoch: else the whole first epoch",
        ),
        (
            Config(schedule=ScheduleConfig(kind="step", warmup_epochs=5, decay_epochs=(4, 9))),
            r"decay-epochs is \(4, 9\).*from --schedule.warmup-epochs 5 on",
        ),
        (
            Config(optim=OptimConfig(decoupled_decay=True, weight_decay=1.0)),
            "weight-decay is 1.0.*below 1 with --optim.decoupled-decay",
        ),
        (Config(epochs=7, val_every_epochs=2, patience=4), "patience is 4.*0, its default, with 4 validations in all"),
        (Config(model=ModelConfig(weights="w.pth", zero_init=True)), "zero-init is True.*off, .*with --model.weights"),
        (Config(optim=OptimConfig(name="lamb", nesterov=True)), "nesterov is True.*off, its default, with .*lamb"),
        *(
            (
                Config(optim=optim, schedule=ScheduleConfig(kind="cosine")),
                f"{name} is .*its default, with .*kind cosine",
            )
            for name, optim in {
                "div": OptimConfig(div=9),
                "final-div": OptimConfig(final_div=9),
                "pct-start": OptimConfig(pct_start=0.2),
            }.items()
        ),
        (Config(schedule=ScheduleConfig(decay_factor=0.2)), "decay-factor is 0.2.*with --schedule.kind one_cycle"),
        (
            Config(schedule=ScheduleConfig(kind="constant", warmup_epochs=2, warmup_overlaps=True)),
            "warmup-overlaps is True.*off, its default, with --schedule.kind constant and",
        ),
        (
            Config(data=DataConfig(repeats=256), regularize=RegularizeConfig(mixup_alpha=0.2)),
            "repeats is 256.*below --global-batch-size 256 with mixup or CutMix",
        ),
        (
            Config(regularize=RegularizeConfig(loss="bce", bce_threshold=0.95)),
            "bce-threshold is 0.95.*0.05 to 0.9, between the targets of --regularize.label-smoothing 0.1",
        ),
        (Config(data=DataConfig(sampling="balanced", repeats=2)), "--data.repeats is 2.*1 with balanced sampling"),
        (Config(data=DataConfig(repeats=3)), "--data.repeats is 3.*a divisor of --global-batch-size 256"),
        (Config(regularize=RegularizeConfig(augment="timm_rand", rand_magnitude=11)), "rand-magnitude is 11.*0 to 10"),
        (Config(optim=OptimConfig(freeze_stages=1)), "freeze-stages is 1.*0 without --model.weights: random"),
        (
            Config(model=ModelConfig(weights="IMAGENET1K_V2"), optim=OptimConfig(freeze_stages=6)),
            "freeze-stages is 6.*at most 5 with --model.name resnet50: the last of its 6 stages",
        ),
    ],
)
def test_values_that_do_not_go_together_are_named(config: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(config)


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("folder --model.name resnet18", "--model.weights IMAGENET1K_V1"),
        ("folder --model.name vit_h_14", '--model.weights ""'),
        ("mild --model.init torchvision --model.name vgg16", "--model.blur-pool none"),
        ("a3 --model.name vgg16", "--model.no-zero-init"),
        ("v2 --data.sampling balanced", "--data.repeats 1"),
        ("finetune-v2 --regularize.ema-decay 0.9", "--average.half-life-steps 0"),
        ("mild --epochs 8", "--schedule.warmup-epochs 2"),
    ],
)
def test_a_value_that_the_recipe_set_is_refused_with_the_option_to_type(typed: str, fix: str) -> None:
    with pytest.raises(UserError, match=f"; pass {re.escape(fix)}$"):
        command_line("train", typed.split())
    assert command_line("train", [*typed.split(), *(part.strip('"') for part in fix.split())])


def test_every_rule_of_validate_is_broken_above_and_the_defaults_break_none() -> None:
    assert {option for option, *_ in rules_of(Config())} == set(BREAKS)
    assert checked(Config()) == Config()
