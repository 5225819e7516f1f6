"""Unpacks a hand-in that nobody vouches for: a zip, a tar archive, or the folder that Gradescope has made of one.

Everything that is listed is checked before a byte is written, and all that is written are plain files in plain folders.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Callable, Iterator, Sequence

from .items import ARCHIVES, ICON, LORAS, READABLE, TASK_1, Items, find_items, is_dropping, is_item, shown, way_out

__all__ = ["ARCHIVES", "READABLE", "ArchiveError", "Items", "Limits", "find_items", "is_dropping", "unpack"]

MB = 1_000_000
# Smaller files may compress as well as they like: a LoRA that was never trained is mostly zeros, and is no bomb.
RATIO_FROM_BYTES = 10 * MB
# What reading a damaged or crafted file may raise; OSError is also a file that cannot be read or written.
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError,
    IndexError,
)  # fmt: skip
# Where it is this machine that cannot read or write, and not the hand-in that is damaged.
OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    errno.EACCES, errno.EPERM,
)  # fmt: skip
ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
UTF8_FLAG = 0x800
END_OF_DIRECTORY, END_BYTES, ZIP64_LOCATOR, ZIP64_BYTES = b"PK\5\6", 22, b"PK\6\7", 20
GZIP, TAR, TAR_AT, TAR_BLOCK = b"\x1f\x8b", b"ustar", 257, 512
MAX_NAME_BYTES = 200
MAX_ENTRY_BYTES = 1024  # of the list of files, on average
CHUNK_BYTES = 1 << 16
PACK_AGAIN = "pack it again with `python -m grading.hand_in`"


class ArchiveError(ValueError):
    """A hand-in that is not unpacked; the message is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """What a hand-in may hold; a file above 10 MB may be `ratio` times as large as it is when compressed."""

    total_bytes: int = 100 * MB
    files: int = 2000
    file_bytes: int = 50 * MB
    ratio: float = 200
    depth: int = 12


@dataclass(frozen=True)
class Entry:
    """A file or folder of a hand-in before it is written; `size` is what is declared, in bytes."""

    path: PurePosixPath
    size: int
    is_folder: bool
    open: Callable[[], IO[bytes]]


def safe_path(name: str, limits: Limits) -> PurePosixPath:
    """The path of an entry, which is below the folder that it is unpacked into. Raises ArchiveError."""
    left_behind = PurePosixPath(name).name in (ICON, f"._{ICON}")
    letters = name[: -len(ICON)] if left_behind else name
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in letters):
        raise ArchiveError(
            f"The name {shown(name)} has control characters or is not UTF-8: rename it in plain letters."
        )
    if "\\" in name:
        raise ArchiveError(f"The name {shown(name)} has a backslash in it: {PACK_AGAIN}.")
    path = PurePosixPath(name)
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"{shown(name)} is an absolute path, which would leave the hand-in: {PACK_AGAIN}.")
    if ".." in path.parts:
        raise ArchiveError(f"{shown(name)} leads out of the hand-in's folder: {PACK_AGAIN}.")
    if not path.parts and not name.endswith("/"):
        raise ArchiveError(f"There is a file without a name: {PACK_AGAIN}.")
    if len(path.parts) > limits.depth or any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        raise ArchiveError(
            f"{shown(name)} has a name longer than {MAX_NAME_BYTES} bytes or lies more than {limits.depth} folders "
            "deep: leave it out, or move it up."
        )
    return path


def check_kind(name: str, mode: int) -> None:
    """Raises ArchiveError if the type bits of a Unix mode say that this is no plain file or folder."""
    if stat.S_ISLNK(mode):
        raise ArchiveError(f"{shown(name)} is a link: put the file itself in its place.")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{shown(name)} is neither a plain file nor a folder: leave it out.")


def check_directory(path: Path, limits: Limits) -> None:
    """Raises ArchiveError if the file is no zip, or if its list of files is too long to be read into memory."""
    size = path.stat().st_size
    if size > limits.total_bytes:
        raise ArchiveError(
            f"The zip has {size / MB:.0f} MB, of at most {limits.total_bytes // MB}: leave data sets out."
        )
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - END_BYTES - ZIP64_BYTES))
        tail = file.read()
    start = len(tail) - END_BYTES
    if not (tail[start:].startswith(END_OF_DIRECTORY) and tail.endswith(b"\0\0")):
        start = tail.rfind(END_OF_DIRECTORY)
    if start < 0 or start + END_BYTES > len(tail):
        raise ArchiveError(f"{shown(path.name)} is not a zip archive, or not a whole one: {PACK_AGAIN}.")
    (directory_bytes,) = struct.unpack_from("<L", tail, start + 12)
    if tail[max(0, start - ZIP64_BYTES) :].startswith(ZIP64_LOCATOR):
        raise ArchiveError(f"The zip is made for more than 4 GB (ZIP64): {PACK_AGAIN}.")
    if directory_bytes > limits.files * MAX_ENTRY_BYTES:
        raise ArchiveError(f"The zip lists more than {limits.files} files: leave out what the task does not need.")


