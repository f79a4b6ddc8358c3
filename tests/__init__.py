from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
PATIENCE = 240.0  # seconds that a test waits for what must come: a busy machine is no failure, a hang is
