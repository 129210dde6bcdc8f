"""What the daemon shuts itself off from, and what of a secret it keeps."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, XTS_4096, Format, LuksFiles, make_header
from support.mounts import LUKSHDRFS, Mounted, lukshdrfs
from support.nbd import address, nbdkit, over_nbd
from support.processes import CAP_SYS_RESOURCE, has_capability, memory_holds
from support.terminal import Terminal
from support.tools import program
from support.volumes import MIB, MakeVolume, new_files

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.luks.header import parse_header
from lukshdrfs.secret import SecretBytes

pytestmark = pytest.mark.needs("fuse", "cryptsetup")


def status_of(place: Path) -> dict[str, str]:
    """Return the fields of a process's or thread's status."""
    return dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)


def test_process_keeps_to_itself(volume: LuksFiles) -> None:
    """No core file, not dumpable, files for the owner only, every descriptor closed for those it starts."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        place = Path(f"/proc/{mount.pid}")
        limits = (place / "limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert status_of(place)["Umask"] == "0077"
        if os.geteuid() != 0:
            assert (place / "environ").stat().st_uid == 0, "not dumpable: its files in /proc are root's"
            return  # what follows is for root alone to see
        for entry in (place / "fdinfo").iterdir():
            flags = int(re.search(r"^flags:\s+(\d+)", entry.read_text(), re.MULTILINE)[1], 8)  # type: ignore[index]
            if int(entry.name) > 2:
                assert flags & os.O_CLOEXEC, (place / "fd" / entry.name).readlink()


def test_threads_that_serve_are_confined(volume: LuksFiles) -> None:
    """The threads that serve requests are under a seccomp filter and gain no privileges; those that unmount are not."""
    with Mounted(volume.payload, "--data-path", "native", header=volume.header, key_file=volume.key_file) as mount:
        threads = [status_of(task) for task in Path(f"/proc/{mount.pid}/task").iterdir()]
    serving = [fields for fields in threads if fields["Name"] in ("lane", "coherence")]
    assert len(serving) >= 17
    assert {(fields["Seccomp"], fields["NoNewPrivs"]) for fields in serving} == {("2", "1")}
    assert {fields["Seccomp"] for fields in threads if fields not in serving} == {"0"}


@pytest.mark.needs("qemu-img", "qemu-storage-daemon")
def test_programs_that_are_started_get_a_clean_environment(tmp_path: Path) -> None:
    """What somebody put into our environment to change what programs do is not passed on."""
    key, header, payload, place = (tmp_path / name for name in ("key", "header", "payload", "mnt"))
    key.write_bytes(b"key")
    place.mkdir()
    environment = {**os.environ, "LD_DEBUG": "statistics", "BLKID_FILE": "/nowhere", "G_DEBUG": "fatal-warnings"}
    run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, check=False)
    done = run([LUKSHDRFS, "create", "--payload-format", "qcow2", "--size", "4M", "--header", header, "--key-file", key,
                "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", payload])  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run([LUKSHDRFS, "mount", "--payload-format", "qcow2", "--header", header, "--key-file", key, payload, place])
    assert done.returncode == 0, done.stderr
    pid = os.getxattr(place / "image", "user.lukshdrfs.pid").decode()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    started = {child for task in tasks for child in (task / "children").read_text().split()}
    assert 1 <= len(started) <= 2  # the engine, and the guard
    seen = "".join(Path(f"/proc/{child}/environ").read_text() for child in started)
    assert lukshdrfs("unmount", place).returncode == 0
    assert "PATH=" in seen
    assert not {name for name in ("LD_DEBUG", "BLKID_FILE", "G_DEBUG") if name in seen}


@pytest.mark.root
def test_memory_for_writing_is_found_without_writing(volume: LuksFiles) -> None:
    """As root the process is an I/O flusher: a loop device on the image cannot wait for itself when memory is short."""
    pf_memalloc_noio = 0x00080000  # linux/sched.h
    if not has_capability(CAP_SYS_RESOURCE):
        pytest.skip("this root has no CAP_SYS_RESOURCE")
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        for task in Path(f"/proc/{mount.pid}/task").iterdir():
            flags = int((task / "stat").read_text().rpartition(")")[2].split()[6])
            assert flags & pf_memalloc_noio, (task / "comm").read_text()


