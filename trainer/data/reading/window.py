"""Cuts a window out of a JPEG without decoding it: the bytes of a smaller JPEG that holds the pixels of a crop.

A restart marker resets the entropy coder, so what lies between two of them can be copied on its own (ITU-T T.81, E.1.4
and F.2). Prepared images have one after every MCU: a crop costs what it covers. Nothing is decoded here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from trainer.data.jpeg import DHT, DRI, EOI, RST0, SOF0, SOS, Bytes

Box = tuple[int, int, int, int]  # left, top, width, height in pixels

MARGIN = 1  # pixel around a crop: chroma at half resolution is interpolated from the sample across the border
NO_MARKS = np.empty(0, np.int64)


class Window(NamedTuple):
    """A JPEG that contains a box, and the box's place in it. `whole`: no data follows its last row."""

    jpeg: Bytes
    left: int
    top: int
    whole: bool  # then a decoder may be strict


def cut(jpeg: Bytes, box: Box, memory: Bytes) -> Window:
    """The smallest JPEG that can be copied out of `jpeg` and holds `box`; its pixels are bit for bit the same.

    With restart markers on a grid (a whole number per row of MCUs), it has only the intervals that the box touches.
    Without markers, it leaves out the rows below the box. Any other JPEG comes back unchanged, even a damaged one: the
    decoder will tell. The window may lie in `memory`, which must be as long as `jpeg`.
    """
    headers = _headers(jpeg)
    marks = (jpeg == 0xFF).nonzero()[0] if headers[2] else NO_MARKS
    size, left, top, whole = _cut(jpeg, headers, marks, *box, memory)
    return Window(memory[:size] if size else jpeg, left, top, whole)


# Compiled, since 25 numpy calls would cost a third of decoding a small image, and hold the interpreter lock. Compiled
# code checks no index, so every number that comes from the bytes is checked here before it is used.
@njit(cache=True, nogil=True)
def _headers(jpeg: Bytes) -> tuple[int, int, int]:
    """Where the frame header and the entropy-coded bytes begin, and the MCUs between restart markers (0: none).

    Three zeros unless this is a baseline JPEG of 8 bits with one scan whose segments follow each other without a gap.
    """
    at, sof, interval = 2, 0, 0
    while at + 4 <= len(jpeg):
        marker, size = jpeg[at + 1], int(jpeg[at + 2]) * 256 + int(jpeg[at + 3])
        if jpeg[at] != 0xFF or marker < SOF0 or RST0 <= marker < SOS or marker == 0xFF or size < 2:
            break
        if at + 2 + size >= len(jpeg):
            break
        if marker == SOF0:
            components = int(jpeg[at + 9]) if size >= 8 else 0
            if sof or size != 8 + 3 * components or components not in (1, 3) or jpeg[at + 4] != 8:
                break
            sof = at
        elif marker < SOF0 + 16 and marker != DHT:
            break  # progressive, arithmetic, …
        elif marker == DRI:
            if size != 4:
                break
            interval = int(jpeg[at + 4]) * 256 + int(jpeg[at + 5])
        elif marker == SOS:
            if sof == 0 or jpeg[at + 4] != jpeg[sof + 9]:
                break
            return sof, at + 2 + size, interval
        at += 2 + size
    return 0, 0, 0


@njit(cache=True, nogil=True)
def _cut(
    jpeg: Bytes,
    headers: tuple[int, int, int],
    marks: np.ndarray,
    left: int,
    top: int,
    width: int,
    height: int,
    out: Bytes,
) -> tuple[int, int, int, bool]:
    """(bytes written to out, left, top, whole); 0 bytes mean: take the whole JPEG. `marks`: where bytes are 0xFF."""
    sof, scan, interval = headers
    everything = (0, left, top, True)
    if sof == 0 or len(out) < len(jpeg):
        return everything
    full_height = int(jpeg[sof + 5]) * 256 + int(jpeg[sof + 6])
    full_width = int(jpeg[sof + 7]) * 256 + int(jpeg[sof + 8])
    if min(left, top) < 0 or min(width, height) < 1 or left + width > full_width or top + height > full_height:
        return everything
    unit_width, unit_height = 8, 8  # of an MCU, then of a restart interval
    if jpeg[sof + 9] > 1:
        for i in range(jpeg[sof + 9]):
            unit_width = max(unit_width, 8 * int(jpeg[sof + 11 + 3 * i] >> 4))
            unit_height = max(unit_height, 8 * int(jpeg[sof + 11 + 3 * i] & 15))
    rows = -(-full_height // unit_height)
    y1 = min(-(-(top + height + MARGIN) // unit_height), rows)

    if interval == 0:
        if y1 == rows:
            return everything
        out[: len(jpeg)] = jpeg
        _set_size(out, sof, full_width, y1 * unit_height)
        return len(jpeg), left, top, False

    columns, rest = divmod(-(-full_width // unit_width), interval)
    unit_width *= interval
    if rest or rows * columns > len(jpeg) or jpeg[-2] != 0xFF or jpeg[-1] != EOI:
        return everything
    ends = _interval_ends(jpeg, marks, scan, rows * columns)
    if len(ends) == 0:
        return everything

    x0, y0 = max(left - MARGIN, 0) // unit_width, max(top - MARGIN, 0) // unit_height
    x1 = min(-(-(left + width + MARGIN) // unit_width), columns)
    if x0 > 0 and full_width - x0 * unit_width <= 4:
        x0 -= 1  # a sliver at the right edge: with fewer than three samples, chroma would not be interpolated
    out[:scan] = jpeg[:scan]
    _set_size(out, sof, min(x1 * unit_width, full_width) - x0 * unit_width,
              min(y1 * unit_height, full_height) - y0 * unit_height)  # fmt: skip
    size, number = scan, 0
    for y in range(y0, y1):
        begin = y * columns + x0
        start, stop = ends[begin - 1] if begin else scan, ends[y * columns + x1 - 1]
        out[size : size + stop - start] = jpeg[start:stop]
        for x in range(x0, x1):
            out[size + ends[y * columns + x] - start - 1] = RST0 + number % 8  # restart markers count from 0 to 7
            number += 1
        size += stop - start
    out[size - 1] = EOI
    return size, left - x0 * unit_width, top - y0 * unit_height, True


@njit(cache=True, nogil=True)
def _interval_ends(jpeg: Bytes, marks: np.ndarray, scan: int, intervals: int) -> np.ndarray:
    """Where the marker of each restart interval ends: (intervals,) int64; (0,) if there are more of them, or fewer."""
    ends, count = np.empty(intervals, np.int64), 0
    for mark in marks[np.searchsorted(marks, scan) :]:
        if mark + 1 < len(jpeg) and jpeg[mark + 1] & 0xF8 == RST0:
            if count == intervals:
                return ends[:0]
            ends[count] = mark + 2
            count += 1
    if count != intervals - 1:
        return ends[:0]
    ends[count] = len(jpeg)
    return ends


@njit(cache=True, nogil=True)
def _set_size(jpeg: Bytes, sof: int, width: int, height: int) -> None:
    jpeg[sof + 5], jpeg[sof + 6] = height >> 8, height & 255
    jpeg[sof + 7], jpeg[sof + 8] = width >> 8, width & 255