def decoded_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: macOS writes UTF-8 and does not say so. Raises ArchiveError."""
    name = info.orig_filename
    if info.flag_bits & UTF8_FLAG or name.isascii():
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveError(f"The name {shown(name)} is not UTF-8: rename it in plain letters.") from None


def zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> Entry:
    name = decoded_name(info)
    path = safe_path(name, limits)
    check_kind(name, info.external_attr >> 16)
    if info.flag_bits & ENCRYPTED_FLAGS:
        raise ArchiveError(f"{shown(name)} is encrypted: pack it without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{shown(name)} is compressed in an unusual way: {PACK_AGAIN}.")
    if info.file_size > max(RATIO_FROM_BYTES, limits.ratio * info.compress_size):
        raise ArchiveError(
            f"{shown(name)} unpacks to more than {limits.ratio:g} times its size, as bombs do: leave it out."
        )
    return Entry(path, info.file_size, name.endswith("/"), partial(archive.open, info))


def zip_entries(archive: zipfile.ZipFile, packed_bytes: int, limits: Limits) -> list[Entry]:
    infos = archive.infolist()
    if len(infos) > limits.files:
        raise ArchiveError(
            f"There are {len(infos)} files, of at most {limits.files}: leave out what the task does not need."
        )
    entries = [zip_entry(archive, info, limits) for info in infos]
    if sum(info.compress_size for info in infos) > packed_bytes:
        raise ArchiveError(f"The sizes that the zip declares cannot be true: {PACK_AGAIN}.")
    return entries


def folder_entries(folder: Path, limits: Limits) -> list[Entry]:
    """What is in a folder, links not followed. Raises ArchiveError."""
    entries: list[Entry] = []
    waiting = [(folder, PurePosixPath())]
    while waiting:
        place, inside = waiting.pop()
        for item in os.scandir(place):
            if len(entries) >= limits.files:
                raise ArchiveError(f"There are more than {limits.files} files: leave out what the task does not need.")
            path = safe_path(str(inside / item.name), limits)
            facts = item.stat(follow_symlinks=False)
            check_kind(str(path), facts.st_mode)
            is_folder = stat.S_ISDIR(facts.st_mode)
            entries.append(Entry(path, 0 if is_folder else facts.st_size, is_folder, partial(open, item.path, "rb")))
            if is_folder:
                waiting.append((Path(item.path), path))
    return sorted(entries, key=lambda entry: entry.path)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive, or compressed by gzip; its name does not matter."""
    with path.open("rb") as file:
        start = file.read(TAR_BLOCK)
    return start.startswith(GZIP) or start.startswith(TAR, TAR_AT)


@contextmanager
def plain_tar(path: Path, limits: Limits) -> Iterator[IO[bytes]]:
    """A tar archive without its compression, in a file without a name. Raises ArchiveError if it is too large."""
    most, size = limits.total_bytes + limits.files * MAX_ENTRY_BYTES, 0
    with path.open("rb") as packed, tempfile.TemporaryFile() as plain:
        compressed = packed.read(len(GZIP)) == GZIP
        packed.seek(0)
        source = gzip.GzipFile(fileobj=packed) if compressed else packed
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise ArchiveError(
                    f"The archive unpacks to more than {limits.total_bytes // MB} MB: leave data sets out."
                )
            plain.write(chunk)
        plain.seek(0)
        yield plain


def tar_entries(archive: tarfile.TarFile, limits: Limits) -> list[Entry]:
    entries: list[Entry] = []
    for member in archive:
        if len(entries) >= limits.files:
            raise ArchiveError(f"There are more than {limits.files} files: leave out what the task does not need.")
        name = f"{member.name}/" if member.isdir() else member.name
        path = safe_path(name, limits)
        if member.issym() or member.islnk():
            raise ArchiveError(f"{shown(name)} is a link: put the file itself in its place.")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
            raise ArchiveError(f"{shown(name)} is neither a plain file nor a folder: leave it out.")
        if member.size < 0:
            raise ArchiveError(f"{shown(name)} has no possible size: {PACK_AGAIN}.")
        size = 0 if member.isdir() else member.size
        entries.append(Entry(path, size, member.isdir(), partial(archive.extractfile, member)))
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(TAR_BLOCK).strip(b"\0"):  # a damaged header, which Python takes for the end
        raise ArchiveError(f"The archive is damaged, or not a whole one: {PACK_AGAIN}.")
    return entries


