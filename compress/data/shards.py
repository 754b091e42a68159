"""Tar shards in webdataset's format: the files of a sample share a name, `000123.jpg` beside `000123.cls`."""

from __future__ import annotations

import glob
import io
import itertools
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from compress.data.dataset import (
    DECODE_ERRORS,
    UNREAD_ENDINGS,
    ImageSet,
    UnreadableImageError,
    count_endings,
    readable_extensions,
    to_labels,
)
from compress.errors import CompressError, UsageError
from compress.files import require_regular_file, sanitize

#: files with the class number of a sample, the first that exists
LABELS = (".cls", ".txt")
BLOCK = tarfile.BLOCKSIZE
#: shards of one data set, and braces in its text; more are an error in the range
MAX_SHARDS, MAX_BRACES = 100_000, 16
#: bytes of a label, of one picture, and of the header of a member with its long name
MAX_LABEL, MAX_IMAGE, MAX_HEADER = 64, 1 << 30, 1 << 20


def is_shard_spec(spec: str) -> bool:
    return spec.endswith(".tar")


def open_shards(spec: str) -> ImageSet:
    """Open the images of .tar files, which are read in place.

    Args:
        spec: A file, a glob, or a brace range `{000..099}`. Labels come from `.cls` files with an integer.

    A sample has one image, the main one: with the shortest ending (`.jpg` before `.seg.png`), and a JPEG before others.

    Raises:
        UsageError: Files are missing, more than MAX_SHARDS, or contain no images.
        CompressError: A file is damaged or compressed, or a label is no class number.
    """
    paths = resolve_shards(spec)
    images: list[tuple[Path, tarfile.TarInfo]] = []
    labels: list[int | None] = []
    others, unread = Counter[str](), Counter[str]()
    for path in paths:
        for members in group_samples(path):
            endings = [member_ending(member) for member in members]
            unread.update(ending for ending in endings if f".{ending.rpartition('.')[2]}" in UNREAD_ENDINGS)
            pictures = [m for m in members if Path(m.name).suffix.lower() in readable_extensions()]
            if not pictures:
                continue
            image = min(pictures, key=image_rank)
            others.update(member_ending(member) for member in pictures if member is not image)
            images.append((path, image))
            labels.append(read_label(path, members))
    notes = [f"{spec}: {count_endings(unread)} look like pictures and are not read"] if unread else []
    if not images:
        raise UsageError(f"{spec}: found no images in these shards; {notes[0] if notes else 'check the files'}.")
    if others:
        notes.append(f"{spec}: took one picture of each sample, and left {count_endings(others)}")
    identity = " ".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths)
    names = [f"{path}:{member.name}" for path, member in images]
    return ImageSet(
        spec, names, lambda i: open_member(*images[i]), identity, to_labels(labels, spec), notes=tuple(notes)
    )


def member_ending(member: tarfile.TarInfo) -> str:
    """The name of a member after the first dot, which is its key in the sample."""
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def image_rank(member: tarfile.TarInfo) -> tuple[int, int]:
    """Sorts the main picture of a sample first; the order in the shard decides between equal ones."""
    ending = member_ending(member)
    return ending.count("."), 0 if ending in ("jpg", "jpeg") else 1


def resolve_shards(spec: str) -> list[Path]:
    """The existing files that `spec` names. Raises UsageError if one is missing, or if there are too many."""
    groups = re.findall(r"\{([^{}]*)\}", spec)
    if math.prod(sum(1 for _ in expand_range(group) or group.split(",")) for group in groups) > MAX_SHARDS:
        raise UsageError(f"{spec[:200]}: found more than {MAX_SHARDS:,} shards; give a smaller range or larger shards.")
    patterns = expand_braces(os.path.expanduser(spec))
    matches = (match for pattern in patterns for match in find_matches(pattern))
    paths = [Path(match) for match in itertools.islice(matches, MAX_SHARDS + 1)]
    if len(paths) > MAX_SHARDS:
        raise UsageError(f"{spec}: found more than {MAX_SHARDS:,} shards; give a smaller range or larger shards.")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise UsageError(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} shards are missing).")
    return [require_regular_file(path) for path in paths]


