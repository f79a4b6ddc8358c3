"""The markers of a JPEG (ITU-T T.81, table B.1) that both making and reading need."""

from __future__ import annotations

import numpy as np

Bytes = np.ndarray  # (size,) uint8


SOF0, DHT, RST0, EOI, SOS, DRI = 0xC0, 0xC4, 0xD0, 0xD9, 0xDA, 0xDD
