"""What happens to the files of people: each function alters a source, or says that it does not apply.

A damage says what must come of it: it must be refused (`refusal`: with one of these words), it may be (`doubtful`), or
the truth has altered and must be what is prepared.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace

from tests.draws.imagenet import TRUTHS
from tests.draws.pictures import paint
from tests.draws.source import Entry, Source

Damage = Callable[[random.Random, Source], bool]  # whether it applies

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" * 4
RUINS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "empty": lambda dice, body: b"",
    "pointer of LFS": lambda dice, body: LFS,
    "web page": lambda dice, body: PAGE,
    "noise": lambda dice, body: dice.randbytes(len(body)),
    "cut": lambda dice, body: body[: dice.randrange(1, len(body))] if len(body) > 1 else b"",
    "zeros at the end": lambda dice, body: body[: len(body) // 2] + bytes(len(body) - len(body) // 2),
}
CUTS = ("cut", "zeros at the end")
ZEROS = 22_000  # bytes: more than two records of an archive


def pick(dice: random.Random, source: Source, split: str = "") -> tuple[list[Entry], int]:
    found = [(entries, i) for entries, i in source.every() if split in ("", entries[i].split)]
    return dice.choice(found)


def ruined_image(dice: random.Random, source: Source) -> bool:
    """The truth follows the bytes: what Pillow cannot open must be left out, and named."""
    entries, i = pick(dice, source)
    kind = dice.choice([*RUINS])
    entries[i] = replace(entries[i], data=RUINS[kind](dice, entries[i].data))
    source.notes.append(f"{entries[i].place!r}: {kind}")
    return True


def flipped_bit(dice: random.Random, source: Source) -> bool:
    entries, i = pick(dice, source)
    body = bytearray(entries[i].data)
    if not body:
        return False
    body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
    entries[i] = replace(entries[i], data=bytes(body))
    source.notes.append(f"{entries[i].place!r}: a bit flipped")
    return True


def ruined_container(dice: random.Random, source: Source) -> bool:
    """A parquet file or an archive did not arrive whole."""
    if not (paths := [*source.tables, *source.archives]):
        return False
    path, kind = dice.choice(paths), dice.choice([*RUINS])
    seed = dice.getrandbits(32)
    source.harm(path, lambda body: RUINS[kind](random.Random(seed), body))
    if path in source.archives and kind in CUTS:
        return _cut_archive(source, path, kind)
    source.refusal.append(path.rpartition("/")[2])
    return True


def _cut_archive(source: Source, path: str, kind: str) -> bool:
    """What is cut off behind the last image may be missed or not. Few zeros are no more than what fills an archive."""
    name, archive = path.rpartition("/")[2], source.archives[path]
    body = archive.body()
    kept, zeros = source.harmed[path](body), len(body) - len(body) // 2
    end = max(body.rfind(member.data) + len(member.data) for member in archive.members)
    if kind == "zeros at the end" and zeros < ZEROS:
        del source.harmed[path]
        return False
    (source.doubtful if kept[:end] == body[:end] else source.refusal).append(name)
    return True


def copy_in_validation(dice: random.Random, source: Source) -> bool:
    """An image of training is in validation, too."""
    train, i = pick(dice, source, "train")
    val, k = pick(dice, source, "val")
    if not train[i].data or not val[k].data:
        return False
    val[k] = replace(val[k], data=train[i].data)
    source.notes.append("an image of val is in train")
    return True


def same_image_twice(dice: random.Random, source: Source) -> bool:
    """With two labels perhaps."""
    first, i = pick(dice, source, "train")
    second, k = pick(dice, source, "train")
    second[k] = replace(second[k], data=first[i].data)
    source.notes.append("an image of train is there twice")
    return True


# Image folders.


def _class_folder(dice: random.Random, source: Source) -> str:
    """Of some image in a class folder; "" if there is none."""
    found = sorted({f"{e.place.rpartition(f'/{e.label}/')[0]}/{e.label}" for e in source.images
                    if e.split and f"/{e.label}/" in e.place})  # fmt: skip
    return dice.choice(found) if found else ""


def dangling_link(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    name = f"z_{dice.randrange(10)}.JPEG"
    source.links[f"{folder}/{name}"] = f"/nowhere/{name}"
    source.refusal.append(name)
    return True


def deeper_image(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    source.images.append(Entry(paint(dice).data, "", "", f"{folder}/more/deep/x.JPEG"))
    source.refusal.append("lie at different depths")
    return True


def system_folder(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    name = dice.choice([".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "lost+found", "$RECYCLE.BIN"])
    place = dice.choice([folder, folder.rpartition("/")[0]])
    source.images.append(Entry(paint(dice).data, "", "", f"{place}/{name}/x.JPEG"))
    source.told.append("hidden files, and folders of the system")
    return True


def junk(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    name = dice.choice(["Thumbs.db", "desktop.ini", "labels.txt", ".DS_Store", "._x.JPEG", "image without ending"])
    source.files[f"{folder}/{name}"] = paint(dice).data
    source.told.append("hidden files" if name.startswith(".") else "no ending of an image")
    return True


def empty_class(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    source.folders.add(f"{folder.rpartition('/')[0]}/zzz")
    source.refusal.append("zzz")
    return True


def class_renamed_in_one_split(dice: random.Random, source: Source) -> bool:
    if not (folder := _class_folder(dice, source)) or source.links:
        return False
    new = folder + dice.choice(["x", " ", "S"])
    source.images = [replace(e, place=e.place.replace(f"{folder}/", f"{new}/", 1)) for e in source.images]
    source.refusal += ["and they differ"]
    if source.form in ("flat val", "Kaggle"):
        source.refusal += ["no class of training", "knows more images"]
    return True


def composed_differently(dice: random.Random, source: Source) -> bool:
    """A class whose accent a Mac writes otherwise: one class."""
    if source.form != "image folder" or "chat é" not in source.classes:
        return False
    source.images = [
        replace(e, place=e.place.replace(e.label, unicodedata.normalize("NFD", e.label)))
        if e.split == "val" and e.label == "chat é"
        else e
        for e in source.images
    ]
    return True


def second_validation(dice: random.Random, source: Source) -> bool:
    """A folder that may be the same split."""
    folder = _class_folder(dice, source)
    top, _, label = folder.rpartition("/")
    if source.form != "image folder" or not folder:
        return False
    new = f"{top}_old"
    source.images.append(Entry(paint(dice).data, "", "", f"{new}/{label}/x.JPEG"))
    source.refusal.append("choose one")
    return True


def image_beside_classes(dice: random.Random, source: Source) -> bool:
    folder = _class_folder(dice, source)
    if not folder:
        return False
    source.images.append(Entry(paint(dice).data, "", "", f"{folder.rpartition('/')[0]}/beside.JPEG"))
    source.refusal.append("beside.JPEG")
    return True


def linked_image(dice: random.Random, source: Source) -> bool:
    """An image is a link to where it is. A manager of datasets does so."""
    place = next((e.place for e in source.images if e.split), "")
    if not place:
        return False
    hidden = f".store/{len(source.links)}"

    def where_it_is(now: Source) -> dict[str, bytes]:
        return {hidden: next(e.data for e in now.images if e.place == place)}

    source.made.append(where_it_is)
    source.links[place] = "../" * place.count("/") + hidden
    source.notes.append(f"{place!r} is a link")
    return True


# Files that say the classes of validation.


def _truth_file(source: Source) -> str:
    names = {*TRUTHS, "ILSVRC2012_validation_ground_truth.txt"}
    return next((path for path in source.content() if path.rpartition("/")[2] in names), "")


def line_missing(dice: random.Random, source: Source) -> bool:
    path = _truth_file(source)
    if not path.endswith((".csv", ".txt", ".sh")):
        return False
    seed = dice.random()

    def harm(body: bytes) -> bytes:
        lines = body.splitlines(keepends=True)
        about = [
            i
            for i, line in enumerate(lines)
            if b"ILSVRC2012_val" in line or (line.strip() and b" " not in line.strip())
        ]
        about = [i for i in about if not lines[i].startswith((b"ImageId", b"#", b"mkdir"))]
        if about:
            del lines[about[int(seed * len(about))]]
        return b"".join(lines)

    source.harm(path, harm)
    source.refusal.append(path.rpartition("/")[2])
    return True


def as_windows_writes_it(dice: random.Random, source: Source) -> bool:
    """Line ends of two characters, a mark at the beginning, spaces and an empty line at the end."""
    path = _truth_file(source)
    if not path.endswith((".csv", ".txt", ".sh")) or path in source.harmed:
        return False
    mark = dice.choice([b"", b"\xef\xbb\xbf"])  # it says UTF-8
    source.harm(path, lambda body: mark + body.replace(b"\n", b"\r\n") + b"\r\n")
    return True


def two_answers(dice: random.Random, source: Source) -> bool:
    """Another file says other classes of the same images."""
    path = _truth_file(source)
    others = sorted({*TRUTHS} - {path.rpartition("/")[2], "ILSVRC2012_devkit_t12.tar.gz"})
    labels = {e.label for e in source.truth if e.split == "val"}
    if not path or len(labels) < 2:
        return False
    other = dice.choice(others)

    def turned(now: Source) -> dict[str, bytes]:
        following = dict(zip(now.classes, (*now.classes[1:], now.classes[0]), strict=True))
        wrong = Source("", now.classes, images=[replace(e, label=following[e.label]) for e in now.truth])
        return {other: TRUTHS[other](wrong)}

    source.made.append(turned)
    source.refusal.append(other)
    return True


def ruined_truth(dice: random.Random, source: Source) -> bool:
    path = _truth_file(source)
    if not path:
        return False
    kind, seed = dice.choice(["empty", "pointer of LFS", "web page", "noise"]), dice.getrandbits(32)
    source.harm(path, lambda body: RUINS[kind](random.Random(seed), body))
    source.refusal.append(path.rpartition("/")[2])
    return True


DAMAGES: tuple[Damage, ...] = (
    ruined_image, ruined_image, flipped_bit, ruined_container, ruined_container, copy_in_validation, same_image_twice,
    dangling_link, deeper_image, system_folder, junk, empty_class, class_renamed_in_one_split, composed_differently,
    second_validation, image_beside_classes, linked_image, line_missing, as_windows_writes_it, two_answers,
    ruined_truth,
)  # fmt: skip