def page_faults(pid: int) -> dict[str, int]:
    """Return how often each thread that serves requests had to be given memory so far (proc(5), minflt and majflt)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(") ")
        if name == "lane":
            found[task.name] = sum(int(fields.split()[field]) for field in (7, 9))
    return found


@pytest.mark.needs("fio")
@pytest.mark.parametrize("layout", [XTS_512, XTS_4096], ids=str)
def test_memory_for_serving_is_there_before_the_first_request(layout: Format, make_volume: MakeVolume) -> None:
    """No thread that serves requests touches memory for the first time then: there might be none, but on the image."""
    files = make_volume(layout, 64 * MIB)
    with Mounted(files.payload, "--data-path", "native", header=files.header, key_file=files.key_file) as mount:
        before = page_faults(mount.pid)
        for block, depth in (("1M", 8), ("4k", 32), ("5000", 16)):
            for kind in ("write", "read", "randwrite", "randread"):
                subprocess.run(
                    [program("fio"), "--name=x", f"--filename={mount.image}", f"--rw={kind}", f"--bs={block}",
                     "--ioengine=posixaio", f"--iodepth={depth}", "--size=64M", "--io_size=8M", "--end_fsync=1"],
                    check=True, capture_output=True,
                )  # fmt: skip
        assert len(before) >= 16
        assert page_faults(mount.pid) == before


LAYOUTS = (LUKS1_XTS, XTS_512, XTS_4096)


@pytest.mark.root
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_but_the_volume_key_is_kept(layout: Format, tmp_path: Path) -> None:
    """After unlocking, the daemon's memory holds the volume key; no passphrase, no keyslot key and no AF material."""
    files = new_files(tmp_path, 4 * MIB)
    passphrase = b"a passphrase of some length " + os.urandom(8).hex().encode()
    files.key_file.write_bytes(passphrase)
    make_header(files, layout)
    header = parse_header(files.header.read_bytes())
    slot = header.keyslots[0]
    kdf = slot.kdf
    assert kdf is not None
    assert kdf.type == "pbkdf2"
    keyslot_key = hashlib.pbkdf2_hmac(kdf.hash, passphrase, kdf.salt, kdf.iterations, slot.area.key_size)
    material = bytearray(header.area[slot.area.offset : slot.area.offset + slot.key_size * 4000])
    material = material[: len(material) // 512 * 512]
    with SecretBytes.copy_of(keyslot_key) as key:
        SectorCipher(CipherSpec.parse(slot.area.encryption), key, 512).decrypt(memoryview(material), 0)
    dump = tmp_path / "volume.key"
    subprocess.run(
        [program("cryptsetup"), "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", dump,
         "--key-file", files.key_file, files.header],
        check=True, capture_output=True,
    )  # fmt: skip
    volume_key = dump.read_bytes()
    rng = random.Random(71)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        mount.image.read_bytes()
        assert memory_holds(mount.pid, volume_key[:32]), "the search finds what is there"
        for name, needle in {
            "passphrase": passphrase,
            "first half of the keyslot's key": keyslot_key[:32],
            "second half of the keyslot's key": keyslot_key[32:],
            **{f"stripe {n}": material[n * 512 : n * 512 + 48] for n in rng.sample(range(len(material) // 512), 12)},
        }.items():
            assert not memory_holds(mount.pid, bytes(needle)), name


SECRETS = "correct-horse-battery-staple"


def test_no_secret_is_said(tmp_path: Path) -> None:
    """At the most talkative, nothing that is printed has the passphrase or the volume key; nor have /proc's files."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    key_file, place, key = tmp_path / "key", tmp_path / "mnt", tmp_path / "volume.key"
    place.mkdir()
    key_file.write_text(SECRETS)
    key.write_bytes(volume_key := os.urandom(64))
    with Terminal(
        LUKSHDRFS, "create", "-v", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--size", "1M",
        "--volume-key-file", key, "--header", header, payload,
    ) as terminal:  # fmt: skip
        terminal.answer(SECRETS.encode())
        terminal.answer(SECRETS.encode())
        assert terminal.wait() == 0, terminal.shown
        shown = terminal.shown
    for words in (
        ("info", "--json", "--header", header),
        ("key", "list", "--header", header),
        ("key", "test", "--header", header, "--key-file", key_file),
        ("header", "verify", "--header", header, "--key-file", key_file),
        ("mount", "--header", header, "--key-file", key_file, payload, place),
    ):
        done = lukshdrfs(*words, "-v")
        assert done.returncode == 0, done.stderr
        shown += (done.stdout + done.stderr).encode()
    pid = os.getxattr(place / "image", "user.lukshdrfs.pid").decode()
    for name in ("cmdline", "environ", "maps", "status"):
        try:
            shown += Path(f"/proc/{pid}/{name}").read_bytes()
        except PermissionError:
            assert os.geteuid() != 0
            assert name in ("environ", "maps")
    done = lukshdrfs("unmount", "-v", place)
    assert done.returncode == 0
    shown += (done.stdout + done.stderr).encode()
    assert b"lukshdrfs" in shown
    for secret in (
        SECRETS.encode(),
        volume_key,
        volume_key[:16],
        volume_key.hex().encode(),
        volume_key[:16].hex().encode(),
    ):
        assert secret not in shown


@pytest.mark.needs("nbdkit")
def test_confined_threads_serve_a_server_that_comes_back(make_volume: MakeVolume, tmp_path: Path) -> None:
    """What needs more than open descriptors, such as connecting again, is done by threads that may."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    with nbdkit(socket, "file", files.payload) as server, over_nbd(files, address(socket)) as mount:
        for size in (512, 4096, MIB):
            server.kill()
            server.start()
            with mount.image.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"w" * size, 0)
                os.fsync(file.fileno())
                assert os.pread(file.fileno(), size, 0) == b"w" * size
