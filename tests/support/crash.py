"""
What a program writes, recorded by strace while it runs, and what a power cut at any moment could leave of it.

The storage writes sectors of 512 bytes whole. Between two syncs of a file its sectors reach it in any order or not at
all; names reach it in the order of their changes, and are safe when their folder has been synced.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.mounts import LUKSHDRFS, Argument
from support.tools import program

SECTOR = 512
ALL_SUBSETS = 5
"""Of so many sectors that are under way, every subset is a state of its own."""

_FILE_CALLS = ("write", "pwrite64", "fsync", "fdatasync", "openat")
_NAME_CALLS = ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat")
_OTHER_CALLS = ("pwritev", "pwritev2", "writev", "ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile")
"""They would change a file too; the program has no use for them, and nobody has taught the replay any."""

_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(.*)")
_BEGUN = re.compile(r"((\d+) +.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_PATH = r"<((?:\\x[0-9a-f]{2})*)>"
_NAME = re.compile(rf'(?:(?:\d+|AT_FDCWD)(?:{_PATH})?, )?"((?:\\x[0-9a-f]{{2}})*)"')
"""A name, and the folder that it is in, if the call names one."""

Files = dict[str, bytes]
"""The files of a folder, by their names."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call that succeeded."""

    name: str
    path: str
    """Of the descriptor that it is about, or that it returned; empty if it is about none."""
    texts: tuple[bytes, ...]
    """Names or data, in their order; names with the folder that they are in."""
    arguments: str
    """All of them, as strace shows them."""
    result: int

    @property
    def last_number(self) -> int:
        return int(self.arguments.rpartition(",")[2])


