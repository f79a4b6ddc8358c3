"""The stacks, synthesized in process, once for each set of context values."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from infra.app import build
from infra.config import Installation

VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "changed": {
        "max_nodes": "2",
        "efa": "1.51.0=" + 64 * "0",
        "email": "me@example.org",
        "market": "on-demand",
        "zones": "us-east-1b,us-east-1f",
        "tags": "team=vision research,cost:center=4/2=2",
    },
    "given": {
        "vpc_id": "vpc-0a",
        "subnet_ids": "subnet-0a,subnet-0b",
        "max_nodes": "1",
        "image_uri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/trainer@sha256:" + 64 * "0",
    },
    "image from elsewhere": {"image_uri": "ghcr.io/team/trainer@sha256:" + 64 * "0"},
}


@dataclass(frozen=True)
class Stack:
    template: dict[str, Any]

    def all(self, type: str) -> dict[str, dict[str, Any]]:
        """Logical id and properties of the resources of this type, `EC2::VPC`."""
        resources = self.template["Resources"].items()
        return {id: found.get("Properties", {}) for id, found in resources if found["Type"] == f"AWS::{type}"}

    def one(self, type: str, path: str = "") -> dict[str, Any]:
        """The properties of the only one of this type whose logical id begins with `path`."""
        (found,) = [properties for id, properties in self.all(type).items() if id.startswith(path)]
        return found


@dataclass(frozen=True)
class Stacks:
    storage: Stack
    training: Stack
    builder: Stack | None  # None where the image is given


def new_app(variant: str, outdir: str) -> cdk.App:
    app = cdk.App(outdir=outdir)
    build(app, Installation(**VARIANTS[variant]))
    return app


@cache
def stacks(variant: str = "default") -> Stacks:
    with tempfile.TemporaryDirectory() as folder:
        new_app(variant, folder).synth()
        files = [Path(folder) / f"resnet-spot-{name}.template.json" for name in ("storage", "training", "builder")]
        storage, training, builder = [Stack(json.loads(file.read_text())) if file.exists() else None for file in files]
        assert storage is not None
        assert training is not None
        return Stacks(storage, training, builder)


def flat(value: Any) -> Any:
    """References as short words, so that what is expected can be written down: `<Topic>`, `BUCKET/runs/*`."""
    match value:
        case {"Fn::Join": [delimiter, parts]}:
            return delimiter.join(flat(part) for part in parts)
        case {"Fn::ImportValue": name} if "GetAttBucket" in name:
            return "BUCKET"
        case {"Fn::ImportValue": name} if "RefBucket" in name:
            return "bucket-name"
        case {"Fn::ImportValue": name} if "RefSecret" in name:
            return "SECRET"
        case {"Ref": name}:
            return f"<{name.rstrip('0123456789ABCDEF') if '::' not in name else name}>"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"<{name[:-8]}.{attribute}>"
        case {"Fn::Sub": text}:
            return text
        case {"Fn::Base64": text}:
            return flat(text)
        case dict():
            return {key: flat(item) for key, item in value.items()}
        case list():
            return [flat(item) for item in value]
    return value
