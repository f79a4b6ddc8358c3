"""The weights of a run's checkpoint, with their card; and the command that writes both as a plain file.

torchvision and timm load that file.
"""

from __future__ import annotations

from dataclasses import replace

import safetensors.torch
from torch import Tensor

from trainer.checkpoint.layout import BLUR_POOL
from trainer.checkpoint.line import Checkpoints
from trainer.checkpoint.restore import DamagedError, read_known, read_object, tensors_of
from trainer.contract import UserError, run_key
from trainer.manifest import Manifest, is_best
from trainer.model_card import CARD_FILE, METADATA_KEY, ModelCard, card_of_config
from trainer.store import NotFoundError, ObjectStore
from trainer.text import show_bytes, tell


def choose_checkpoint(store: ObjectStore, run_id: str, which: str, step: int | None) -> tuple[str, Manifest, str, str]:
    """The key of the checkpoint to export, and of its manifest what `read_known` gives. Raises UserError."""
    found = Checkpoints.find(store, run_id)
    if step is not None:
        key = found.of_step(step, asked=f"--step {step}")
    else:
        key = (found.lease.best if found.lease is not None and which == "best" else "") or found.newest
    try:
        return key, *read_known(store, found, key)
    except DamagedError as error:
        raise UserError(f"{store.describe(key)} is damaged ({error}): choose another with --step") from error


def check_mean(manifest: Manifest) -> None:
    """Raises UserError where a checkpoint has no mean of its last epochs, or one that has no statistics yet."""
    counters, epochs = manifest["counters"], manifest["config"].get("average", {}).get("late_epochs", 0)
    if not epochs:
        raise UserError("--weights swa: this run keeps no mean of its last epochs; use --weights model")
    if not 0 < counters.get("swa_step", 0) <= counters.get("validated", 0):
        raise UserError(
            f"--weights swa: step {manifest['step']} has no mean yet that was validated: it is that of the last "
            f"{epochs} epochs (--average.late-epochs); choose a later step with --step, or use --weights model"
        )


def weights_of(store: ObjectStore, key: str, manifest: Manifest, weights: str) -> tuple[str, dict[str, Tensor]]:
    """Which weights of a checkpoint these are (model, ema or swa), and its tensors by torchvision's names.

    "auto" are those that scored best, else the average where there is one. Raises UserError.
    """
    try:
        tensors = tensors_of(read_object(store, manifest))
    except DamagedError as error:
        raise UserError(f"{store.describe(key)} is damaged ({error}): choose another with --step") from error
    has_average = any(name.startswith("ema.") for name in tensors)
    scored = manifest["counters"]["best"]["weights"] if is_best(manifest) else "ema" if has_average else "model"
    weights = scored if weights == "auto" else weights
    if weights == "swa":
        check_mean(manifest)
    plain = {name.removeprefix(f"{weights}."): tensor.contiguous() for name, tensor in tensors.items()
             if name.startswith(f"{weights}.")}  # fmt: skip
    if not plain:
        raise UserError(f"--weights {weights}: this run keeps no average of its weights; use --weights model")
    return weights, plain


def read_model_card(store: ObjectStore, run_id: str, manifest: Manifest, weights: str, sha256: str) -> ModelCard:
    """The card of weights of a checkpoint. A run of an older version has none: then the classes have no names.

    Raises UserError.
    """
    key = run_key(run_id, CARD_FILE)
    try:
        card = ModelCard.from_json(store.get(key))
    except NotFoundError:
        card = card_of_config(manifest["config"], run_id)
    except ValueError as error:
        raise UserError(
            f"{store.describe(key)} is no card of weights ({error}): the next start of the run writes it anew; or "
            "delete it, and the classes have no names"
        ) from error
    return replace(card, step=manifest["step"], weights=weights, checkpoint_sha256=sha256)


def export(store: ObjectStore, run_id: str, file: str, *, which: str, step: int | None, weights: str) -> None:
    """Write plain weights of a run's "best" or "newest" checkpoint, or of that of a step, to a safetensors file.

    Raises UserError.
    """
    key, manifest, sha256, digest = choose_checkpoint(store, run_id, which, step)
    weights, plain = weights_of(store, key, manifest, weights)
    network = manifest["config"].get("model", {})
    model, blur = str(network.get("name", "unknown")), str(network.get(BLUR_POOL, "none"))
    about = {"format": "pt", "model": model, "run": run_id, "step": str(manifest["step"]), "weights": weights}
    card = read_model_card(store, run_id, manifest, weights, sha256)
    about |= {"checkpoint_sha256": sha256, BLUR_POOL: blur, METADATA_KEY: card.to_text()}
    try:
        safetensors.torch.save_file(plain, file, metadata=about)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file!r} cannot be written: {error}; name another file") from error
    size = show_bytes(sum(tensor.nbytes for tensor in plain.values()))
    tell(f"{file}: {model}, step {manifest['step']:,}, {weights} weights, {len(plain)} tensors, {size}")
    tell(f"of the checkpoint with {digest}")
    if blur != "none":
        tell(
            f"trained with --model.blur-pool {blur}: a plain {model} loads these weights, and computes something else; "
            "blur its strided layers as trainer/learning/blur_pool.py does"
        )
