"""What makes a request impossible, found on the laptop before anything costs money. Each is a UserError.

Nothing here asks AWS. What an account lacks is in `infra.operate.checks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches

from infra.config import PREPARE_PREFIX, Installation, context_key
from infra.operate.planning import catalog, datasets, work
from infra.operate.planning.arguments import check_options, is_on, number_given, value_of
from infra.operate.planning.datasets import Dataset
from infra.operate.planning.options import DEFAULT_RECIPE, Request, nodes_of, recipe_of
from infra.run.spec import Spec
from trainer.contract import RUN_ID_RULE, UserError

MOST_HOURS = 168.0
MOST_USD = 100_000.0
LARGEST_SIDE = 2048  # of a side of an image, for every network


def check(request: Request, installation: Installation) -> None:
    """Check what can be checked without asking AWS. Raises UserError."""
    if request.run_id and not re.fullmatch(RUN_ID_RULE, request.run_id):
        raise UserError(f"RUN={request.run_id!r} is not a run id: use {RUN_ID_RULE}, for example RUN=finetune-2")
    if request.kind == "train":
        recipe = recipe_of(request)
        work.check_recipe(recipe)
        check_options(recipe, request.arguments, work.trainer_facts()["options"])
        check_network(work.work_of(recipe, request.arguments), request.arguments)
        if not (request.data or work.work_of(recipe).data):
            raise UserError(f"RECIPE={recipe} has no images of its own: give yours, DATA={datasets.KNOWN}")
        catalog.gpu_types(types_of(request, installation))
    for type in types_of(request, installation):
        catalog.instance_type(type)
    datasets.check_form(request.data)
    for name, value, most in (("HOURS", request.hours, MOST_HOURS), ("BUDGET", request.budget_usd, MOST_USD)):
        if not (0 <= value <= most):
            limits = f"more than 0 and at most {most:,.0f}"
            raise UserError(f"{name}={value:g} is out of range: {limits}, for example {name}=20")
    if request.market and request.market not in catalog.MARKETS:
        raise UserError(f"MARKET={request.market!r} is unknown: use spot or on-demand")
    check_nodes(request, installation)


def check_nodes(request: Request, installation: Installation) -> None:
    """So many machines are allowed, each GPU has images to compute, and all are the same. Raises UserError."""
    nodes, most = nodes_of(request), int(installation.max_nodes)
    if not 1 <= nodes <= most:
        limit = f"{context_key('max_nodes')}={most} in cdk.json, which may be up to 16"
        raise UserError(f"NODES={nodes} is out of range: use 1 to {most} ({limit}, then `make deploy NO_LAUNCH=1`)")
    if request.kind != "train" or not request.recipe:  # `make_plan` asks again once it knows the recipe
        return
    types = catalog.gpu_types(types_of(request, installation))
    gpus = max(types, key=lambda type: type.gpus)
    if (count := nodes * gpus.gpus) == 1:
        return
    batch, of_device = batches_of(request)
    if (parts := batch // max(1, of_device)) < count:
        each = f" of {gpus.name} with {gpus.gpus} GPUs" if gpus.gpus > 1 else ""
        fits = f"NODES={fewer}, or " if 1 < (fewer := parts // gpus.gpus) < nodes else ""
        raise UserError(
            f"NODES={nodes}{each}: a step has {parts} parts, {batch} images by {of_device}, and each GPU needs one: "
            f'use {fits}ARGS="--device-batch-size {largest_part(batch, count)}"'
        )
    check_joint_work(request, gpus.gpus, batch, of_device)
    kinds = {type.all_gpus for type in types}
    if nodes > 1 and request.types and len(kinds) > 1:
        raise UserError(
            f"TYPES={','.join(request.types)} have different GPUs ({', '.join(sorted(kinds))}), and the machines of "
            f"one run need the same: use TYPES={request.types[0]}, or NODES=1"
        )


def check_joint_work(request: Request, gpus: int, batch: int, of_device: int) -> None:
    """Several GPUs can compute what the options ask for, also once machines are lost. Raises UserError.

    `gpus` are those of one machine.
    """
    nodes, parts = nodes_of(request), batch // of_device
    if is_on("cuda-graphs", request.arguments, default=False):
        raise UserError(
            f"--cuda-graphs works for one GPU, and this run has {nodes * gpus} (NODES={nodes}): leave it out"
        )
    each = [gpus * math.lcm(*range(1, count + 1)) for count in range(1, nodes + 1)]  # as trainer/process/nodes.py
    if nodes > 1 and is_on("model.sync-norm", request.arguments, default=False) and parts % each[-1]:
        fits = [f"NODES={sum(parts % number == 0 for number in each)}"] * (parts % gpus == 0)
        fits += [f'ARGS="--model.sync-norm --device-batch-size {batch // each[-1]}"'] * (batch % each[-1] == 0)
        raise UserError(
            f"NODES={nodes} with --model.sync-norm: machines may come and be lost, so 1 to {nodes} of them must share "
            f"out the {parts} parts of a step evenly, {batch} images by {of_device}: use "
            f"{' or '.join([*fits, 'no --model.sync-norm'])}"
        )


def batches_of(request: Request) -> tuple[int, int]:
    """The images of a step, and those that a device computes at once."""
    computed = work.work_of(recipe_of(request), request.arguments)
    return computed.batch, int(number_given("device-batch-size", request.arguments)) or computed.device_batch


def largest_part(batch: int, gpus: int) -> int:
    """The most images at once with which a step has a part for each of so many GPUs."""
    return next(part for part in range(max(1, batch // gpus), 0, -1) if batch % part == 0)


def check_gpus(request: Request, installation: Installation) -> None:
    """The types compute in the run's precision. Raises UserError. Of an existing run, only its spec tells that."""
    if request.kind == "train":
        precision = work.work_of(recipe_of(request), request.arguments).precision
        catalog.check_precision(types_of(request, installation), precision)


