"""News of a run that nobody need act on: it has started, was interrupted, goes on, half of its budget is spent.

Each is mailed once, and all news of one tick in one mail. There is no I/O here. What the guard does is mailed anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from infra.guard.facts import Facts
from infra.guard.memory import Memory
from infra.guard.observed import parse_alert_id
from infra.guard.rules import TICK_SECONDS, kept_until
from trainer.contract import Phase

MAILS_IN_AN_HOUR = 6
MOST_ATTEMPTS = 10**9  # a machine wrote the number, and the guard must be able to read its memory again
LOST_PERCENT = 20  # of the last hour; more is told, once an hour
BEAT_SECONDS = 90.0  # an attempt whose heartbeat is older is not at work: one comes every 30 s
BUDGET_PERCENT = (50, 80)  # at 100 the guard stops the run, and says so
AT_WORK = frozenset({Phase.TRAINING, Phase.EVALUATING, Phase.SAVING, Phase.PREPARING})
News = tuple[list[str], Memory]


def attempt_at_work(facts: Facts, memory: Memory) -> News:
    """An attempt does its work, not only starts."""
    beat = facts.signs.heartbeat
    if beat is None or beat.phase not in AT_WORK or not _is_manned(facts, beat.at):
        return [], memory
    if not memory.attempt < beat.attempt <= MOST_ATTEMPTS:
        return [], memory
    known = facts.memory.mark.startswith(tuple(f"attempt {beat.attempt}, {phase}," for phase in AT_WORK))
    memory = replace(memory, attempt=beat.attempt, is_interrupted=False)
    if known:  # an older guard saw it begin
        return [], memory
    if beat.attempt == 1:
        return [f"the run has started: {beat.phase}, step {beat.step:,}"], memory
    on = f", with {beat.nodes} of {facts.spec.nodes} machines" if facts.spec and facts.spec.nodes > 1 else ""
    return [f"the run goes on{on}: attempt {beat.attempt}, {beat.phase}, step {beat.step:,}"], memory


def machine_gone(facts: Facts, memory: Memory) -> News:
    """The attempt's machine is gone, and another one is wanted."""
    is_over = facts.signs.done or facts.signs.failed or memory.stopped or not facts.desired
    if is_over or facts.machines is None or not memory.attempt or memory.is_interrupted:
        return [], memory
    if _is_manned(facts, memory.marked):
        return [], memory
    gone = f"the run is interrupted: its machine is gone ({memory.mark}), and the group asks for another one"
    return [gone], replace(memory, is_interrupted=True)


def budget_share(facts: Facts, memory: Memory) -> News:
    if not facts.spec or facts.is_at_rest or memory.stopped:
        return [], memory
    usd = facts.spend.usd_at_most(facts.now)
    percent = max((one for one in BUDGET_PERCENT if usd >= one / 100 * facts.spec.budget_usd), default=0)
    if percent <= memory.budget_percent:
        return [], memory
    line = f"{percent} % of the budget are spent: ${usd:.2f} of ${facts.spec.budget_usd:.2f}; at 100 % the run stops"
    return [line], replace(memory, budget_percent=percent)


def noticed(facts: Facts, memory: Memory) -> News:
    """What the machine itself has noticed, such as a new best score, or that the GPU waits for data."""
    beat = facts.signs.heartbeat
    newest = parse_alert_id(memory.alert) or (0, 0)
    new = [one for one in beat.alerts if (one.attempt, one.number) > newest] if beat else []
    if not new:
        return [], memory
    return [one.text for one in new], replace(memory, alert=f"{new[-1].attempt}-{new[-1].number}")


def time_lost(facts: Facts, memory: Memory) -> News:
    """For more than LOST_PERCENT of the last hour machines billed and no attempt worked. The first start is no loss."""
    beat, now = facts.signs.heartbeat, facts.now
    if beat is None or facts.machines is None or facts.signs.done or facts.signs.failed or memory.stopped:
        return [], memory
    lost = tuple(at for at in memory.lost if now - at < 3600)
    if beat.phase in AT_WORK and now - beat.at <= BEAT_SECONDS and facts.billing:
        memory = replace(memory, worked=now)
    elif memory.worked and facts.billing:
        lost = (*lost, now)
    memory, percent = replace(memory, lost=lost), 100 * len(lost) * TICK_SECONDS / 3600
    if percent <= LOST_PERCENT or (memory.lost_told and now - memory.lost_told < 3600):
        return [], memory
    line = f"{percent:.0f} % of the last hour were lost between attempts, while machines billed; the newest attempt is "
    return [f"{line}{beat.attempt}: `make logs` says why each one ended"], replace(memory, lost_told=now)


def machine_kept(facts: Facts, memory: Memory) -> News:
    """The run has failed, and its machine waits for the user."""
    until = kept_until(facts)
    if not until or memory.kept == facts.signs.failed or memory.stopped:
        return [], memory
    ends = f"{datetime.fromtimestamp(until, UTC):%H:%M} UTC"
    said = f"the run has failed: {facts.signs.failure}; its machine is kept until {ends} for `make shell`, and bills: "
    return [f"{said}`make stop` ends it"], replace(memory, kept=facts.signs.failed)


NEWS: tuple[Callable[[Facts, Memory], News], ...] = (
    attempt_at_work, machine_gone, machine_kept, budget_share, time_lost, noticed,
)  # fmt: skip


def due(facts: Facts, memory: Memory) -> tuple[str, Memory]:
    """The text of a mail, "" if none is due; and the memory that follows on `memory`, which `rules` made of the facts.

    Beyond MAILS_IN_AN_HOUR news is only counted, and the next mail tells how much it was.
    """
    if not facts.is_active:
        return "", memory
    lines: list[str] = []
    for news in NEWS:
        found, memory = news(facts, memory)
        lines += found
    if not lines:
        return "", memory
    mails = tuple(at for at in memory.mails if 0 <= facts.now - at < 3600)
    if len(mails) >= MAILS_IN_AN_HOUR:
        return "", replace(memory, mails=mails, unmailed=memory.unmailed + len(lines))
    if memory.unmailed:
        lines.append(f"{memory.unmailed} lines before this mail were left out: `make status` shows the run")
    return "\n".join(lines), replace(memory, mails=(*mails, facts.now), unmailed=0)


def _is_manned(facts: Facts, at: float) -> bool:
    """Whether a machine that bills now was there at that time already."""
    return any(machine.launched <= at for machine in facts.billing)
