"""Payloads on stores that nbdkit reaches for us: a host by ssh, a web server, both on loopback."""

from __future__ import annotations

import contextlib
import functools
import getpass
import http.server
import os
import re
import socket as sockets
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, decrypted
from support.nbd import address, nbdkit, over_nbd
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "nbdkit")


@contextlib.contextmanager
def ssh_host(folder: Path) -> Iterator[tuple[int, Path, Path]]:
    """Run sshd for ourselves on a port; yield that, our key and the file by which its host key is known."""
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd wants it as an empty root
    options = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "PidFile": folder / "pid",
        "AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no", "UsePAM": "no", "PermitRootLogin": "yes",
        "Subsystem": "sftp internal-sftp",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    with subprocess.Popen([program("sshd"), "-D", "-e", "-f", "/dev/null", *words], stderr=subprocess.PIPE) as server:
        try:
            wait_until((folder / "pid").exists, "sshd listens")
            yield port, folder / "user", folder / "known"
        finally:
            server.terminate()


@pytest.mark.root
@pytest.mark.needs("root", "sshd", "ssh-keygen")
def test_a_host_by_ssh(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A file that only sftp reaches is a payload; what fsync answered is in it."""
    files = make_volume(XTS_512)
    data = os.urandom(3 * MIB)
    with ssh_host(tmp_path / "ssh") as (port, key, known):
        plugin = (
            "ssh", "host=127.0.0.1", f"port={port}", f"user={getpass.getuser()}", f"identity={key}",
            f"known-hosts={known}", files.payload,
        )  # fmt: skip
        socket = tmp_path / "socket"
        with nbdkit(socket, *plugin), over_nbd(files, address(socket)) as mount:
            with mount.image.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), data, 1000)
                os.fsync(file.fileno())
                assert os.pread(file.fileno(), len(data), 1000) == data
            assert decrypted(files)[1000 : 1000 + len(data)] == data


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as web servers do and Python's does not."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        first, last = (int(text) for text in re.findall(r"\d+", self.headers["Range"]))
        with path.open("rb") as file:
            data = os.pread(file.fileno(), last + 1 - first, first)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(Path(self.translate_path(self.path)).stat().st_size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


def test_a_web_server(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A file on a web server is a payload for reading."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    handler = functools.partial(RangeHandler, directory=files.payload.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{files.payload.name}"
        with nbdkit(socket, "curl", url), over_nbd(files, address(socket), "--read-only") as mount:
            assert mount.image.read_bytes() == decrypted(files)
        server.shutdown()
