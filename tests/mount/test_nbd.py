"""Payloads and headers behind NBD servers: nbdkit and qemu-nbd, on unix sockets, TCP and TLS."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles, decrypted
from support.model import apply, scattered_writes
from support.mounts import LUKSHDRFS, Mounted, is_mounted, lukshdrfs, read_attribute
from support.nbd import address, nbdkit, nbdkit_on_a_port, over_nbd, qemu_nbd
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

from lukshdrfs.payload import NbdPayload

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "nbdkit", "qemu-nbd")

SIZE = 4 * MIB


def write_all_over(mount: Mounted, seed: int) -> bytearray:
    """Write everything, then pieces of all sizes anywhere, and flush; return what must be there."""
    model = bytearray(random.Random(seed).randbytes(SIZE))
    with mount.image.open("r+b", buffering=0) as file:
        file.write(model)
        apply(scattered_writes(random.Random(seed), SIZE), model, lambda at, data: os.pwrite(file.fileno(), data, at))
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), SIZE, 0) == model
    return model


@pytest.mark.parametrize("data_path", ["native", "python"])
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_reads_writes_and_flushes_go_to_the_server(
    make_volume: MakeVolume, tmp_path: Path, data_path: str, cache: str
) -> None:
    """cryptsetup decrypts what the server has then."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    options = ("--data-path", data_path, "--cache", cache)
    with qemu_nbd(files.payload, socket), over_nbd(files, address(socket, "disk"), *options) as mount:
        assert read_attribute(mount.image, "data_path") == data_path
        model = write_all_over(mount, 23)
    assert decrypted(files) == model


