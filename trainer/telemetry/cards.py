"""Which GPUs a run sees, and what NVML tells of each. Everything here raises NVMLError and may hang: see `gpu`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import or_
from statistics import fmean
from typing import Any

import pynvml

from trainer.process.counts import PROCESSES

KIB = 1024  # NVML calls it KB
MOST_EVENTS = 100  # of one look: a card that reports more is broken anyway
GONE = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_GPU_NOT_FOUND}
# What concerns more than one question. Any other error leaves out the metric that was asked for.
DRIVER_LOADED_ANEW = {pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}


class GpuLostError(Exception):
    """A GPU of the run does not answer any more: it fell off the bus, or needs a reset."""


@dataclass(frozen=True)
class Card:
    """A GPU, and the `share` of it that the run sees: a MIG instance, or the card itself."""

    name: str  # GPU 0 (NVIDIA L4)
    handle: Any
    share: Any


@dataclass(frozen=True)
class Question:
    """A metric: how one card is asked, the most that can be true of it, and what counts of several cards."""

    name: str
    ask: Callable[[Card], float]
    most: float
    together: Callable[[Sequence[float]], float]


def find_cards(environ: Mapping[str, str]) -> list[Card]:
    """The GPUs of CUDA_VISIBLE_DEVICES, or all of them; one for each process of the run.

    As CUDA does, it takes the names up to the first that it does not know. Indices count as in nvidia-smi.
    Raises GpuLostError, NVMLError.
    """
    count = pynvml.nvmlDeviceGetCount()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    cards: list[Card] = []
    for name in map(str, range(count)) if visible is None else visible.split(","):
        try:
            card = _find_card(name.strip(), count)
        except pynvml.NVMLError_NotFound:
            card = None
        except pynvml.NVMLError as error:
            if error.value in GONE:
                raise GpuLostError(f"GPU {name}: NVML says {str(error)!r}") from error
            raise
        if card is None:
            break
        cards.append(card)
    return cards[: int(environ.get(PROCESSES) or len(cards))]


def _find_card(name: str, count: int) -> Card | None:
    """The card of an index, of a UUID or the beginning of one, or of the UUID of a MIG instance."""
    if name.startswith("MIG-"):
        share = pynvml.nvmlDeviceGetHandleByUUID(name)
        return _card(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(share), share)
    if name.startswith("GPU-"):
        with suppress(pynvml.NVMLError_NotFound):
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            return _card(handle, handle)
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(count))
        found = [handle for handle in handles if pynvml.nvmlDeviceGetUUID(handle).startswith(name)]
        return _card(found[0], found[0]) if len(found) == 1 else None
    if not (name.isascii() and name.isdecimal() and int(name) < count):
        return None
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return _card(handle, handle)


def _card(handle: Any, share: Any) -> Card:
    return Card(f"GPU {pynvml.nvmlDeviceGetIndex(handle)} ({pynvml.nvmlDeviceGetName(handle)})", handle, share)


def _answer(card: Card, ask: Callable[[Card], float], most: float) -> float | None:
    """The answer of a card; None where it has none, or one that cannot be true.

    Raises GpuLostError where the card is lost, NVMLError where the driver was loaded anew.
    """
    try:
        answer = float(ask(card))
    except pynvml.NVMLError as error:
        if error.value in GONE:
            raise GpuLostError(f"{card.name}: NVML says {str(error)!r}") from error
        if error.value in DRIVER_LOADED_ANEW:
            raise
        return None
    return answer if math.isfinite(answer) and 0 <= answer <= most else None


def read_all(cards: Sequence[Card]) -> dict[str, float]:
    """The metrics that every card knows, by name. Of some cards alone, a sum or a mean would be wrong."""
    metrics: dict[str, float] = {"gpu/count": float(len(cards))}
    for question in QUESTIONS:
        answers = _answers(cards, question.ask, question.most)
        if answers is not None:
            metrics[question.name] = question.together(answers)
    return metrics | _fullest(cards)


def read_joules(cards: Sequence[Card]) -> float | None:
    """What all cards have drawn since the driver was loaded; None where one of them does not count it."""
    counted = _answers(cards, lambda card: pynvml.nvmlDeviceGetTotalEnergyConsumption(card.handle) / 1000, 1e15)
    return None if counted is None else sum(counted)


def _answers(cards: Sequence[Card], ask: Callable[[Card], float], most: float) -> list[float] | None:
    """One answer of each card, also of one that several MIG instances share; None unless all have one."""
    answers = [_answer(card, ask, most) for card in {card.name: card for card in cards}.values()]
    known = [answer for answer in answers if answer is not None]
    return known if len(known) == len(answers) else None


def _fullest(cards: Sequence[Card]) -> dict[str, float]:
    """Memory of the card that has the largest share of it in use."""
    pairs: list[tuple[float, float]] = []
    for card in cards:
        total = _answer(card, lambda one: pynvml.nvmlDeviceGetMemoryInfo(one.share).total, 1e15)
        used = _answer(card, lambda one: pynvml.nvmlDeviceGetMemoryInfo(one.share).used, total or 0.0)
        if not total or used is None:
            return {}
        pairs.append((used, total))
    used, total = max(pairs, key=lambda pair: pair[0] / pair[1])
    return {"gpu/memory_used_bytes": used, "gpu/memory_total_bytes": total}


def watch_xids(cards: Sequence[Card]) -> Any:
    """An event set that collects the Xids of these cards from now on; None where the driver cannot."""
    try:
        events = pynvml.nvmlEventSetCreate()
        for card in cards:
            pynvml.nvmlDeviceRegisterEvents(card.handle, pynvml.nvmlEventTypeXidCriticalError, events)
    except pynvml.NVMLError:
        return None
    return events


def read_xids(events: Any) -> list[int]:
    """The numbers of the Xids that came since the last look. It does not wait."""
    numbers: list[int] = []
    try:
        while len(numbers) < MOST_EVENTS:
            event = pynvml.nvmlEventSetWait(events, 0)
            numbers.append(int(event.eventData))
    except pynvml.NVMLError:
        pass  # NVML_ERROR_TIMEOUT: none is left. Of any other, the metrics tell.
    return numbers


def _temperature(card: Card) -> float:
    try:
        return float(pynvml.nvmlDeviceGetTemperatureV(card.handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError_FunctionNotFound:  # a driver before 2025
        return float(pynvml.nvmlDeviceGetTemperature(card.handle, pynvml.NVML_TEMPERATURE_GPU))


def _throttle_reasons(card: Card) -> float:
    try:
        return float(pynvml.nvmlDeviceGetCurrentClocksEventReasons(card.handle))
    except pynvml.NVMLError_FunctionNotFound:  # a driver before 2023
        return float(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(card.handle))


def _any_bit(masks: Sequence[float]) -> float:
    return float(reduce(or_, map(int, masks)))


def _clock(kind: int) -> Callable[[Card], float]:
    return lambda card: float(pynvml.nvmlDeviceGetClockInfo(card.handle, kind))


def _traffic(direction: int) -> Callable[[Card], float]:
    return lambda card: float(pynvml.nvmlDeviceGetPcieThroughput(card.handle, direction)) * KIB


def _ecc(kind: int) -> Callable[[Card], float]:
    return lambda card: float(pynvml.nvmlDeviceGetTotalEccErrors(card.handle, kind, pynvml.NVML_VOLATILE_ECC))


QUESTIONS = (
    Question("gpu/utilization", lambda card: pynvml.nvmlDeviceGetUtilizationRates(card.handle).gpu / 100, 1.0, fmean),
    Question("gpu/power_watts", lambda card: pynvml.nvmlDeviceGetPowerUsage(card.handle) / 1000, 1e4, sum),
    Question("gpu/temperature_celsius", _temperature, 200.0, max),
    Question("gpu/sm_clock_mhz", _clock(pynvml.NVML_CLOCK_SM), 2e4, min),
    Question("gpu/memory_clock_mhz", _clock(pynvml.NVML_CLOCK_MEM), 1e5, min),
    Question("gpu/pcie_received_bytes_per_second", _traffic(pynvml.NVML_PCIE_UTIL_RX_BYTES), 1e12, sum),
    Question("gpu/pcie_sent_bytes_per_second", _traffic(pynvml.NVML_PCIE_UTIL_TX_BYTES), 1e12, sum),
    Question("gpu/throttle_reasons", _throttle_reasons, 2.0**52, _any_bit),
    Question("gpu/ecc_corrected", _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED), 1e15, sum),
    Question("gpu/ecc_uncorrected", _ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED), 1e15, sum),
)
