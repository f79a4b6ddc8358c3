"""The layout of ImageNet's own archives, as image-net.org gives them. They are read as they are, without unpacking."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from trainer.data.making.layout.plan import NOWHERE, Listing, SourceLayout, refused
from trainer.data.making.layout.truth import find_truth

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


def check_unpacked(data: str, listing: Listing, roles: Collection[str]) -> None:
    """Raise UserError if a split lies in folders and the other in an archive. `roles` are those that folders have."""
    names = {path.rpartition("/")[2] for path in listing if listing[path] != NOWHERE}
    for role, name in ARCHIVES.items():
        if roles and role not in roles and name in names:
            raise refused(
                data,
                f"split {role} is missing: {name} is still packed, and the other split is not. Unpack it into {role}/, "
                "or give a folder that holds both archives and no folders of images",
            )


def lay_out_archives(data: str, listing: Listing, left: Mapping[str, list[str]]) -> SourceLayout:
    """Both archives, and what says the classes of the second. Raises UserError for what is missing."""
    splits: dict[str, tuple[str, ...]] = {}
    for role, name in ARCHIVES.items():
        found = [path for path in listing if path.rpartition("/")[2] == name and listing[path] != NOWHERE]
        if len(found) != 1:
            raise refused(
                data, f"split {role} is missing or there twice: {name} is here {len(found)} times, and must be once"
            )
        splits[role] = (found[0],)
    truth = find_truth(data, listing, splits["val"][0])
    used = {*splits["train"], *splits["val"], *truth}
    left = {reason: kept for reason, paths in left.items() if (kept := [path for path in paths if path not in used])}
    return SourceLayout("tar", splits, ARCHIVES, left, truth={"val": truth})