@pytest.mark.parametrize("block", [1, 512, 4096, 65536])
def test_block_sizes_that_a_server_demands(make_volume: MakeVolume, tmp_path: Path, block: int) -> None:
    """A server that refuses what is no whole blocks of its gets whole ones, whatever sectors the volume has."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    policy = ("--filter=blocksize-policy", "file", files.payload, f"blocksize-minimum={block}",
              "blocksize-error-policy=error", "blocksize-preferred=65536", "blocksize-maximum=262144")  # fmt: skip
    with nbdkit(socket, *policy), over_nbd(files, address(socket)) as mount:
        model = write_all_over(mount, block)
    assert decrypted(files) == model


def test_create_and_info(tmp_path: Path) -> None:
    """A payload behind a server is created on as one here is, what is on it is seen, and `info` shows its size."""
    disk, socket, key, header = tmp_path / "disk", tmp_path / "socket", tmp_path / "key", tmp_path / "header"
    disk.write_bytes(bytes(SIZE))
    key.write_bytes(b"key")
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    with qemu_nbd(disk, socket):
        url = address(socket, "disk")
        done = lukshdrfs("create", "--header", header, "--key-file", key, *cheap, url)
        assert done.returncode == 0, done.stderr
        shown = lukshdrfs("info", "--header", header, url).stdout
        assert str(SIZE) in shown
    subprocess.run([program("mkfs.ext4"), "-q", disk], check=True)
    with qemu_nbd(disk, socket):
        done = lukshdrfs("create", "--header", tmp_path / "other", "--key-file", key, *cheap, url)
    assert done.returncode == 4
    assert "ext4" in done.stderr
    assert not (tmp_path / "other").exists()


def test_header_behind_a_server(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A header is read from an address once: the server may go."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    place = tmp_path / "place"
    place.mkdir()
    with nbdkit(socket, "--readonly", "file", files.header):
        done = lukshdrfs(
            "mount", "--header", address(socket), "--key-file", files.key_file, files.payload, place
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (place / "image").stat().st_size == files.payload.stat().st_size
    assert len((place / "image").read_bytes()) == files.payload.stat().st_size
    assert lukshdrfs("unmount", place).returncode == 0


def test_read_only_export(make_volume: MakeVolume, tmp_path: Path) -> None:
    """What the server gives for reading only is refused for writing, before anything is mounted."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    with nbdkit(socket, "--readonly", "file", files.payload):
        place = tmp_path / "place"
        place.mkdir()
        done = lukshdrfs(
            "mount", "--header", files.header, "--key-file", files.key_file, address(socket), place
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
        assert "--read-only" in done.stderr
        assert not is_mounted(place)
        with over_nbd(files, address(socket), "--read-only") as mount:
            assert len(mount.image.read_bytes()) == files.payload.stat().st_size


def test_server_that_cannot_flush(tmp_path: Path) -> None:
    """That is said at once: what an fsync promises, nobody can keep."""
    socket, key, place = tmp_path / "socket", tmp_path / "key", tmp_path / "place"
    key.write_bytes(b"key")
    place.mkdir()
    store = tmp_path / "store"
    store.write_bytes(bytes(SIZE))
    plugin = (
        "eval", f"get_size=echo {SIZE}", f"pread=dd if={store} bs=1 skip=$4 count=$3 status=none",
        f"pwrite=dd of={store} bs=1 seek=$4 conv=notrunc status=none",
    )  # fmt: skip
    with nbdkit(socket, *plugin):
        done = lukshdrfs(
            "create", "--header", tmp_path / "header", "--key-file", key, "--pbkdf", "pbkdf2",
            "--pbkdf-force-iterations", "1000", address(socket),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "cannot flush" in done.stderr
        done = lukshdrfs("mount", "--header", tmp_path / "header", "--key-file", key, address(socket), place)
        assert done.returncode == 0, done.stderr
        assert "cannot flush" in done.stderr
        with (place / "image").open("r+b", buffering=0) as file:
            file.write(b"all the same")
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 12, 0) == b"all the same"
        assert lukshdrfs("unmount", place).returncode == 0


def test_growing(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A server that comes back with a larger export, and SIGHUP: the image is larger, and what is open goes on."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    size = files.payload.stat().st_size
    with qemu_nbd(files.payload, socket) as server, over_nbd(files, address(socket, "disk")) as mount:  # noqa: SIM117 - longer otherwise
        with mount.image.open("r+b", buffering=0) as file:
            file.write(b"before")
            server.kill()
            os.truncate(files.payload, 2 * size)
            server.start()
            os.kill(mount.pid, 1)
            wait_until(lambda: mount.image.stat().st_size == 2 * size, "the image grows")
            os.pwrite(file.fileno(), b"after", size)
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 6, 0) == b"before"
    assert decrypted(files)[size : size + 5] == b"after"


def test_without_the_library(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Where libnbd is not installed, the message says what to install; files for payloads do not care."""
    files, place, fake = make_volume(XTS_512), tmp_path / "place", tmp_path / "lib"
    place.mkdir()
    fake.mkdir()
    (fake / "libnbd.so.0").write_bytes(b"no library")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake)}
    opening: list[str | Path] = ["--header", files.header, "--key-file", files.key_file]
    done = subprocess.run(
        [LUKSHDRFS, "mount", *opening, "nbd://localhost/disk", place],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "install libnbd0" in done.stderr
    done = subprocess.run(
        [LUKSHDRFS, "mount", *opening, files.payload, place],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", place).returncode == 0


def test_nobody_answers(volume: LuksFiles, tmp_path: Path) -> None:
    """An address where nobody is, or that is none, is one line at once."""
    place = tmp_path / "place"
    place.mkdir()
    opening = ("--header", volume.header, "--key-file", volume.key_file)
    for url, status in (
        (address(tmp_path / "nobody"), 4),
        ("nbd://127.0.0.1:1/disk", 4),
        ("gopher://host/export", 1),
        ("nbd:///export", 1),
        ("nbd+unix:///export", 1),
        ("nbds://host/export?tls-certificats=/etc", 1),
        ("nbds+unix:///?socket=/nobody&tls-certificates=/etc", 1),
    ):
        done = lukshdrfs("mount", *opening, url, place)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
        assert url in done.stderr


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an authority, and a server's and a client's certificate for localhost."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run([program("openssl"), *words], check=True, capture_output=True, cwd=folder)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
            "-keyout", "ca-key.pem", "-out", "ca-cert.pem")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for who in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={who}", "-keyout", f"{who}-key.pem",
                "-out", f"{who}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{who}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
                "-days", "2", "-extfile", "names", "-out", f"{who}-cert.pem")  # fmt: skip
    return folder


@pytest.mark.needs("openssl")
def test_tls_with_certificates(make_volume: MakeVolume, tmp_path: Path, certificates: Path) -> None:
    """Everything goes over TLS, also to a server that comes back; its certificate is checked, and its name."""
    files, strangers = make_volume(XTS_512), tmp_path / "strangers"
    strangers.mkdir()
    subprocess.run(
        [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other",
         "-keyout", "ca-key.pem", "-out", "ca-cert.pem"],
        check=True, capture_output=True, cwd=strangers,
    )  # fmt: skip
    with nbdkit_on_a_port("--tls=require", f"--tls-certificates={certificates}", "file", files.payload) as server:
        url = f"nbds://localhost:{server.place}/?tls-certificates={certificates}"
        with over_nbd(files, url) as mount:
            with mount.image.open("r+b", buffering=0) as file:
                file.write(b"before")
                server.kill()
                server.start()
            model = write_all_over(mount, 31)
        assert decrypted(files) == model
        for refused in (
            f"nbds://localhost:{server.place}/?tls-certificates={strangers}",
            f"nbds://127.0.0.1:{server.place}/?tls-certificates={certificates}",  # the certificate has another name
            f"nbd://localhost:{server.place}/",  # the server wants TLS
        ):
            done = lukshdrfs("info", "--header", files.header, refused)
            assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    with nbdkit_on_a_port("file", files.payload) as server:
        url = f"nbds://localhost:{server.place}/?tls-certificates={certificates}"
        done = lukshdrfs("info", "--header", files.header, url)
        assert done.returncode == 4, "nbds is not content without TLS"


def test_tls_with_a_shared_key(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Both sides know a key (PSK); who does not is refused."""
    files, socket, keys, wrong = make_volume(XTS_512), tmp_path / "socket", tmp_path / "keys", tmp_path / "wrong"
    keys.write_text(f"alice:{'5a' * 32}\n")
    wrong.write_text(f"alice:{'5b' * 32}\n")
    for file in (keys, wrong):
        file.chmod(0o600)
    with nbdkit(socket, "--tls=require", f"--tls-psk={keys}", "file", files.payload):
        with over_nbd(files, f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}") as mount:
            model = write_all_over(mount, 32)
        done = lukshdrfs("info", "--header", files.header, f"nbds+unix://alice@/?socket={socket}&tls-psk-file={wrong}")
        assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    assert decrypted(files) == model


def test_several_connections_where_the_server_keeps_them_in_step(volume: LuksFiles, tmp_path: Path) -> None:
    """One connection where the server does not say so, several where it does: a flush is good for all of them."""
    socket = tmp_path / "socket"
    with nbdkit(socket, "file", volume.payload), NbdPayload.open(address(socket), read_only=False) as payload:
        assert payload.connections > 1
    with (
        nbdkit(socket, "--filter=multi-conn", "file", volume.payload, "multi-conn-mode=disable"),
        NbdPayload.open(address(socket), read_only=False) as payload,
    ):
        assert payload.connections == 1