def _unescaped(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _whole_lines(trace: str) -> Iterator[str]:
    """Yield a line for each call; strace cuts a call in two when another thread does something meanwhile."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        if found := _BEGUN.fullmatch(line):
            begun[found[2]] = found[1]
        elif found := _RESUMED.fullmatch(line):
            yield begun.pop(found[1]) + found[2]
        else:
            yield line
    assert not begun, begun


def parse_trace(trace: str) -> list[Call]:
    """Return what strace has seen, without what failed."""
    calls = []
    for line in _whole_lines(trace):
        found = _CALL.fullmatch(line)
        if found is None:
            assert re.fullmatch(r"\d+ +(\+\+\+ .* \+\+\+|--- .* ---)", line), line[:500]
            continue
        _pid, name, arguments, result, rest = found.groups()
        if int(result) < 0:
            continue
        place = re.match(_PATH, rest) if name == "openat" else re.match(rf"\d+{_PATH}", arguments)
        texts = tuple(_unescaped(text) for text in arguments.split('"')[1::2])  # every character in them is escaped
        if name in _NAME_CALLS:
            texts = tuple(os.path.join(_unescaped(at), _unescaped(text)) for at, text in _NAME.findall(arguments))  # noqa: PTH118
        path = _unescaped(place[1]).decode() if place else ""
        calls.append(Call(name, path, texts, arguments, int(result)))
    return calls


@dataclasses.dataclass(frozen=True)
class SectorWrite:
    """A sector of a file that is under way to the storage, as it is after one write."""

    file: int
    sector: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is on the storage at a moment, and what is under way to it."""

    stored: dict[int, bytes]
    names: dict[str, int]
    writes: tuple[SectorWrite, ...]
    renamings: tuple[dict[str, int], ...]
    """The names after each change of names that is under way."""

    def after(self, mask: int, renamed: int) -> Files:
        """Return the files when those writes that `mask` has the bits of, and so many renamings, have got there."""
        files = {file: bytearray(data) for file, data in self.stored.items()}
        for number, write in enumerate(self.writes):
            if mask >> number & 1:
                at = write.sector * SECTOR
                files[write.file][at : at + len(write.data)] = write.data
        names = self.renamings[renamed - 1] if renamed else self.names
        return {name: bytes(files[file]) for name, file in names.items()}

    def masks(self, *, steps: int) -> Iterator[int]:
        """
        Yield subsets of the writes under way: all of few; of many none, all, and beginnings, ends, lone ones and
        all but one at about so many places.
        """
        count = len(self.writes)
        if count <= ALL_SUBSETS:
            yield from range(1 << count)
            return
        everything = (1 << count) - 1
        yield from (0, everything)
        places = sorted({*range(0, count, max(1, count // steps)), 1, count - 2, count - 1} - {0})
        for place in places:
            yield (1 << place) - 1
            yield everything ^ ((1 << place) - 1)
            yield 1 << place
            yield everything ^ (1 << place)

    def states(self, *, steps: int) -> Iterator[Files]:
        """Yield what a power cut could leave, as `masks` chooses."""
        for renamed in range(len(self.renamings) + 1):
            for mask in self.masks(steps=steps):
                yield self.after(mask, renamed)


class _Replay:
    """Follows the calls on the files of a folder."""

    def __init__(self, folder: Path, before: Files) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._names = {name: next(self._numbers) for name in before}
        self.now = {self._names[name]: bytearray(data) for name, data in before.items()}
        self._stored = {file: bytes(data) for file, data in self.now.items()}
        self._stored_names = dict(self._names)
        self._positions: dict[int, int] = {}
        self._writes: list[SectorWrite] = []
        self._renamings: list[dict[str, int]] = []

    @property
    def files(self) -> Files:
        return {name: bytes(self.now[file]) for name, file in self._names.items()}

    def moment(self) -> Moment:
        # a file that has grown has the room, but nothing in it
        stored = {file: self._stored[file].ljust(len(data), b"\0") for file, data in self.now.items()}
        return Moment(stored, dict(self._stored_names), tuple(self._writes), tuple(self._renamings))

    def _name(self, path: str | bytes) -> str | None:
        """Return the name of a file of the folder, None for others."""
        found = Path(path if isinstance(path, str) else path.decode())
        assert found.is_absolute(), f"{found} is relative"
        return found.name if found.parent == self._folder else None

    def follow(self, call: Call) -> Iterator[Moment]:
        """Take a call in; yield the moment before it if it is a sync."""
        if call.name in _NAME_CALLS:
            self._rename(call)
            return
        if not call.path.startswith("/"):
            return  # a pipe, a socket
        if call.path == str(self._folder) and call.name in ("fsync", "fdatasync"):
            yield self.moment()
            self._stored_names, self._renamings = dict(self._names), []
            return
        name = self._name(call.path)
        if name is None:
            return
        assert call.name in _FILE_CALLS, f"{call.name} on {name}"
        if call.name == "openat":
            self._open(name, call)
        elif call.name in ("fsync", "fdatasync"):
            yield self.moment()
            self._sync(self._names[name])
        else:
            self._write(self._names[name], call)

    def _open(self, name: str, call: Call) -> None:
        if name in self._names:
            assert "O_TRUNC" not in call.arguments, f"{name} is cut off"
            return
        assert "O_CREAT" in call.arguments, call
        file = next(self._numbers)
        self._names[name] = file
        self.now[file] = bytearray()
        self._stored[file] = b""
        self._renamings.append(dict(self._names))

    def _write(self, file: int, call: Call) -> None:
        data = call.texts[0][: call.result]
        offset = call.last_number if call.name == "pwrite64" else self._positions.get(file, 0)
        if call.name == "write":
            self._positions[file] = offset + len(data)
        content = self.now[file]
        end = offset + len(data)
        content.extend(bytes(max(0, end - len(content))))
        before = bytes(content)
        content[offset:end] = data
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            part = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if before[part] != content[part]:
                self._writes.append(SectorWrite(file, sector, bytes(content[part])))

    def _sync(self, file: int) -> None:
        self._stored[file] = bytes(self.now[file])
        self._writes = [write for write in self._writes if write.file != file]

    def _rename(self, call: Call) -> None:
        names = [self._name(text) for text in call.texts]
        if all(name is None for name in names):
            return
        source = names[0]
        assert source is not None, call
        if call.name.startswith(("rename", "link")):
            target = names[1]
            assert target is not None, call
            self._names[target] = self._names[source]
        if not call.name.startswith("link"):
            del self._names[source]
        self._renamings.append(dict(self._names))


@dataclasses.dataclass(frozen=True)
class Recording:
    """One run of the program, seen by its storage."""

    before: Files
    after: Files
    moments: tuple[Moment, ...]
    """Just before each sync, and at the end: what is under way then is all that was at any moment since the last."""

    def states(self, *, steps: int = 4) -> list[Files]:
        """Return what a power cut could leave, in the order in which it could, each state once."""
        found: dict[tuple[tuple[str, bytes], ...], Files] = {}
        for moment in self.moments:
            for state in moment.states(steps=steps):
                found.setdefault(tuple(sorted(state.items())), state)
        return list(found.values())


def files_of(folder: Path) -> Files:
    """Return what is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def record(folder: Path, *arguments: Argument, command: Sequence[Argument] = (LUKSHDRFS,)) -> Recording:
    """Run the program, and return what it did to the files in `folder`. All names must be absolute."""
    folder = folder.resolve()
    before = files_of(folder)
    trace = folder.parent / f"{folder.name}.strace"
    calls = ",".join((*_FILE_CALLS, *_NAME_CALLS, *_OTHER_CALLS))
    done = subprocess.run(
        [
            program("strace"), "--follow-forks", "--seccomp-bpf", "--decode-fds=path", "-xx",
            "--string-limit=100000000", f"--trace={calls}", f"--output={trace}", *command, *arguments,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (arguments, done.stderr)
    replay = _Replay(folder, before)
    moments = [moment for call in parse_trace(trace.read_text()) for moment in replay.follow(call)]
    moments.append(replay.moment())
    after = files_of(folder)
    assert replay.files == after, "the trace does not account for everything that was written"
    return Recording(before, after, tuple(moments))