def find_matches(pattern: str) -> Sequence[str]:
    """The files that match a pattern; a name without a wildcard, or without matches, is returned itself."""
    return (sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []) or [pattern]


def expand_braces(spec: str) -> Iterator[str]:
    """Expand `{000..099}` and `{a,b}` as a shell does, one by one. Raises UsageError for an unclosed brace."""
    if spec.count("{") > MAX_BRACES:
        raise UsageError(f"{spec[:200]}: found {spec.count('{')} braces, expected at most {MAX_BRACES}.")
    match = re.search(r"\{([^{}]*)\}", spec)
    if match is None:
        if "{" in spec or "}" in spec:
            raise UsageError(f"{spec}: found a brace without its pair, expected a range such as {{000..099}}.")
        yield spec
        return
    for part in expand_range(match[1]) or match[1].split(","):
        yield from expand_braces(spec[: match.start()] + part + spec[match.end() :])


def expand_range(text: str) -> Iterator[str] | None:
    """The numbers of a range such as `000..099`, which may be negative or fall; None for other text.

    Raises UsageError for too many numbers.
    """
    bounds = re.fullmatch(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})", text)
    if bounds is None:
        return None
    first, last = int(bounds[1]), int(bounds[2])
    is_padded = any(re.match("-?0[0-9]", bound) for bound in bounds.groups())
    width = max(map(len, bounds.groups())) if is_padded else 0
    numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    if len(numbers) > MAX_SHARDS:
        raise UsageError(f"{text}: found {len(numbers):,} shards, expected at most {MAX_SHARDS:,}.")
    return (f"{number:0{width}}" for number in numbers)


class HeaderReader(io.FileIO):
    """The file of a shard, of which tarfile reads headers only; it refuses headers that are too long."""

    budget = MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """Read part of a header. Raises ReadError beyond the budget, and also if tarfile does not stop at the end."""
        if size is None or not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER:,} bytes, or of a negative length")
        self.budget -= size
        return super().read(size) or b""


def group_samples(path: Path) -> list[list[tarfile.TarInfo]]:
    """The members of a shard grouped by their name up to the first dot after the folder.

    The archive must be uncompressed, because images are read in place. Its end is checked, because tarfile takes a
    damaged or truncated header for the end and drops the rest silently. Nothing is extracted, so absolute names of
    members and targets of links are only text.
    """
    grouped: dict[str, list[tarfile.TarInfo]] = {}
    end = 0
    try:
        with HeaderReader(path) as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                if member.size < 0 or shard.offset <= end:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                end, file.budget = shard.offset, MAX_HEADER
                folder, _, name = member.name.rpartition("/")
                if not member.isdir() and not name.startswith("."):
                    grouped.setdefault(f"{folder}/{name.split('.')[0]}", []).append(member)
        last = read_range(path, end, BLOCK)
    except (tarfile.TarError, *DECODE_ERRORS) as error:
        reason = sanitize(str(error))[:200] or type(error).__name__
        raise CompressError(f"{path}: not a complete, uncompressed tar file ({reason}); copy it again.") from error
    if last != bytes(BLOCK):
        raise CompressError(f"{path}: not a complete tar file (damaged or cut at byte {end:,}); copy it again.")
    return list(grouped.values())


def read_label(path: Path, members: list[tarfile.TarInfo]) -> int | None:
    """The integer beside an image, if there is one."""
    files = {Path(m.name).suffix: m for m in reversed(members) if is_plain(m)}
    member = next((files[ending] for ending in LABELS if ending in files), None)
    if member is None or member.size > MAX_LABEL:
        return None
    match = re.fullmatch(rb"\s*([0-9]+)\s*", read_range(path, member.offset_data, member.size))
    return None if match is None else int(match[1])


def open_member(path: Path, member: tarfile.TarInfo) -> io.BytesIO:
    """The bytes of a picture. Raises UnreadableImageError for a link, a device, a sparse or a far too large file."""
    if not is_plain(member) or member.size > MAX_IMAGE:
        raise UnreadableImageError("found a link, a special or a far too large file, expected a picture")
    return io.BytesIO(read_range(path, member.offset_data, member.size))


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether the bytes of a member lie in the shard as they are."""
    return member.isreg() and not member.issparse()


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Part of an uncompressed shard."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
