"""Which split is for training and which for validation: by the words that `datasets` knows, or by the user's choice.

Where two could be meant, the user is asked: the error names the option that answers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.data.making.layout.plan import KEYWORDS, Choices, few, how_to_choose, is_exactly, refused

_WORDS = {role: re.compile(rf"(^|[-._ 0-9])({'|'.join(words)})([-._ 0-9]|$)", re.I) for role, words in KEYWORDS.items()}
_SHARD = re.compile(r"(?P<series>.*?)-(?P<number>\d{4,6})-of-(?P<count>\d{4,6})(?!\d)")


@dataclass(frozen=True)
class SplitFiles:
    """Files that belong together: one split of one config."""

    config: str  # "." where there is none
    split: str  # its name, as options give it
    files: tuple[str, ...]
    roles: frozenset[str]  # what it may be for, judged by its name
    exact: bool = False  # it is named as `datasets` writes it, so no other split means the same


def roles_of(name: str) -> frozenset[str]:
    return frozenset(role for role, pattern in _WORDS.items() if pattern.search(name))


def choose(data: str, groups: Sequence[SplitFiles], choices: Choices) -> dict[str, list[SplitFiles]]:
    """The groups of training and of validation. Raises UserError with the question and the option that answers it."""
    pool = [group for group in groups if choices.config in ("", group.config)]
    if not pool:
        raise refused(data, f"there is no config {choices.config!r}: the configs are {_configs(groups)}")
    chosen = {role: _of_role(data, role, pool, choices) for role in KEYWORDS}
    files = {role: {file for group in groups for file in group.files} for role, groups in chosen.items()}
    if both := sorted(files["train"] & files["val"]):
        raise refused(
            data,
            f"{both[0]} would be in training and in validation. The splits here are {_splits(pool)}: choose "
            f"two of them, {how_to_choose('val_split', '…')}, and likewise --train-split",
        )
    return chosen


def _of_role(data: str, role: str, pool: Sequence[SplitFiles], choices: Choices) -> list[SplitFiles]:
    if wanted := choices.split(role):
        return _chosen_by_name(data, role, wanted.split("+"), pool)
    candidates = [group for group in pool if role in group.roles]
    if not candidates:
        raise refused(
            data,
            f"split {role} is missing: no file or folder is named {' or '.join(KEYWORDS[role])}. The splits here are "
            f"{_splits(pool)}. {_for_missing(role, pool, choices)}",
        )
    plain = [group for group in candidates if is_exactly(group.split, role)]
    if len(plain) == 1 and all(group.exact for group in candidates):  # `datasets` reads train beside train_small so
        return plain
    if len(candidates) == 1:
        return candidates
    same_name = len({group.split for group in candidates}) < len(candidates)
    configs = sorted({group.config for group in candidates})
    if same_name and len(configs) > 1:
        raise refused(
            data,
            f"split {role} is there several times, in the configs {_configs(candidates)}: choose one, "
            f"{how_to_choose('config', configs[0])}",
        )
    raise refused(
        data,
        f"split {role} may be {_splits(candidates)}: choose one, "
        f"{how_to_choose(f'{role}_split', candidates[0].split)}; "
        f"or several with + between them, {'+'.join(group.split for group in candidates[:2])}",
    )


def _chosen_by_name(data: str, role: str, names: Sequence[str], pool: Sequence[SplitFiles]) -> list[SplitFiles]:
    """The groups that the user names. Raises UserError if a file would be read twice."""
    groups = [_only(data, name, pool) for name in names]
    uses = Counter(file for group in groups for file in group.files)
    if twice := next((file for file, count in uses.items() if count > 1), ""):
        raise refused(
            data,
            f"{twice} would be read twice: name each split once, and none that is a part of another, "
            f"{how_to_choose(f'{role}_split', names[0])}",
        )
    return groups


def _for_missing(role: str, pool: Sequence[SplitFiles], choices: Choices) -> str:
    """What to do where no split is named for a role: choose one that no other role has, a test for validation."""
    taken = {name for other in KEYWORDS for name in choices.split(other).split("+")}
    free = [group.split for group in pool if not group.roles and group.split not in taken]
    free.sort(key=lambda name: (name.lower() == "test") != (role == "val"))
    if not free:
        return f"None of them is left for --{role}-split: add it"
    return f"Add it, or choose one: {how_to_choose(f'{role}_split', free[0])}"


def _only(data: str, name: str, pool: Sequence[SplitFiles]) -> SplitFiles:
    found = [group for group in pool if group.split == name]
    if not found:
        raise refused(data, f"there is no split {name!r}: the splits here are {_splits(pool)}")
    if len(found) > 1:
        raise refused(
            data,
            f"split {name} is there several times, in the configs {_configs(found)}: choose one, "
            f"{how_to_choose('config', found[0].config)}",
        )
    return found[0]


def _splits(groups: Sequence[SplitFiles]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for group in groups:
        counts[group.split] += len(group.files)
    return few([f"{split} ({count:,} files)" for split, count in sorted(counts.items())], 12)


def _configs(groups: Sequence[SplitFiles]) -> str:
    return few(sorted({f"{group.config} (such as {group.files[0]})" for group in groups}), 12)


def left_groups(groups: Sequence[SplitFiles], chosen: Mapping[str, Sequence[SplitFiles]]) -> dict[str, list[str]]:
    """The files of the groups that were not chosen, by reason."""
    used = [group for of_role in chosen.values() for group in of_role]
    configs = {group.config for group in used}
    left: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group not in used:
            other = f"config {group.config}" if group.config not in configs else f"split {group.split}"
            left[f"{other} is not used"] += group.files
    return dict(left)


def check_shards(data: str, role: str, files: Sequence[str], accept_incomplete: bool) -> tuple[str, ...]:
    """Count the shards `…-00001-of-00003…` of a split. Raises UserError for two counts, doubles and missing ones.

    What is missing and accepted is returned, to be said.
    """
    series: dict[str, dict[int, dict[int, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in files:
        if match := _SHARD.match(path):
            series[match["series"]][int(match["count"])][int(match["number"])].append(path)
    said = []
    for name, counts in series.items():
        if len(counts) > 1:
            shown = [numbers[min(numbers)][0] for numbers in counts.values()]
            raise refused(
                data,
                f"{name} is there in {' and in '.join(str(count) for count in sorted(counts))} shards, from several "
                f"uploads ({few(shown)}): remove the shards of all but one",
            )
        ((count, numbers),) = counts.items()
        if doubles := [paths for paths in numbers.values() if len(paths) > 1]:
            raise refused(data, f"one shard is there twice, {' and '.join(doubles[0])}: remove one of each two")
        first = 1 if count in numbers and 0 not in numbers else 0
        width = len(str(count).rjust(5, "0"))
        missing = [
            f"{name}-{number:0{width}d}-of-{count:0{width}d}"
            for number in range(first, first + count)
            if number not in numbers
        ]
        if not missing:
            continue
        what = f"{len(missing):,} of {count:,} shards of {role} are missing ({few(missing)})"
        if not accept_incomplete:
            raise refused(data, f"{what}: fetch them, or go on without them, {how_to_choose('accept_incomplete', '')}")
        said.append(f"{what}, which is accepted")
    return tuple(said)
