"""SecretBytes: content that shows up nowhere, in memory that goes nowhere; and a process that keeps its own."""

from __future__ import annotations

import copy
import ctypes
import errno
import logging
import os
import pickle
import re
import resource
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs import secret as secret_module
from lukshdrfs.secret import SecretBytes, become_io_flusher, harden_process, lock_process_memory

CONTENT = b"do not show me to anybody"
PAGE = resource.getpagesize()


def run_python(program: str) -> str:
    """Run a program in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, "%s".__mod__, "%r".__mod__, ascii])
def test_no_text_of_a_secret_has_its_content(show: object) -> None:
    """Whatever turns a secret into text says its size, and nothing of its content."""
    assert callable(show)
    text = show(SecretBytes.copy_of(CONTENT))

    assert CONTENT.decode() not in text
    assert str(len(CONTENT)) in text


def test_a_traceback_with_locals_does_not_show_the_content() -> None:
    """A traceback that prints every local variable shows a secret without its content."""

    def fail(secret: SecretBytes) -> None:
        raise RuntimeError(f"with {secret}")

    with pytest.raises(RuntimeError) as caught:
        fail(SecretBytes.copy_of(bytearray(CONTENT)))
    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True)

    inner = [frame for frame in stack.stack if frame.name == "fail"]
    assert inner
    assert "secret" in (inner[0].locals or {})
    assert CONTENT.decode() not in str(inner[0].locals)
    assert CONTENT.decode() not in str(caught.value)


def test_a_secret_cannot_be_copied_out_by_accident() -> None:
    """Pickling and copying, which would leave the content elsewhere, are refused."""
    secret = SecretBytes.copy_of(CONTENT)
    for leave_elsewhere in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError):
            leave_elsewhere(secret)
    with pytest.raises(TypeError, match="copy_of"):
        copy.copy(secret)


def test_a_secret_has_no_hash() -> None:
    """A secret is no key of a dictionary: its hash would tell of its content."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(SecretBytes(1))


@given(st.binary(max_size=10_000))
def test_a_secret_holds_exactly_the_bytes_that_were_put_in(data: bytes) -> None:
    """Size and bytes of a secret are those of what it was copied from, an empty one included."""
    with SecretBytes.copy_of(data) as secret:
        assert bytes(secret.view) == data
        assert len(secret) == len(data)


def test_a_new_secret_is_zeros() -> None:
    """Room for a secret is all zeros."""
    assert bytes(SecretBytes(100).view) == bytes(100)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_secrets_are_equal_when_their_bytes_are(left: bytes, right: bytes) -> None:
    """Two secrets are equal exactly when all of their bytes are, zeros at the end included."""
    assert (SecretBytes.copy_of(left) == SecretBytes.copy_of(right)) == (left == right)
    assert SecretBytes.copy_of(left) != SecretBytes.copy_of(left + b"\0")


def test_a_secret_is_not_equal_to_bytes() -> None:
    """A secret and plain bytes are never equal: one would be tempted to compare with the wrong tool."""
    assert SecretBytes.copy_of(CONTENT) != CONTENT


def test_the_memory_is_zero_after_the_context() -> None:
    """At the end of the `with` block the memory itself is zero, also when the block fails."""
    secret = SecretBytes.copy_of(CONTENT)
    view = secret.view
    with pytest.raises(RuntimeError), secret:
        raise RuntimeError

    assert bytes(view) == bytes(len(CONTENT))
    assert len(secret) == 0
    assert bytes(secret.view) == b""


def test_wiping_twice_is_fine() -> None:
    """A secret may be wiped again."""
    secret = SecretBytes.copy_of(CONTENT)
    secret.wipe()
    secret.wipe()

    assert len(secret) == 0


def test_the_memory_is_zero_once_nobody_has_the_secret() -> None:
    """A secret that is let go without being closed wipes its memory."""
    secret = SecretBytes.copy_of(CONTENT)
    view = secret.view
    del secret

    assert bytes(view) == bytes(len(CONTENT))


