"""What happens to parquet files and archives: shards, schemas, labels, members. The rules are those of `damages`."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.draws.damages import Damage
from tests.draws.forms import card
from tests.draws.pictures import paint
from tests.draws.source import Source, Table


def _table(dice: random.Random, source: Source, fewest: int = 1) -> tuple[str, Table] | None:
    """One with rows that are read."""
    found = [(path, table) for path, table in source.tables.items() if len(table.rows) >= fewest]
    return dice.choice(found) if found else None


def missing_file(dice: random.Random, source: Source) -> bool:
    """A shard, or an archive, did not arrive."""
    counted = card in source.made
    paths = [path for path in source.tables if "-of-" in path or counted]
    paths += source.archives
    if not paths:
        return False
    path = dice.choice(paths)
    name = path.rpartition("/")[2].removesuffix(".parquet")
    if counted:  # of what is there now, README.md would declare less
        declared = card(source)
        source.made.remove(card)
        source.files |= declared
        source.refusal.append("README.md declares")
    source.tables.pop(path, None)
    source.archives.pop(path, None)
    source.refusal += [name.split("-of-")[0], "is missing", "no file or folder is named", "nothing recognised"]
    return True


def other_upload(dice: random.Random, source: Source) -> bool:
    """A shard of an upload in another number of files."""
    path = next((path for path in source.tables if "-00000-of-" in path), "")
    if not path:
        return False
    before, _, after = path.partition("-of-")
    new = f"{before}-of-{int(after[:5]) + 1:05d}{after[5:]}"
    source.tables[new] = replace(source.tables[path], rows=[replace(row, split="") for row in source.tables[path].rows])
    source.refusal.append("several uploads")
    return True


def unused_table(dice: random.Random, source: Source) -> bool:
    """A split that nobody asked for."""
    if source.form != "parquet" or not source.tables:
        return False
    path = next(iter(source.tables))
    folder, table = path.rpartition("/")[0], source.tables[path]
    place = "test-00000-of-00001.parquet" if "/" in folder or folder in ("train", "val") else f"{folder}/test-0.parquet"
    rows = [replace(row, split="") for row in table.rows]
    source.files[place.lstrip("/")] = replace(table, rows=rows).body(source.classes)
    source.notes.append("a split test")
    return True


def other_order_of_names(dice: random.Random, source: Source) -> bool:
    """One file's ClassLabel has the same names in another order, and its numbers follow."""
    found = _table(dice, source)
    if not found or not found[1].names or len(found[1].names) < 2:
        return False
    path, table = found
    names = tuple(dice.sample(table.names or (), len(found[1].names)))
    source.tables[path] = replace(table, names=names)
    source.notes.append(f"{path!r}: another order of names")
    return True


def other_names(dice: random.Random, source: Source) -> bool:
    """One file's ClassLabel has a name more, or one that is renamed."""
    found = _table(dice, source)
    if not found or not (before := found[1].names):
        return False
    path, table = found
    names = (*before, "zzz") if dice.random() < 0.5 else (f"{before[0]}_", *before[1:])
    rows = [replace(row, label=names[before.index(row.label)]) for row in table.rows]
    source.tables[path] = replace(table, names=names, rows=rows)
    source.refusal += [path.rpartition("/")[2], "has no training image"]
    return True


def names_missing(dice: random.Random, source: Source) -> bool:
    found = _table(dice, source)
    if not found or not found[1].names:
        return False
    if len(source.tables) < 2:
        return False
    source.tables[found[0]] = replace(found[1], names=None)
    source.refusal.append(found[0].rpartition("/")[2])
    return True


def null_label(dice: random.Random, source: Source) -> bool:
    if not (found := _table(dice, source)):
        return False
    i = dice.randrange(len(found[1].rows))
    found[1].raw[i] = None
    split = found[1].rows[i].split
    source.refusal += [found[0].rpartition("/")[2], f"in split {split} is out of range", "is no class of training"]
    return True


def label_out_of_range(dice: random.Random, source: Source) -> bool:
    found = _table(dice, source)
    if not found or found[1].kind in ("string", "dictionary"):
        return False
    path, table = found
    i, wrong = dice.randrange(len(table.rows)), dice.choice([-1, 100, 255, 2**31, 2**63])
    limits = {"int8": 127, "uint8": 255, "int32": 2**31 - 1, "uint16": 65535, "int64": 2**63 - 1, "uint64": 2**64 - 1}
    if wrong > limits[table.kind] or (wrong < 0 and table.kind.startswith("u")):
        return False
    table.raw[i] = wrong
    split = table.rows[i].split
    source.refusal += [path.rpartition("/")[2], f"in split {split} is out of range", "has no training image"]
    return True


