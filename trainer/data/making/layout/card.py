"""What README.md declares about a data set, as `datasets` reads it: its configs, their files, splits and classes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.making.layout.plan import Choices, Declared, few, how_to_choose, is_exactly, refused

CARD = "README.md"
DEFAULT = "default"


@dataclass(frozen=True)
class CardConfig:
    """One config of README.md. Without patterns its files are found by their names, below `folder`."""

    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split: of its files
    folder: str = ""
    default: bool = False
    declared: Declared = field(default_factory=Declared)


def read_card(data: str, text: str) -> dict[str, CardConfig]:
    """The configs that README.md declares, in its order. Raises UserError if its head is not what `datasets` writes."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK  # by which the hub and `datasets` find the head

    found = REGEX_YAML_BLOCK.search(text)
    if not found:
        return {}
    try:
        head = yaml.safe_load(found.group(2))
        if not isinstance(head, dict):
            return {}
        infos = _infos(head.get("dataset_info"))
        configs = {
            str(raw["config_name"]): _card_config(raw, infos.get(str(raw["config_name"]), Declared()))
            for raw in head.get("configs") or ()
        }
    except (yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise refused(
            data, f"the head of {CARD} is not what `datasets` writes ({error}): correct or remove it"
        ) from error
    return configs or {name: CardConfig(declared=declared) for name, declared in infos.items()}


def config_name(data: str, configs: Mapping[str, CardConfig], choices: Choices) -> str:
    """The chosen config of README.md, else the only or the default one. Raises UserError where one must be chosen."""
    defaults = (name for name, config in configs.items() if config.default or name == DEFAULT or len(configs) == 1)
    name = choices.config or next(defaults, "")
    if name not in configs:
        why = f"there is no config {name!r}" if name else f"{CARD} declares several configs"
        how = how_to_choose("config", next(iter(configs)))
        raise refused(data, f"{why}: choose one of {few(list(configs), 12)}, {how}")
    return name


def matching(data: str, paths: Sequence[str], config: CardConfig, split: str) -> list[str]:
    """The files that README.md declares for a split, sorted. Raises UserError for a pattern that is none."""
    from fsspec.utils import glob_translate  # what `datasets` matches with

    compiled = []
    for pattern in config.patterns[split]:
        try:
            whole = posixpath.normpath(f"{config.folder}/{pattern}").lstrip("/")
            compiled.append(re.compile(glob_translate(whole)))
        except (ValueError, re.error) as error:
            raise refused(
                data,
                f"{CARD} declares the files of split {split} as {pattern!r}, no pattern ({error}): correct it",
            ) from error
    return sorted(path for path in paths if any(pattern.match(path) for pattern in compiled))


def check_images(
    data: str,
    configs: Mapping[str, CardConfig],
    choices: Choices,
    images: Sequence[str],
    found: Mapping[str, Sequence[str]],
) -> None:
    """Raise UserError if README.md declares other images for a split than were found by the names of folders."""
    if choices.train_split or choices.val_split or not any(config.patterns for config in configs.values()):
        return
    config = configs[config_name(data, configs, choices)]
    for role, paths in found.items():
        for split in config.patterns:
            declared = matching(data, images, config, split) if is_exactly(split, role) else list(paths)
            if odd := sorted(set(declared) ^ set(paths)):
                raise refused(
                    data,
                    f"{CARD} declares other images for split {split} than its folder has, {len(odd):,} differ "
                    f"({few(odd)}): choose the folder, {how_to_choose(f'{role}_split', split)}, or correct {CARD}",
                )


def _card_config(raw: Mapping[str, Any], declared: Declared) -> CardConfig:
    found = raw.get("data_files")
    entries = found if isinstance(found, list) else [found] if found else []
    patterns: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split, path = (str(entry["split"]), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        patterns[split] = patterns.get(split, ()) + tuple(path if isinstance(path, list) else [path])
    folder = posixpath.normpath(str(raw.get("data_dir") or "")).strip("/")
    return CardConfig(patterns, "" if folder == "." else folder, bool(raw.get("default")), declared)


def _infos(raw: Any) -> dict[str, Declared]:
    found = raw if isinstance(raw, list) else [raw] if raw else []
    return {
        str(info.get("config_name", DEFAULT)): Declared(
            {str(split["name"]): int(split["num_examples"]) for split in info.get("splits") or ()},
            {str(column["name"]): names for column in info.get("features") or () if (names := _names(column))},
        )
        for info in found
    }


def _names(column: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a ClassLabel: a list, or a mapping from numbers, which YAML may give as text."""
    kind = column.get("dtype")
    names = kind.get("class_label", {}).get("names", ()) if isinstance(kind, dict) else ()
    if isinstance(names, dict):
        return tuple(str(name) for _, name in sorted((int(number), name) for number, name in names.items()))
    return tuple(str(name) for name in names)
