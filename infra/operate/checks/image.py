"""The checks of `preflight` on the image: the Docker engine here, and the account's quota of builds."""

from __future__ import annotations

import shlex

from infra.operate.checks.account import quota_value
from infra.operate.checks.finding import Finding, Wanted, ok, unneeded, wrong
from infra.operate.installation import building
from infra.operate.installation.engine import LOCAL, Engine, find_engine, place_of_build


def docker(wanted: Wanted) -> Finding:
    if by_tag := wanted.installation.image_by_tag():
        return wrong(by_tag, f"docker buildx imagetools inspect {shlex.quote(wanted.installation.image_uri)}")
    if wanted.installation.image_uri:
        return unneeded(f"the image is given: {wanted.installation.image_uri}")
    engine = find_engine()
    if place_of_build(wanted.build, engine) != LOCAL:
        return unneeded(f"CodeBuild builds the image: {why_in_account(wanted, engine)}")
    if engine.trouble:
        return wrong(engine.trouble, engine.fix)
    return ok(f"engine {engine.version}")


def why_in_account(wanted: Wanted, engine: Engine) -> str:
    if wanted.build:
        return f"BUILD={wanted.build}"
    return engine.trouble or f"the engine here is one for {engine.architecture} (BUILD=local takes it, and emulates)"


def image_build(wanted: Wanted) -> Finding:
    """Whether CodeBuild may build, where it would."""
    if wanted.installation.image_uri:
        return unneeded("the image is given")
    if place_of_build(wanted.build, find_engine()) == LOCAL:
        return unneeded("Docker builds the image here")
    if not quota_value(wanted, building.QUOTA, "codebuild"):
        return wrong("this account may run no build yet (or build here: BUILD=local)", building.RAISE_QUOTA)
    return ok(f"in the account: {building.PRICE}, unless the registry has it; {building.MOST_PRICE}")
