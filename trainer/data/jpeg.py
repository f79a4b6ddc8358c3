"""What a JPEG is made of, as far as both making and reading need it: its markers (ITU-T T.81, table B.1)."""

from __future__ import annotations

import numpy as np

Bytes = np.ndarray  # (size,) uint8


SOF0, DHT, RST0, EOI, SOS, DRI = 0xC0, 0xC4, 0xD0, 0xD9, 0xDA, 0xDD