def test_take_moves_the_first_bytes_and_wipes_the_rest() -> None:
    """`take` gives a new secret of the first bytes, and nothing stays in the old one."""
    secret = SecretBytes.copy_of(CONTENT)
    view = secret.view
    with secret.take(6) as taken:
        assert bytes(taken.view) == CONTENT[:6]
    assert bytes(view) == bytes(len(CONTENT))


def smaps_flags(address: int) -> list[str]:
    """Return the kernel's flags of the mapping that an address is in (proc(5), smaps, VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping at {address:#x}")


def address_of(secret: SecretBytes) -> int:
    """Return where in memory a secret is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(secret.view))


def test_the_pages_are_locked_and_left_out_of_core_dumps() -> None:
    """The kernel neither swaps a secret's pages out nor puts them in a core dump."""
    secret = SecretBytes.copy_of(CONTENT)
    flags = smaps_flags(address_of(secret))

    assert "dd" in flags, "not in core dumps"
    assert "lo" in flags, "locked"


def test_locked_memory_is_given_back() -> None:
    """A thousand secrets, one after the other, lock no more memory than one does."""
    program = f"""
from lukshdrfs.secret import SecretBytes
def locked():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))
before = locked()
kept = SecretBytes({3 * PAGE})
one = locked()
for _ in range(1000):
    SecretBytes({3 * PAGE}).wipe()
print(one - before, locked() - one)
"""
    assert run_python(program) == f"{3 * PAGE // 1024} 0"


def test_memory_that_cannot_be_locked_is_a_warning_once() -> None:
    """Where the limits allow no locked memory, secrets work, and one line in the log says so."""
    program = """
import ctypes, logging, resource, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
# without CAP_IPC_LOCK, root is held to the limit too: capset(2), version 3, two empty sets
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
from lukshdrfs.secret import SecretBytes
for content in (b"one", b"two"):
    secret = SecretBytes.copy_of(content)
    assert bytes(secret.view) == content
"""
    lines = run_python(program).splitlines()

    assert len(lines) == 1
    assert lines[0].startswith("WARNING")
    assert "swap" in lines[0]


def test_a_hardened_process_keeps_to_itself() -> None:
    """After `harden_process` there are no core dumps, no ptrace by the same user, and new files are the owner's."""
    program = """
import ctypes, os, resource
from lukshdrfs.secret import harden_process
os.umask(0)
harden_process()
PR_GET_DUMPABLE = 3
print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE), resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)))
"""
    assert run_python(program) == "0 (0, 0) 0o77"


