"""Datasets of a Hugging Face hub: their parquet files, downloaded into the hub's own cache."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.contract import UserError
from trainer.data.making.source_formats import SPLITS
from trainer.data.progress import ProgressListener


class UnreachableError(UserError):
    """The hub does not answer or is too busy. This may be over in a minute, though nobody does anything."""


def download_parquet(data: str, secrets_dir: str, progress: ProgressListener | None = None) -> Path:
    """Download the parquet files of a hub dataset into the hub's own cache. An interrupted download continues.

    `progress` is told of bytes when they arrive and when they are written.
    """
    from huggingface_hub import constants, get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

    secret = Path(secrets_dir) / "hf_token" if secrets_dir else None
    token = (secret.read_text().strip() if secret and secret.is_file() else "") or get_token()
    page = f"{constants.ENDPOINT}/datasets/{data}"
    give = f"make a read token at {constants.ENDPOINT}/settings/tokens and give it as HF_TOKEN=… or by `hf auth login`"
    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [f"*{name}*.parquet" for names in SPLITS.values() for name in names]

    class Bar(tqdm):  # the hub's client reports progress in no other way
        def update(self, count: float | None = 1) -> bool | None:
            if progress is not None and count:
                progress(int(count))
            shown: bool | None = super().update(count)
            return shown

    try:
        return Path(
            snapshot_download(
                data, repo_type="dataset", allow_patterns=patterns, token=token or False, tqdm_class=Bar
            )
        )  # fmt: skip
    except GatedRepoError as error:
        if not token:
            raise UserError(
                f"DATA={data} is gated and no token was found: accept the terms on {page}, then {give}"
            ) from error
        raise UserError(
            f"DATA={data} is gated and the hub refused this token: accept the terms on {page} with the account that "
            f"the token belongs to, or {give}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"DATA={data}: no folder of that name here, and no such dataset at {page} (or it is private): check the "
            f"spelling; for a private dataset {give}"
        ) from error
    except LocalEntryNotFoundError as error:  # the client has tried for half a minute
        raise UnreachableError(
            f"DATA={data}: no folder of that name here, and the hub at {constants.ENDPOINT} cannot be reached: check "
            "the network, or give DATA= a folder of its parquet files"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"DATA={data}: the hub at {constants.ENDPOINT} answered {error.response.status_code}: if it is 401 or 403, "
            f"{give}; else try again later"
        ) from error
