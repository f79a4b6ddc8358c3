"""What the tests of layouts share."""

from trainer.data.making.layout import SourceLayout


def files_of(layout: SourceLayout) -> list[str]:
    """Every file that decides the content: those of training, then those of validation with its label files."""
    return [path for role in ("train", "val") for path in (*layout.splits[role], *layout.truth.get(role, ()))]
