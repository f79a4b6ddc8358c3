"""Options that would do nothing: where they have another value than their default, they are refused.

torch is not imported here.
"""

from __future__ import annotations

from trainer.recipes.config import Config
from trainer.recipes.rule import Rule


def effect_rules(config: Config) -> list[Rule]:
    """What would do nothing must have its default.

    What several recipes set for their own optimizer or policy is left out: who chooses another one means no harm.
    """
    optim, schedule, default = config.optim, config.schedule, Config().optim
    kind, validations = schedule.kind, -(-config.epochs // max(1, config.val_every_epochs))
    other_kind, falls = f"with --schedule.kind {kind}", kind in ("cosine", "linear")
    given = [
        ("--patience", config.patience, 0, config.patience < validations, f"with {validations} validations in all"),
        ("--model.zero-init", config.model.zero_init, False, not config.model.weights, "with --model.weights"),
        ("--optim.nesterov", optim.nesterov, False, optim.name == "sgd", f"with --optim.name {optim.name}"),
        *((f"--optim.{name.replace('_', '-')}", getattr(optim, name), getattr(default, name), kind == "one_cycle",
           other_kind) for name in ("div", "final_div", "pct_start", "anneal")),
        ("--schedule.warmup-overlaps", schedule.warmup_overlaps, False, falls and schedule.warmup_epochs > 0,
         f"{other_kind} and --schedule.warmup-epochs {schedule.warmup_epochs:g}"),
        ("--schedule.decay-factor", schedule.decay_factor, 0.1, kind == "step", other_kind),
    ]  # fmt: skip
    rule = "{}, its default, {}: there it does nothing"
    return [(option, value, used or value == usual, rule.format("off" if usual is False else usual, why))
            for option, value, usual, used, why in given]  # fmt: skip
