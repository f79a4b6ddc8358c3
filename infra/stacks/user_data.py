"""The user data of a machine: cloud-init's instructions, with `infra/boot/` packed into them.

EC2 takes 16 KB of it, so the comments of scripts and units stay here. This module does not import CDK.
"""

from __future__ import annotations

import ast
import base64
import bz2
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from infra.config import ROOT
from trainer.contract import UserError

BOOT = ROOT / "infra/boot"
ARCHIVE = "/opt/resnet-spot/boot.tar.bz2"
USER_DATA_BYTES = 16384  # EC2's limit, before base64
VALUES_BYTES = 1500  # reserved for the values that CloudFormation fills into /etc/resnet-spot.env: ARNs, names, image


def user_data(environment: Mapping[str, str], boot: Path = BOOT) -> str:
    """The machine's cloud-init instructions: unpack `infra/boot/`, write the environment, then run `install`.

    They are written as JSON, which is valid YAML. Raises UserError if they are longer than EC2 takes.
    """
    lines = "".join(f"{name}={value}\n" for name, value in environment.items())
    files = [
        {"path": ARCHIVE, "encoding": "b64", "content": base64.b64encode(archive(boot)).decode()},
        {"path": "/etc/resnet-spot.env", "permissions": "0644", "content": lines},
    ]
    unpack = ["python3", "-m", "tarfile", "--extract", ARCHIVE, "/opt/resnet-spot"]
    text = "#cloud-config\n" + json.dumps({"write_files": files, "runcmd": [unpack, ["/opt/resnet-spot/install"]]})
    if (size := len(text) + VALUES_BYTES) > USER_DATA_BYTES:
        raise UserError(
            f"the files in {boot} make {size} bytes of user data, and EC2 takes {USER_DATA_BYTES}: shorten them"
        )
    return text


def archive(boot: Path) -> bytes:
    """The files that travel, in one archive, so that they are packed together. The same files make the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in travelling(boot).items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return bz2.compress(packed.getvalue())  # of so little text it makes less than xz


def travelling(boot: Path = BOOT) -> dict[str, bytes]:
    """The files of a folder as they are on a machine, by name."""
    found = sorted(file for file in boot.iterdir() if file.is_file())
    strip = {".py": bare_module}
    return {file.name: strip.get(file.suffix, bare)(file.read_bytes()) for file in found}


def bare(text: bytes) -> bytes:
    """A shell script or a unit without the lines that are comments. The line that names the interpreter stays."""
    lines = text.splitlines(keepends=True)
    return b"".join(line for line in lines if line.startswith(b"#!") or not line.lstrip().startswith(b"#"))


def bare_module(text: bytes) -> bytes:
    """A Python module without docstrings, empty lines and lines that are comments."""
    dropped = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            said = node.body[0]
            if len(node.body) > 1:
                dropped |= {*range(said.lineno, (said.end_lineno or said.lineno) + 1)}
    lines = enumerate(text.splitlines(keepends=True), 1)
    return bare(b"".join(line for number, line in lines if number not in dropped and line.strip()))
