"""Files that say the classes of a validation whose images lie in no class folders, as ImageNet's does."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.data.making.layout.plan import refused

# The first of them that is there counts, and the others must agree. Two belong together.
TRUTHS = (
    ("LOC_val_solution.csv",),
    ("valprep.sh",),
    ("val_annotations.txt",),
    ("imagenet_2012_validation_synset_labels.txt",),
    ("ILSVRC2012_validation_ground_truth.txt", "meta.mat"),
    ("ILSVRC2012_devkit_t12.tar.gz",),
)


def find_truth(data: str, listing: Iterable[str], where: str) -> tuple[str, ...]:
    """The files that say the classes of the images in the folder `where`. UserError says which there could be."""
    by_name: dict[str, list[str]] = {name: [] for names in TRUTHS for name in names}
    for path in listing:
        if (name := path.rpartition("/")[2]) in by_name:
            by_name[name].append(path)
    there = (files for files in TRUTHS if len(files) == 1 or all(len(by_name[file]) == 1 for file in files))
    if found := tuple(path for files in there for file in files for path in by_name[file]):
        return found
    if twice := next((found for found in by_name.values() if len(found) > 1), None):
        raise refused(
            data,
            f"val has 0 class folders, and {twice[0].rpartition('/')[2]}, which says the classes of its images, is "
            f"there {len(twice)} times ({', '.join(twice)}): remove all but one",
        )
    raise refused(
        data,
        f"val has 0 class folders: its images lie together in {where}, and nothing says their classes. For ImageNet, "
        "put one of these anywhere into the folder: ILSVRC2012_devkit_t12.tar.gz, or its "
        "ILSVRC2012_validation_ground_truth.txt and meta.mat (image-net.org); LOC_val_solution.csv (Kaggle); "
        "valprep.sh; imagenet_2012_validation_synset_labels.txt. For other images, sort them into "
        f"{where}<class>/<image>",
    )