def check_network(computed: work.Work, arguments: Sequence[str]) -> None:
    """The network can be trained, and has these weights and takes images of these sizes. Raises UserError."""
    name, networks = computed.network, work.trainer_facts()["networks"]
    if name not in networks:
        near = ", ".join(get_close_matches(name, networks)) or "resnet50, resnet18"
        raise UserError(f"--model.name {name!r} is not a torchvision classification model: use one of {near}, …")
    row, weights = networks[name], computed.weights
    if row["refused"]:
        raise UserError(f"--model.name is {name}: it must be {row['refused']}")
    if weights.startswith("IMAGENET1K_") and weights not in row["weights"]:
        those = ", ".join(row["weights"]) or "none"
        raise UserError(f"--model.weights is {weights}, but torchvision has of {name}: {those}; give others, or a file")
    sizes = {
        "data.resolution": computed.stages[-1].pixels,
        "data.start-resolution": computed.stages[0].pixels,
        "data.val-crop": computed.val_crop,
    }
    for option, usual in sizes.items():
        pixels = int(number_given(option, arguments)) or usual
        if not row["least"] <= pixels <= LARGEST_SIDE or row["only"] not in (0, pixels):
            rule = f"{row['only']} pixels" if row["only"] else f"{row['least']} to {LARGEST_SIDE} pixels"
            raise UserError(
                f"--{option} is {pixels}: {name} takes {rule}; give --size or --{option}, or another network"
            )


def check_classes(request: Request, dataset: Dataset) -> None:
    """The head that is asked for has as many outputs as the data has classes. Raises UserError."""
    asked = value_of("model.num-classes", request.arguments)
    if dataset.classes and int(number_given("model.num-classes", request.arguments)) not in (0, dataset.classes):
        raise UserError(
            f"--model.num-classes is {asked}, but {dataset.uri} has {dataset.classes} classes: leave the option out, "
            "and the model has as many outputs as the data has classes"
        )


def check_name(request: Request) -> None:
    """A preparation's name begins with PREPARE_PREFIX, and a training's does not. Raises UserError."""
    if not request.run_id or request.run_id.startswith(PREPARE_PREFIX) == (request.kind == "prepare"):
        return
    name = request.run_id.removeprefix(PREPARE_PREFIX) or DEFAULT_RECIPE
    rule, fix = (
        (f"a preparation's name begins with {PREPARE_PREFIX!r}", f"{PREPARE_PREFIX}{name}")
        if request.kind == "prepare"
        else (f"only a preparation's name begins with {PREPARE_PREFIX!r}", name)
    )
    raise UserError(f"RUN={request.run_id!r} does not fit: {rule}; use RUN={fix}")


def types_of(request: Request, installation: Installation) -> tuple[str, ...]:
    listed = installation.instance_types if request.kind == "train" else installation.prepare_instance_types
    return request.types or tuple(listed.split(","))


def check_types(asked: Request, spec: Spec, installation: Installation) -> None:
    """A run that goes on has types of the installation, unless others are asked for now. Raises UserError."""
    usual = types_of(Request(kind=spec.kind), installation)
    if not asked.types and (strange := [type for type in spec.types if type not in usual]):
        raise UserError(
            f"RUN={spec.run_id} was started on {', '.join(strange)}, which the installation does not name: ask for it "
            f"again, TYPES={','.join(spec.types)}, or for others, TYPES={usual[0]}"
        )
