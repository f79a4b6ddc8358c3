"""What README.md declares about a data set, as `datasets` reads it: its configs, their files, splits and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.data.making.layout.plan import Declared, refused

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

    lines = text.splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        head = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
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


def _card_config(raw: Mapping[str, Any], declared: Declared) -> CardConfig:
    found = raw.get("data_files")
    entries = found if isinstance(found, list) else [found] if found else []
    patterns: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        split, path = (str(entry["split"]), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        patterns[split] = patterns.get(split, ()) + tuple(path if isinstance(path, list) else [path])
    return CardConfig(patterns, str(raw.get("data_dir") or "").strip("/"), bool(raw.get("default")), declared)


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