@contextmanager
def open_entries(path: Path, limits: Limits) -> Iterator[list[Entry]]:
    if path.is_dir():
        yield folder_entries(path, limits)
    elif is_tar(path):
        with plain_tar(path, limits) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield tar_entries(archive, limits)
    else:
        check_directory(path, limits)
        with zipfile.ZipFile(path) as archive:
            yield zip_entries(archive, path.stat().st_size, limits)


def check_sizes(entries: Sequence[Entry], limits: Limits) -> None:
    """Raises ArchiveError if a file, or all together, are too large."""
    for entry in entries:
        if entry.size > limits.file_bytes:
            raise ArchiveError(
                f"{shown(entry.path)} has {entry.size / MB:.0f} MB, of at most {limits.file_bytes // MB}: "
                f"{way_out(entry.path)}."
            )
    total = sum(entry.size for entry in entries)
    if total > limits.total_bytes:
        raise ArchiveError(
            f"The files have {total / MB:.0f} MB together, of at most {limits.total_bytes // MB}: leave data sets out."
        )


def check_names(entries: Sequence[Entry]) -> None:
    """Raises ArchiveError if two files have the same name on some computer, or if a file is an archive itself."""
    seen: dict[str, PurePosixPath] = {}
    for entry in entries:
        key = unicodedata.normalize("NFC", str(entry.path)).casefold()
        if key in seen and not (entry.is_folder and entry.path == seen[key]):
            raise ArchiveError(
                f"There are two files {shown(entry.path)} (upper and lower case count as the same): delete one of them."
            )
        seen[key] = entry.path
    files = {entry.path for entry in entries if not entry.is_folder}
    for entry in entries:
        above = files.intersection(entry.path.parents)
        if above:
            raise ArchiveError(f"{shown(above.pop())} is a file and a folder at the same time: {PACK_AGAIN}.")
        if not entry.is_folder and entry.path.name.lower().endswith(ARCHIVES) and not is_dropping(entry.path):
            raise ArchiveError(f"{shown(entry.path)} is an archive inside the hand-in: unpack it, or leave it out.")


def write(entry: Entry, folder: Path) -> None:
    """Writes an entry, whose size must be the declared one. Raises ArchiveError."""
    target = folder.joinpath(*entry.path.parts)
    if entry.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with entry.open() as source, target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > entry.size:
                break
            file.write(chunk)
    if written != entry.size:
        raise ArchiveError(f"{shown(entry.path)} does not have the size that is declared for it: {PACK_AGAIN}.")
    target.chmod(0o644)


def item_folder(folder: Path) -> Path:
    """The folder itself, or the one folder in it and so on, whichever has items of a hand-in. Raises ArchiveError."""
    top = sorted(folder.iterdir())
    inner = folder
    # Packed, unpacked and packed again, Windows adds a folder each time.
    while not any(is_item(path) for path in inner.iterdir()):
        inside = list(inner.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            break
        inner = inside[0]
    else:
        return inner
    there = ", ".join(shown(path.name) for path in top[:3]) + (", ..." if len(top) > 3 else "")
    raise ArchiveError(
        f"On top there is {there or 'nothing'} and no item of the hand-in: put the report's PDF, {TASK_1}/, "
        f"{'/, '.join(LORAS)}/ on top, or all of them into one folder."
    )


def unpack(path: Path, target: Path, limits: Limits = Limits()) -> Path:  # noqa: B008 (it is frozen)
    """Unpacks or copies a hand-in into `target`, a new or empty folder, and returns the folder that has its items.

    That is `target`, or the only folder in it and so on. Where something is wrong, `target` stays as it was.

    Raises:
        ArchiveError: for everything that no honest hand-in has, and for one without any items.
        FileExistsError: if `target` is not empty.
        OSError: if this machine cannot read the hand-in, or write: its disk is full, say.
    """
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        whole = Path(temporary) / "hand_in"
        whole.mkdir()
        try:
            with open_entries(path, limits) as entries:
                check_sizes(entries, limits)
                check_names(entries)
                for entry in (one for one in entries if not is_dropping(one.path)):
                    write(entry, whole)
        except ArchiveError:
            raise
        except UnicodeDecodeError:
            raise ArchiveError(
                f"A name in the zip is not UTF-8: rename it in plain letters, and {PACK_AGAIN}."
            ) from None
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
                raise
            raise ArchiveError(f"The hand-in cannot be read ({error}): {PACK_AGAIN}.") from error
        inside = item_folder(whole).relative_to(whole)
        whole.replace(target)
    return target / inside
