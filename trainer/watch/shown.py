"""What the page shows of a run, as text: what is wrong first, then the figures. Pure functions.

The page puts these texts into its elements as text, never as HTML. So nothing here needs to be escaped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from trainer.contract import Phase
from trainer.live.condition import AHEAD_SECONDS, Condition, unheard_seconds
from trainer.live.nodes import NodePulse
from trainer.live.reading import Live
from trainer.text import show_bytes, show_duration, show_estimate, show_share

RECENT_SECONDS = 900.0  # older alerts stand in the report
OLD_CHECKPOINT_SECONDS = 120.0  # of a checkpoint, while a run trains: twice what is promised
AGED_SAMPLE_SECONDS = 60.0
MOST_PROBLEMS = 12
MOST_SPEED = 1e9  # images/s: no machine does more
TONES = {"finished": "good", "running": "good", "starting": "good", "failed": "bad", "crashed": "bad", "silent": "bad"}


def shown_document(live: Live, condition: Condition, now: float) -> dict[str, Any]:
    """What the page gets: `state` and `tone`, `wrong`, `figures` as pairs, `progress` as a fraction or None."""
    total = live.total_steps
    return {
        "word": condition.word,
        "state": condition.text.removeprefix(condition.word).lstrip(":, "),
        "tone": TONES.get(condition.word, "open"),
        "wrong": problems_of(live, condition, now),
        "figures": [[name, value] for name, value in figures_of(live, condition, now).items() if value],
        "progress": min(1.0, live.facts.step / total) if total else None,
    }


def problems_of(live: Live, condition: Condition, now: float) -> list[str]:
    """What is wrong, or was told in the last quarter of an hour, the newest first."""
    found, saved, heard = list[str](), live.facts.saved, unheard_seconds(live.facts, now)
    there = now - min(0.0, heard or 0.0)  # by the clock of the run's machine, where that is ahead
    recent = [one for one in live.alerts if one.level != "info" and -AHEAD_SECONDS < there - one.time < RECENT_SECONDS]
    told = [
        f"{show_duration(max(0.0, there - one.time))} ago: {one.text}" for one in sorted(recent, key=lambda a: -a.time)
    ]
    if condition.is_active and heard is not None and heard < -AHEAD_SECONDS:
        found.append(f"the clock of the run's machine is {show_duration(-heard)} ahead of this one: ages are not right")
    if condition.word == "running" and saved and live.facts.pulse and live.facts.pulse.phase == Phase.TRAINING:
        age = now - saved.time
        if age > OLD_CHECKPOINT_SECONDS:
            found.append(f"the newest checkpoint is {show_duration(age)} old: so much work would be lost now")
    if not math.isfinite(live.measured.get("train/loss", 0.0)):
        found.append("the loss is not finite")
    return [*found, *told, *live.skipped][:MOST_PROBLEMS]


def figures_of(live: Live, condition: Condition, now: float) -> dict[str, str]:
    """Label and text of each figure, in order; "" where it is not known."""
    facts, measured = live.facts, live.measured if condition.is_active else {}
    wait = measured.get("speed/data_wait_fraction", math.nan)
    speed = measured.get("speed/images_per_second", (facts.finish and facts.finish.images_per_second) or math.nan)
    return {
        "step": _step_text(live),
        "time left": _time_left_text(live, now) if condition.word == "running" else "",
        "top-1": _top1_text(live),
        "loss": f"{measured['train/loss']:.4g} in training" if "train/loss" in measured else "",
        "speed": f"{speed:,.0f} images/s" if 0 <= speed <= MOST_SPEED else "",
        "data wait": show_share(wait, 1) if 0 <= wait <= 1 else "",
        "GPU": gpu_text(live.sample) + _age_text(live, now) if condition.is_active else "",
        "dollars": _money_text(live),
        "checkpoint": _checkpoint_text(live, condition, now),
        "attempt": _attempt_text(live),
        "nodes": _nodes_text(live) if condition.is_active else "",
        **({_label_of(one): _node_text(one, now) for one in live.nodes} if condition.is_active else {}),
        "recipe": facts.recipe,
        "started": f"{show_duration(max(0.0, now - facts.started))} ago" if facts.started else "",
    }


def _step_text(live: Live) -> str:
    step, total = live.facts.step, live.total_steps
    if total:
        return f"{step:,} of {total:,} ({1000 * step // total / 10:.1f} %)"  # 100.0 % once all is done
    return f"{step:,}" if step else ""


def _time_left_text(live: Live, now: float) -> str:
    left = live.seconds_left
    if left is None:
        return ""
    if left > 30 * 86400:
        return "more than 30 d"
    return f"{show_estimate(left)}, until {time.strftime('%a %H:%M', time.localtime(now + left))}"


def _top1_text(live: Live) -> str:
    best, saved, finish = live.facts.top1, live.facts.saved, live.facts.finish
    if best is None:
        return ""
    at = finish.best_step if finish else saved.best_step if saved else 0
    last = saved.last_top1 if saved else None
    text = f"{show_share(best)} best" + (f", step {at:,}" if at else "")
    return text if last is None or last == best else f"{text}; {show_share(last)} last"


def _age_text(live: Live, now: float) -> str:
    """How old the sample of the GPU is, unless it is of now or there is none."""
    age = now - live.sample_time
    is_old = gpu_text(live.sample) and live.sample_time and age > AGED_SAMPLE_SECONDS
    return f", {show_duration(age)} ago" if is_old else ""


def gpu_text(sample: Mapping[str, float]) -> str:
    """87 % busy, 34.1 GB of 80.0 GB, 311 W, 64 °C: what is known of it."""
    parts = []
    if (count := sample.get("gpu/count", 1)) > 1:
        parts.append(f"{count:.0f} GPUs")
    if "gpu/utilization" in sample:
        parts.append(f"{show_share(sample['gpu/utilization'], 0)} busy")
    if "gpu/memory_used_bytes" in sample:
        total = sample.get("gpu/memory_total_bytes")
        parts.append(show_bytes(sample["gpu/memory_used_bytes"]) + (f" of {show_bytes(total)}" if total else ""))
    if "gpu/power_watts" in sample:
        parts.append(f"{sample['gpu/power_watts']:.0f} W")
    if "gpu/temperature_celsius" in sample:
        parts.append(f"{sample['gpu/temperature_celsius']:.0f} °C")
    return ", ".join(parts)


def _money_text(live: Live) -> str:
    money = live.facts.money
    if money.spent is None:
        return ""
    return f"${money.spent:,.2f}" + (f" of ${money.budget:,.2f}" if money.budget else "")


def _checkpoint_text(live: Live, condition: Condition, now: float) -> str:
    saved = live.facts.saved
    if saved is None or condition.is_over:
        return ""
    return f"step {saved.step:,}, {show_duration(max(0.0, now - saved.time))} old"


def _nodes_text(live: Live) -> str:
    """How many machines train now, of a run of several."""
    pulse, most = live.facts.pulse, live.facts.team
    return f"{pulse.nodes} of {most}" if pulse and most > 1 else ""


def _label_of(node: NodePulse) -> str:
    return f"{node.role if node.role == 'head' else 'node'} {node.name}"


def _node_text(node: NodePulse, now: float) -> str:
    """training, step 1,234, attempt 3, 4 processes, 12 s ago, g6.xlarge"""
    parts = [node.phase or "unknown", f"step {node.step:,}", f"attempt {node.attempt}"]
    parts += [f"{node.processes} processes"] if node.processes > 1 else []
    parts.append(f"ended: {node.message}" if node.ended else f"heard {show_duration(max(0.0, now - node.time))} ago")
    return ", ".join([*parts, *([node.where] if node.where else [])])


def _attempt_text(live: Live) -> str:
    facts = live.facts
    if not facts.attempts:
        return ""
    machine = (facts.newest.machine if facts.newest else "") or (facts.pulse.owner if facts.pulse else "")
    return f"{facts.attempts}" + (f", on {machine}" if machine and not facts.finish else "")
