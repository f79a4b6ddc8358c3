"""The layout of parquet files: as README.md declares it, or by the names of files and folders, as `datasets` does."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from trainer.data.making.layout.card import CARD, CardConfig, config_name, matching
from trainer.data.making.layout.plan import (
    KEYWORDS,
    Choices,
    Declared,
    SourceLayout,
    few,
    is_exactly,
    refused,
)
from trainer.data.making.layout.splits import (
    SplitFiles,
    check_shards,
    choose,
    left_groups,
    roles_of,
)

# What `datasets` writes, as data/train-00000-of-00002.parquet; an older version put a hash behind the numbers.
_WRITTEN = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}.*")
# Spark writes part-00000-<uuid>-c000.snappy; `datasets` reads the word before it.
_NUMBER_AT_END = re.compile(
    r"([-._ ]?\d+(-of-\d+)?|[-._ ]part-\d+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(-c\d+)?(\.\w+)?)+$"
)
TOP = "."  # the config of files that lie in no folder


def table_groups(
    data: str, paths: Sequence[str], configs: Mapping[str, CardConfig], choices: Choices
) -> list[SplitFiles]:
    """The splits of parquet files, declared or named. Raises UserError if one of several configs must be chosen."""
    if not paths or not any(config.patterns or config.folder for config in configs.values()):
        return _grouped_by_name(paths)
    name = config_name(data, configs, choices)
    groups, config = [], configs[name]
    if not config.patterns:
        groups = [
            SplitFiles(name, group.split, group.files, group.roles, group.exact)
            for group in _grouped_by_name([path for path in paths if path.startswith(f"{config.folder}/".lstrip("/"))])
        ]
    for split, patterns in config.patterns.items():
        found = matching(data, paths, config, split)
        roles = frozenset(role for role in KEYWORDS if is_exactly(split, role)) or roles_of(split)
        if not found and (roles or split in choices.train_split + choices.val_split):
            raise refused(
                data, f"{CARD} declares the files of split {split} as {few(patterns)}, and none is here: fetch them"
            )
        groups.append(SplitFiles(name, split, tuple(found), roles, exact=True))
    rest = sorted(set(paths) - {path for group in groups for path in group.files})
    if rest:
        groups.append(SplitFiles(f"other than {name}", "", tuple(rest), frozenset()))
    return groups


def lay_out_tables(
    data: str,
    groups: Sequence[SplitFiles],
    configs: Mapping[str, CardConfig],
    choices: Choices,
    left: Mapping[str, list[str]],
) -> SourceLayout:
    """Choose the splits of parquet files and count their shards. Raises UserError with the question or the fix."""
    chosen = choose(data, [group for group in groups if group.split], choices)
    splits = {role: tuple(sorted(path for group in found for path in group.files)) for role, found in chosen.items()}
    said = [
        line for role, files in splits.items() for line in check_shards(data, role, files, choices.accept_incomplete)
    ]
    names = {role: "+".join(group.split for group in found) for role, found in chosen.items()}
    declared = declared_of(configs, choices.config or chosen["train"][0].config)
    return SourceLayout(
        "parquet", splits, names, dict(left) | left_groups(groups, chosen), declared=declared, said=tuple(said)
    )


def declared_of(configs: Mapping[str, CardConfig], name: str) -> Declared:
    """What README.md says of a config. A single one counts, whatever its name is."""
    config = configs.get(name) or (next(iter(configs.values())) if len(configs) == 1 else CardConfig())
    return config.declared


def _grouped_by_name(paths: Sequence[str]) -> list[SplitFiles]:
    files: dict[tuple[str, str, frozenset[str], bool], list[str]] = defaultdict(list)
    for path in paths:
        files[_group_of(path)].append(path)
    return [
        SplitFiles(config, split, tuple(sorted(found)), roles, exact)
        for (config, split, roles, exact), found in sorted(files.items(), key=lambda item: item[1])
    ]


def _group_of(path: str) -> tuple[str, str, frozenset[str], bool]:
    """The config and the split of a file, what it may be for, and whether `datasets` has written its name."""
    *folders, file = PurePosixPath(path).parts
    stem = file.removesuffix(".parquet")
    config = "/".join(folders) or TOP
    around = frozenset(role for folder in folders for role in KEYWORDS if is_exactly(folder, role))
    written = _WRITTEN.fullmatch(stem)
    if written and not around - roles_of(written["split"]):
        return config, written["split"], roles_of(written["split"]), True
    name = _NUMBER_AT_END.sub("", stem)
    roles, by_folder = roles_of(stem), next((i for i in reversed(range(len(folders))) if roles_of(folders[i])), None)
    if by_folder is None:
        return config, name or stem, roles, False
    if roles:  # both say it: a difference is a question
        return config, name, roles | roles_of(folders[by_folder]), False
    return "/".join(folders[:by_folder]) or TOP, folders[by_folder], roles_of(folders[by_folder]), False
