"""The files of a folder or of a zip archive, by their names below it: for any number of threads and processes."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import threading
import zipfile
from pathlib import Path
from typing import Any, Iterable, Union

# So many bytes are read to tell whether files have changed: 100,000 small pictures take three seconds. Of more, some
# pieces of each must do: compressed pictures differ from their first difference on, trained weights nearly everywhere.
HASHED_BYTES = 2**30
PIECES, PIECE_BYTES = 32, 2**12


def hidden(name: str) -> bool:
    """Whether a file or a folder is not the user's: notebooks, macOS and editors leave such copies behind."""
    return name.startswith(".") or name == "__MACOSX"


def _fail(error: OSError) -> None:
    raise error


class Folder:
    """The files below a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)

    def names(self) -> list[str]:
        """All files but hidden ones, sorted, with "/" between folders. Raises OSError for what may not be read."""
        names: list[str] = []
        seen: set[str] = set()  # a link to a folder above would have no end
        for folder, below, files in os.walk(self.path, onerror=_fail, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = [] if real in seen else [name for name in below if not hidden(name)]
            if real not in seen:
                start = os.path.relpath(folder, self.path)
                names += [os.path.normpath(os.path.join(start, name)) for name in files if not hidden(name)]
            seen.add(real)
        return sorted(name.replace(os.sep, "/") for name in names)

    def exists(self, name: str) -> bool:
        return os.path.isfile(self.where(name))

    def read(self, name: str) -> bytes:
        with open(self.where(name), "rb") as file:
            return file.read()

    def archive(self, name: str) -> Archive:
        return Archive(self.where(name))

    def fingerprint(self, names: Iterable[str]) -> str:
        """Differs where the files do, whenever they were written, and is the same for their copies elsewhere."""
        digest = hashlib.sha256()
        sizes = {name: os.path.getsize(self.where(name)) for name in names}
        whole = sum(sizes.values()) <= HASHED_BYTES
        for name, size in sizes.items():
            content = self.read(name) if whole or size <= PIECES * PIECE_BYTES else self.read_pieces(name, size)
            # Each file by its size and a digest of its own: else bytes could move from one to the next unseen.
            digest.update(b"%d " % size + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def read_pieces(self, name: str, size: int) -> bytes:
        """Evenly spread pieces, with both ends."""
        with open(self.where(name), "rb") as file:
            pieces = []
            for i in range(PIECES):
                # From the first byte to the last, where files that begin alike still differ.
                file.seek((size - PIECE_BYTES) * i // (PIECES - 1))
                pieces.append(file.read(PIECE_BYTES))
        return b"".join(pieces)


class Archive:
    """The members of a zip archive, or of one that lies `inside` it, which is then held in memory.

    Raises OSError, which says what to do, if it cannot be read.
    """

    def __init__(self, path: str, inside: str | None = None) -> None:
        self.path, self.inside = path, inside
        self.content: bytes | None = None
        self.own = threading.local()
        # A damaged archive is found now, not in a worker later. Windows wrote "\\" in names, and "./" is seen too.
        members = [name for name in self.zip().namelist() if not name.endswith(("/", "\\"))]
        self.members = {posixpath.normpath(name.replace("\\", "/")): name for name in members}

    def __reduce__(self) -> tuple[Any, ...]:
        return Archive, (self.path, self.inside)

    def zip(self) -> zipfile.ZipFile:
        """This thread's own open archive, in this process.

        Threads that share one read wrong bytes now and then before Python 3.9, and a forked process would share the
        place in the file with its parent.
        """
        if getattr(self.own, "process", None) != os.getpid():
            self.own.zip, self.own.process = self.open(), os.getpid()
        return self.own.zip

    def open(self) -> zipfile.ZipFile:
        try:
            if self.inside is None:
                return zipfile.ZipFile(self.path)
            if self.content is None:
                with zipfile.ZipFile(self.path) as outer:
                    # A zip within a zip cannot be searched in: it is unpacked once, in memory, and for each process.
                    self.content = outer.read(self.inside)
            return zipfile.ZipFile(io.BytesIO(self.content))
        except Exception as error:  # zipfile raises whatever its decoders do: zlib.error, EOFError, struct.error, ...
            raise self.unreadable(f"{self.where()} cannot be read as a zip archive", error) from error

    @staticmethod
    def unreadable(what: str, error: Exception) -> OSError:
        if isinstance(error, (RuntimeError, NotImplementedError)):  # a password, or another way of packing
            return OSError(f"{what} ({error}): unpack it and give the folder")
        return OSError(f"{what} ({error}): if it is damaged, delete it and fetch it again")

    def where(self, name: str | None = None) -> str:
        return " in ".join(part for part in (name, self.inside, self.path) if part is not None)

    def names(self) -> list[str]:
        """All members but hidden ones, sorted."""
        return sorted(name for name in self.members if not any(map(hidden, name.split("/"))))

    def exists(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        try:
            return self.zip().read(self.members[name])
        except Exception as error:
            raise self.unreadable(f"{self.where(name)} cannot be read from the archive", error) from error

    def archive(self, name: str) -> Archive:
        return Archive(self.path, inside=self.members[name])

    def fingerprint(self, names: Iterable[str]) -> str:
        """Differs where the members' contents do: the archive keeps a checksum of each."""
        members = [self.zip().getinfo(self.members[name]) for name in names]
        return hashlib.sha256(repr([(member.file_size, member.CRC) for member in members]).encode()).hexdigest()


Files = Union[Folder, Archive]


def contents_of(pictures: Iterable[tuple[Files, str]]) -> list[str]:
    """What files hold, the same wherever they lie and whatever they are called."""
    found: dict[tuple[int, str], str] = {}
    contents = []
    for files, name in pictures:
        if (id(files), name) not in found:
            found[id(files), name] = hashlib.sha256(files.read(name)).hexdigest()
        contents.append(found[id(files), name])
    return contents


def open_files(path: str | Path) -> Files:
    """What is in a folder or a zip archive. Raises OSError if there is none, or if the archive cannot be read."""
    path = os.path.abspath(os.path.expanduser(path))  # as the process may go elsewhere before a worker opens it
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no folder or zip archive {path}.")
    return Folder(path) if os.path.isdir(path) else Archive(path)
