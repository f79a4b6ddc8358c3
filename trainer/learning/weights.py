"""Where the weights come from that a model starts from: torchvision, a file or a store."""

from __future__ import annotations

import errno
import ssl
import sys
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote

import torchvision

from trainer.contract import UserError
from trainer.learning.weight_file import check_blur, parse_file
from trainer.recipes.config import ModelConfig
from trainer.store import NotFoundError, StoreError, may_pass, open_store
from trainer.store.retry import patiently
from trainer.text import say

TORCHVISION_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
TRY_SECONDS = 120.0  # how long a start waits for a store, or the internet, that fails
PASSING_STATUS = (408, 425, 429)  # beside those from 500 on: the server may answer otherwise in a minute


def read_weights(config: ModelConfig) -> object:
    """What torchvision's weights API, a file, or a store (`s3://bucket/key`) has.

    Raises UserError, and StoreError for a fault that may pass: then the next start tries again.
    """
    weights = config.weights
    if weights in TORCHVISION_WEIGHTS:
        return download_weights(config)
    body = read_body(weights)
    content = parse_file(body, weights)
    check_blur(body, weights, config.blur_pool)
    return content


def read_body(origin: str) -> bytes:
    """The bytes of a file, or of an object of a store. Raises as `read_weights`."""
    if origin.startswith(("http://", "https://")):
        raise UserError(f"--model.weights {origin!r} is an address: download the file, and name the file")
    try:
        if "://" in origin and not origin.startswith("file:///"):
            folder, _, key = origin.rpartition("/")
            get = partial(open_store(folder).get, key)
            return patiently(f"--model.weights {origin!r}", get, say, TRY_SECONDS, may_pass)
        return Path(unquote(origin.removeprefix("file://")) if "://" in origin else origin).read_bytes()
    except UserError:
        raise
    except (OSError, NotFoundError, ValueError) as error:  # ValueError: what ends in a slash is no key
        raise UserError(
            f"--model.weights {origin!r} cannot be read ({error}): use one of "
            f"{', '.join(TORCHVISION_WEIGHTS)}, a .pth or .safetensors file, or s3://bucket/key"
        ) from error


def download_weights(config: ModelConfig) -> object:
    """The state dict of torchvision's own weights, from its cache or the internet. Raises as `read_weights`."""
    choices = torchvision.models.get_model_weights(config.name)
    if config.weights not in choices.__members__:
        raise UserError(f"torchvision has no {config.weights} of {config.name}: use {', '.join(choices.__members__)}")
    fetch = partial(
        choices[config.weights].get_state_dict, progress=sys.stderr.isatty(), check_hash=True, weights_only=True
    )
    what = f"the weights {config.weights} of {config.name}"

    def download() -> object:
        try:
            try:
                return fetch()
            except RuntimeError:  # the file's hash is wrong, as after a connection that was cut: once more
                return fetch()
        except (OSError, HTTPException, RuntimeError) as error:  # OSError: the network's faults, too
            message = (
                f"{what} could not be downloaded ({error}): where there is no internet, name a copy with "
                "--model.weights FILE.pth, FILE.safetensors or s3://bucket/key"
            )
            if is_lasting(error):
                raise UserError(message) from error
            raise StoreError(message, errno.errorcode.get(getattr(error, "errno", 0) or 0, "")) from error

    return patiently(what, download, say, TRY_SECONDS, may_pass)


def is_lasting(error: Exception) -> bool:
    """Whether the next download would fail, too: the answer is final, or the file is not what it should be."""
    if isinstance(error, HTTPError):
        return error.code < 500 and error.code not in PASSING_STATUS
    if isinstance(error, URLError):
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    return isinstance(error, RuntimeError)