class Kernel:
    """Stands for libc: notes what it is asked, and answers as the test says."""

    def __init__(self, *, refuses: int = 0) -> None:
        self.refuses = refuses
        self.asked: list[tuple[object, ...]] = []

    def _answer(self, *call: object) -> int:
        self.asked.append(call)
        ctypes.set_errno(self.refuses)
        return -1 if self.refuses else 0

    def prctl(self, *arguments: int) -> int:
        return self._answer("prctl", *arguments)

    def mlockall(self, flags: int) -> int:
        return self._answer("mlockall", flags)

    def mlock(self, address: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        return self._answer("mlock", address.value, size.value)


@pytest.mark.parametrize("size", [0, 1, 32, PAGE, PAGE + 1])
def test_all_of_a_secrets_bytes_are_locked(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """mlock(2) is asked for exactly the place where the secret is, and without a refusal nothing is said."""
    kernel = Kernel()
    monkeypatch.setattr(secret_module, "_libc", kernel)
    monkeypatch.setattr(secret_module, "_warn_unlocked", pytest.fail)
    secret = SecretBytes(size)

    [(call, address, length)] = kernel.asked
    assert call == "mlock"
    assert isinstance(length, int)
    assert length >= size
    if size:
        assert (address, length) == (address_of(secret), size)


def test_the_reason_why_memory_is_not_locked_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first refusal of mlock(2) is a warning with the kernel's reason and the way out; later ones are silent."""
    monkeypatch.setattr(secret_module, "_libc", Kernel(refuses=errno.ENOMEM))
    monkeypatch.setattr(secret_module, "_warned", False)
    for content in (CONTENT, CONTENT, b""):
        assert bytes(SecretBytes.copy_of(content).view) == content

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert os.strerror(errno.ENOMEM) in record.getMessage()
    assert "ulimit -l" in record.getMessage()


def test_what_a_hardened_process_asks_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not dumpable by prctl(2), no core file by setrlimit(2), and new files for the owner alone by umask(2)."""
    kernel = Kernel()
    monkeypatch.setattr(secret_module, "_libc", kernel)
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: kernel.asked.append(("setrlimit", *limit)))
    monkeypatch.setattr(os, "umask", lambda mask: kernel.asked.append(("umask", mask)))
    harden_process()
    monkeypatch.undo()

    pr_set_dumpable = 4
    assert kernel.asked == [
        ("prctl", pr_set_dumpable, 0, 0, 0, 0), ("setrlimit", resource.RLIMIT_CORE, (0, 0)), ("umask", 0o077),
    ]  # fmt: skip


@pytest.mark.parametrize("refuses", [0, errno.EPERM, errno.EINVAL])
def test_becoming_an_io_flusher_says_whether_it_was_done(monkeypatch: pytest.MonkeyPatch, refuses: int) -> None:
    """It is PR_SET_IO_FLUSHER of prctl(2), all other arguments 0, and the kernel may refuse it."""
    kernel = Kernel(refuses=refuses)
    monkeypatch.setattr(secret_module, "_libc", kernel)

    assert become_io_flusher() is (refuses == 0)
    pr_set_io_flusher = 57
    assert kernel.asked == [("prctl", pr_set_io_flusher, 1, 0, 0, 0)]


@pytest.mark.parametrize("refuses", [0, errno.ENOMEM])
@pytest.mark.parametrize("limit", [0, 8 << 20, resource.RLIM_INFINITY])
@pytest.mark.parametrize("user", [0, 1, 1000])
def test_all_memory_is_locked_where_the_limit_cannot_be_in_the_way(
    monkeypatch: pytest.MonkeyPatch, user: int, limit: int, refuses: int
) -> None:
    """Root, and who has no limit, ask mlockall(2) for all memory, now and later, when it is touched; others do not."""
    kernel = Kernel(refuses=refuses)
    monkeypatch.setattr(secret_module, "_libc", kernel)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    limits = {resource.RLIMIT_MEMLOCK: (limit, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    may = user == 0 or limit == resource.RLIM_INFINITY

    assert lock_process_memory() is (may and refuses == 0)
    current, future, on_fault = 1, 2, 4
    assert kernel.asked == ([("mlockall", current | future | on_fault)] if may else [])


@pytest.mark.parametrize("size", [0, 1, 63, PAGE + 1])
def test_random_secrets_are_as_long_as_asked_and_all_of_it_random(size: int) -> None:
    """Two random secrets differ in every part of 16 bytes, whatever their size; the source is closed again."""
    before = os.listdir("/proc/self/fd")
    one, two = SecretBytes.random(size), SecretBytes.random(size)
    assert len(one) == size
    assert len(os.listdir("/proc/self/fd")) == len(before)
    for at in range(0, size - 15, 16):
        assert bytes(one.view[at : at + 16]) != bytes(two.view[at : at + 16])


def test_random_bytes_that_come_in_pieces_fill_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives fewer bytes than asked, it is asked for the rest, which goes behind them."""
    pieces = iter([b"first", b"", b"second", b"3rd"])

    def readv(_source: int, buffers: list[memoryview]) -> int:
        piece = next(pieces)
        buffers[0][: len(piece)] = piece
        return len(piece)

    monkeypatch.setattr(os, "readv", readv)
    assert bytes(SecretBytes.random(14).view) == b"firstsecond3rd"


def test_a_forked_child_has_the_secret_too() -> None:
    """A process that is forked off has the secret: its pages are private, but not left out of the child."""
    secret = SecretBytes.copy_of(CONTENT)
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(secret.view) == CONTENT else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_child_does_with_its_secret_is_its_own_matter() -> None:
    """A process that is forked off wipes its copy, not ours."""
    secret = SecretBytes.copy_of(CONTENT)
    child = os.fork()
    if child == 0:
        secret.wipe()
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(secret.view) == CONTENT
