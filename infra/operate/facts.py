"""What is known of a run, as labels and texts: what is wrong, what it does, how far it is, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from infra.guard.rules import SILENCE_SECONDS
from infra.operate.documents import TimedAlert
from infra.operate.progress import Curve, Progress
from infra.operate.sparkline import sparkline
from infra.operate.state import RunState
from infra.operate.terminal import Cell, Text, bars, styled
from infra.operate.text import duration, usd, weekday_time
from infra.run.fleet import FleetMachine
from infra.run.values import printable
from trainer.contract import Exit, Phase

LATE_CHECKPOINT_SECONDS = 120.0  # twice what the promise allows
ALERT_SECONDS = 900.0  # so long an alert is shown
STARVED_FRACTION = 0.1  # of the time in which the GPU waits for images
FRESH_SECONDS = 90.0  # what is older has its age
OLD_SAMPLE_SECONDS = 300.0  # rows of a living observer are younger: it sends them each minute
LOOKS = 2  # at least, for a curve
StatusRow = tuple[str, Cell]
STATE_STYLES = MappingProxyType(
    {"done": "green", "failed": "red", "silent": "red", "stopped": "yellow", "waiting": "yellow"}
)
LEVEL_STYLES = MappingProxyType({"error": "red", "warning": "yellow", "info": "cyan"})


def status_rows(state: RunState, width: int) -> list[StatusRow]:
    """The rows in the order of their weight, with curves of at most `width` letters."""
    word, said = state.summary()
    found: list[StatusRow] = [("wrong", problem) for problem in problems(state)]
    lacks = "too few" if state.machines else "no machine"
    found += [(lacks, str(refusal)) for refusal in state.refusals]
    found.append(("state", styled(said, STATE_STYLES.get(word, ""))))
    found += [("told", alert_text(state, alert)) for alert in recent_alerts(state) if alert.level == "info"][:1]
    found += training_rows(state)
    found.append(("cost", cost(state)))
    found += measured_rows(state, width)
    found += checkpoint_rows(state)
    found += machine_rows(state)
    found += [("skipped", printable(problem)) for problem in state.progress.skipped]
    return found


def problems(state: RunState) -> list[Text]:
    """What is wrong now, the worst first: what the machine told in the last minutes, and what nobody can tell it."""
    word, _ = state.summary()
    alerts = [alert for alert in recent_alerts(state) if alert.level != "info"]
    found = [(alert.level, alert_text(state, alert).plain) for alert in alerts]
    if word == "silent":
        silent = duration(state.now - state.progress.heartbeat_at)
        found.append(("error", f"nothing was heard of the machine for {silent}"))
    if is_checkpoint_late(state) and (checkpoint := state.progress.checkpoint):
        age = duration(state.now - checkpoint.time)
        found.append(("error", f"the newest checkpoint is {age} old: one is due each minute"))
    wait = state.progress.recent.data_wait_mean or 0.0
    if word == "running" and wait >= STARVED_FRACTION and all(alert.kind != "starved" for alert in alerts):
        text = f"data wait {100 * wait:.0f} % over the last minute: the loader is the limit"
        found.append(("warning", f"{text}; more --data.workers, or a type with more vCPU"))
    return [styled(text, LEVEL_STYLES[level]) for level, text in sorted(found, key=lambda one: one[0] != "error")]


def recent_alerts(state: RunState) -> list[TimedAlert]:
    """What the machine told in the last quarter of an hour, the newest first."""
    beat = state.progress.heartbeat
    told = beat.observed.alerts if beat else ()
    return sorted((a for a in told if abs(state.now - a.time) <= ALERT_SECONDS), key=lambda a: a.time, reverse=True)


def alert_text(state: RunState, alert: TimedAlert) -> Text:
    age = max(0.0, state.now - alert.time)
    return styled(f"{alert.text} ({duration(age)} ago)", LEVEL_STYLES[alert.level])


def is_checkpoint_late(state: RunState) -> bool:
    checkpoint = state.progress.checkpoint
    is_training = state.progress.phase == Phase.TRAINING and bool(state.machines) and not state.ending
    return bool(is_training and checkpoint and state.now - checkpoint.time > LATE_CHECKPOINT_SECONDS)


def training_rows(state: RunState) -> list[StatusRow]:
    progress, found = state.progress, list[StatusRow]()
    if progress.total_steps:
        share = 100 * progress.step / progress.total_steps
        found.append(("step", f"{progress.step:,} of {progress.total_steps:,} ({share:.1f} %)"))
    elif progress.heartbeat:
        found.append(("progress", f"{progress.heartbeat.progress:,} in this phase"))
    if progress.seconds_left is not None and state.machines and not state.ending:
        eta = state.now + progress.seconds_left
        found.append(("ETA", f"{duration(progress.seconds_left)}, {weekday_time(eta)}, at the present speed"))
    if top1 := accuracy(progress):
        found.append(("top-1", top1))
    return found


def accuracy(progress: Progress) -> str:
    parts = []
    if progress.val_top1 is not None:
        parts.append(f"{100 * progress.val_top1:.2f} % in validation")
    if progress.checkpoint and progress.checkpoint.best_top1:
        parts.append(f"best {100 * progress.checkpoint.best_top1:.2f} % at step {progress.checkpoint.best_step:,}")
    if not parts and progress.train_top1 is not None:
        parts.append(f"{100 * progress.train_top1:.1f} % on training images")
    return ", ".join(parts)


def cost(state: RunState) -> Text:
    spent, hourly = state.spend.usd(state.now), state.spend.usd_per_hour()
    text = Text(f"{usd(spent)} spent")
    if hourly and not state.ending:
        text.append(f", {usd(hourly)} an hour")
    projected, budget = state.projected_usd, state.spec.budget_usd if state.spec else 0.0
    if projected is not None and not state.ending:
        over = budget and projected > budget
        text.append(", ").append(f"{usd(projected)} projected", "red" if over else "green")
    if budget:
        text.append(f", of a budget of {usd(budget)}")
    return text.append("" if state.spend.at else " (the guard has not counted yet)")


def measured_rows(state: RunState, width: int) -> list[StatusRow]:
    """Speed, wait for data, loss and GPU, as they were measured last; each with its curve where there is room."""
    progress, recent, found = state.progress, state.progress.recent, list[StatusRow]()
    if progress.images_per_second:
        text = f"{progress.images_per_second:,.0f} images/s{aged(state, recent.speed[-1][0] if recent.speed else 0.0)}"
        found.append(("speed", with_curve(text, recent.speed, width, 0.0)))
    if (wait := recent.data_wait_mean) is not None:
        text = f"{100 * wait:.0f} % of the last minute{aged(state, recent.data_wait[-1][0])}"
        found.append(("data wait", styled(text, "yellow" if wait >= STARVED_FRACTION else "")))
    if recent.loss:
        (begin, first), (at, loss) = recent.loss[0], recent.loss[-1]
        change = f", {first:.4g} {duration(at - begin)} before" if at > begin else ""
        found.append(("loss", with_curve(f"{loss:.4g}{change}{aged(state, at)}", recent.loss, width)))
    gpu, at = gpu_sample(state)
    if text := gpu_figures(gpu):
        found.append(("GPU", with_curve(f"{text}{aged(state, at)}", recent.utilization, width, 0.0, 1.0)))
    return found


def with_curve(text: str, points: Curve, width: int, lowest: float | None = None, highest: float | None = None) -> Text:
    """The text, and before it the curve of the values, if there is room for one."""
    values = [value for _, value in points]
    if width <= 0 or len(values) < LOOKS:
        return Text(text)
    low, high = min(values) if lowest is None else lowest, max(values) if highest is None else highest
    return Text(f"{sparkline(values, width, low, high, bars()):{width}}  {text}")


def aged(state: RunState, at: float) -> str:
    """How old a measurement is, unless it is of now."""
    age = state.now - at
    return f", {duration(age)} ago" if at and age > FRESH_SECONDS else ""


def gpu_sample(state: RunState) -> tuple[dict[str, float], float]:
    """The newest figures of the GPUs, and when they were measured.

    The heartbeat has them, but goes on with the same ones if the run's observer has died: then its rows have ended.
    """
    progress, row = state.progress, state.progress.recent.sample
    observed = progress.heartbeat.observed.sample if progress.heartbeat else {}
    has_died = "time" in row and row["time"] < progress.heartbeat_at - OLD_SAMPLE_SECONDS
    for sample, at in ((row, 0.0), (observed, 0.0)) if has_died else ((observed, progress.heartbeat_at), (row, 0.0)):
        gpu = {name.removeprefix("gpu/"): value for name, value in sample.items() if name.startswith("gpu/")}
        if gpu:
            return gpu, sample.get("time", at)
    return {}, 0.0


def gpu_figures(gpu: dict[str, float]) -> str:
    parts = [f"{gpu['count']:.0f} GPUs"] if gpu.get("count", 1) > 1 else []
    if "utilization" in gpu:
        parts.append(f"{100 * gpu['utilization']:.0f} % busy")
    if "memory_used_bytes" in gpu:
        total = f" of {gpu['memory_total_bytes'] / 1e9:,.1f}" if "memory_total_bytes" in gpu else ""
        parts.append(f"{gpu['memory_used_bytes'] / 1e9:,.1f}{total} GB")
    units = (("power_watts", "W"), ("temperature_celsius", "°C"))
    parts += [f"{gpu[name]:,.0f} {unit}" for name, unit in units if name in gpu]
    return ", ".join(parts)


def checkpoint_rows(state: RunState) -> list[StatusRow]:
    progress, found = state.progress, list[StatusRow]()
    if checkpoint := progress.checkpoint:
        text = f"step {checkpoint.step:,}, {duration(state.now - checkpoint.time)} old"
        found.append(("checkpoint", styled(text, "red") if is_checkpoint_late(state) else text))
    if progress.attempts:
        found.append(("interruptions", interruptions(progress, is_over=bool(state.ending))))
    return found


def interruptions(progress: Progress, *, is_over: bool) -> str:
    """How many attempts were interrupted. The last attempt does not count: it runs, or it ended the run.

    A rewind does not count either. It is an attempt that ends with 0, and later ones follow it.
    """
    *before, last = progress.attempts
    before = [attempt for attempt in before if attempt.get("exit") != Exit.FINISHED]
    saved = sum(attempt.get("exit") == Exit.INTERRUPTED for attempt in before)
    text = f"{len(before)} ({saved} with a last save, {len(before) - saved} without)" if before else "none"
    types = sorted({type for attempt in progress.attempts if (type := (attempt.get("machine") or {}).get("type"))})
    if len(types) > 1:
        text += f"; ran on {', '.join(types)}: not bit for bit the same as on one type"
    return text + ("" if is_over else f"; attempt {last['attempt']} is the newest")


def machine_text(state: RunState, machine: FleetMachine) -> str:
    age = duration(state.now - machine.launched)
    return f"{machine.id}, {machine.type} in {machine.zone}, {machine.market}, {machine.state}, {age} old"


def node_row(state: RunState, machine: FleetMachine) -> StatusRow:
    """Of a run of several machines: what this one says of itself. The head's row has a label of its own."""
    record, beat = state.nodes.get(machine.id), state.progress.heartbeat
    if record is None:
        return "node", styled(f"{machine_text(state, machine)}; it has written no record yet", "yellow")
    age = state.now - record.at
    parts = [f"{record.phase or 'unknown'}, step {record.step:,}, attempt {record.attempt}, heard {duration(age)} ago"]
    parts += [f"{record.processes} processes"] if record.processes > 1 else []
    parts += [record.gpu] if record.gpu else []
    parts += [f"ended: {record.message}"] if record.ended else []
    is_apart = age > SILENCE_SECONDS or record.ended or (beat and record.attempt != beat.attempt)
    text = f"{'; '.join(parts)}; {machine_text(state, machine)}"
    return "head" if record.role == "head" else "node", styled(text, "yellow") if is_apart else text


def machine_rows(state: RunState) -> Sequence[StatusRow]:
    found: list[StatusRow] = [
        node_row(state, machine) if state.team > 1 else ("machine", machine_text(state, machine))
        for machine in state.machines
    ]
    if state.spec and not state.ending:
        left = state.deadline - state.now
        text = f"{weekday_time(state.deadline)}, {f'in {duration(left)}' if left > 0 else 'passed'}"
        found.append(("deadline", text))
    if state.machines:
        found.append(
            ("", "a resume gives the same bits on the same machine type; on another type it differs by rounding")
        )
    return found
