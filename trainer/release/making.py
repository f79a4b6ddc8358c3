"""Makes the files of a release: weights in each form, `config.json`, the card as JSON, and README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.contract import UserError
from trainer.export.agreement import take_sample
from trainer.export.costs import count_gmacs, count_parameters
from trainer.export.forms import WeightForm, choose_forms, refused_forms
from trainer.export.twins import why_not_timm
from trainer.model_card import CARD_FILE, ModelCard
from trainer.release.folder import CONFIG_FILE, FORM_FILES, README_FILE, appearing
from trainer.release.history import History, SeedScore
from trainer.release.readme import UNKNOWN_LICENSE, Release, readme_text
from trainer.release.timm_config import timm_config
from trainer.scoring.members import Member
from trainer.scoring.weight_files import head_size

USUAL_FORMS = ("torchvision", "onnx")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a release says of its weights, beside their card."""

    name: str
    license: str = UNKNOWN_LICENSE
    history: History
    seeds: Sequence[SeedScore] = ()


def forms_of_release(asked: str, card: ModelCard) -> tuple[WeightForm, ...]:
    """The forms to write: those that were asked for, else those of USUAL_FORMS that there can be. Raises UserError."""
    if "timm" in [name.strip() for name in asked.split(",")]:
        raise UserError(f"--forms {asked}: timm loads the file of the form torchvision: write torchvision for both")
    refused = refused_forms(card)
    return choose_forms(asked or ",".join(form for form in USUAL_FORMS if form not in refused) or "program", card)


def make_release(member: Member, forms: Sequence[WeightForm], told: Told, folder: Path, *, replace: bool) -> Release:
    """Write the folder, whole or not at all. What was written of the weights is read back and compared with them.

    Raises UserError.
    """
    release = release_of(member, forms, told)
    sample = take_sample(member)
    with appearing(folder, replace=replace) as new:
        for form in forms:
            form.write(member, sample, new / FORM_FILES[form.name])
        if release.has_timm:
            config = timm_config(member.card, member.model.state_dict())
            (new / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (new / CARD_FILE).write_text(member.card.to_text() + "\n", "utf-8")
        (new / README_FILE).write_text(readme_text(release), "utf-8")
    return release


def release_of(member: Member, forms: Sequence[WeightForm], told: Told) -> Release:
    card = member.card
    files = {form.name: FORM_FILES[form.name] for form in forms}
    return Release(
        name=told.name, card=card, classes=head_size(member.model.state_dict(), card.network),
        parameters=count_parameters(member.model), gmacs=count_gmacs(member.model, card.val_crop),
        files=files, has_timm="torchvision" in files and not why_not_timm(card), left_out=refused_forms(card),
        license=told.license, history=told.history, seeds=told.seeds,
    )  # fmt: skip