def text_out_of_range(dice: random.Random, source: Source) -> bool:
    """A label of validation that no training image has."""
    tables = [table for table in source.tables.values() if table.rows and table.rows[0].split == "val"]
    found = [table for table in tables if table.kind in ("string", "dictionary")]
    if not found:
        return False
    table = dice.choice(found)
    table.raw[dice.randrange(len(table.rows))] = "zzz"
    source.refusal.append("'zzz' of split val")
    return True


def other_type_of_labels(dice: random.Random, source: Source) -> bool:
    """One file's numbers are of another type, which is right; or they are text, decimals or truths, which is not."""
    found = _table(dice, source)
    if not found or found[1].kind in ("string", "dictionary"):
        return False
    path, table = found
    kind = dice.choice(["uint8", "int16", "int32", "uint32", "string", "float64"])
    source.tables[path] = replace(table, kind=kind)
    source.notes.append(f"{path!r}: labels are {kind}")
    if (kind == "string" and len(source.tables) > 1) or kind == "float64":
        source.refusal.append(path.rpartition("/")[2])
    return True


def other_columns(dice: random.Random, source: Source) -> bool:
    """One file calls a column otherwise."""
    if not (found := _table(dice, source)):
        return False
    path, table = found
    changed = dice.choice([("picture", table.columns[1]), (table.columns[0], "class")])
    source.tables[path] = replace(table, columns=changed)
    source.refusal.append(path.rpartition("/")[2])
    return True


def file_without_rows(dice: random.Random, source: Source) -> bool:
    path = next((path for path in source.tables if path.endswith("0.parquet") and "-of-" not in path), "")
    if not path:
        return False
    place = path.replace("0.parquet", "9.parquet")
    source.tables[place] = replace(source.tables[path], rows=[], raw={})
    source.notes.append(f"{place!r} has no rows")
    return True


def other_count_declared(dice: random.Random, source: Source) -> bool:
    if card not in source.made:
        return False
    source.made.remove(card)
    body = card(source)["README.md"]
    count = sum(entry.split == "train" for entry in source.truth)
    right, wrong = (f'"num_examples": {number}'.encode() for number in (count, count + 7))
    source.files["README.md"] = body.replace(right, wrong)
    source.refusal.append("README.md declares")
    return True


def member_twice(dice: random.Random, source: Source) -> bool:
    """`tar --append` leaves the old member before the new one. Who unpacks it gets the new one."""
    if not source.archives:
        return False
    path = dice.choice([*source.archives])
    members = source.archives[path].members
    i = dice.randrange(len(members))
    old = replace(members[i], data=paint(dice).data, split="")
    members.insert(0, old)
    source.notes.append(f"{path}: {old.place} is there twice")
    source.doubtful.append(path.rpartition("/")[2])
    return True


def class_missing_in_archive(dice: random.Random, source: Source) -> bool:
    """An archive of a class did not get into the one of training."""
    found = [path for path, archive in source.archives.items() if archive.by_class]
    if not found:
        return False
    archive = source.archives[found[0]]
    names = sorted({m.label for m in archive.members})
    gone = dice.choice(names)
    if len(names) < 2 or all(m.label != gone for m in archive.members):
        return False
    archive.members[:] = [m for m in archive.members if m.label != gone]
    source.refusal += [gone, "no class of training"]
    return True


def system_member(dice: random.Random, source: Source) -> bool:
    """What a Mac puts into archives."""
    if not source.archives:
        return False
    path = dice.choice([*source.archives])
    source.archives[path].extras[dice.choice(["._x.JPEG", "__MACOSX/._x.JPEG", "notes.txt"])] = paint(dice).data
    return True


TABLE_DAMAGES: tuple[Damage, ...] = (
    missing_file, missing_file, other_upload, unused_table, other_order_of_names, other_order_of_names, other_names,
    names_missing, null_label, label_out_of_range, text_out_of_range, other_type_of_labels, other_columns,
    file_without_rows, other_count_declared, member_twice, class_missing_in_archive, system_member,
)  # fmt: skip
