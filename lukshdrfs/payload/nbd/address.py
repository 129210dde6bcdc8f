"""Addresses of NBD servers, as payloads and headers can have them (NetworkBlockDevice/nbd, doc/uri.md)."""

from __future__ import annotations

import os
import re
import urllib.parse

from lukshdrfs.errors import UsageError

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
_PATHS = ("socket", "tls-certificates", "tls-psk-file")
# not those of newer libnbds: an older one would ignore tls-hostname, and the name would not be checked
_PARAMETERS = _PATHS


def is_network(name: str) -> bool:
    """Whether a payload or header is named by a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", name) is not None


def unix_address(socket: str, export: str = "") -> str:
    """Return the address of an export on a socket of this machine."""
    return f"nbd+unix:///{urllib.parse.quote(export, safe='')}?socket={urllib.parse.quote(socket)}"


def checked_address(url: str) -> str:
    """
    Return the address with absolute paths: whoever connects again may have left the working directory.

    Raises UsageError for what is no NBD address, and for parameters that nobody knows: one that is misspelled could be
    the one that says which server is the right one.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"{url}: scheme {parts.scheme!r} is not supported; expected {', '.join(SCHEMES)}, or put nbdkit or "
            "qemu-nbd in front of it"
        )
    if parts.password or parts.fragment:
        raise UsageError(f"{url}: an NBD address has no password or fragment")
    query = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    named = dict(query)
    if parts.scheme.endswith("+unix"):
        if not named.get("socket") or parts.netloc.rpartition("@")[2]:
            raise UsageError(f"{url}: expected {parts.scheme}:///EXPORT?socket=PATH")
    elif not parts.hostname:
        raise UsageError(f"{url}: it names no host")
    if parts.scheme == "nbds+unix" and not named.get("tls-psk-file"):
        # libnbd, lib/crypto.c: a certificate is checked against the host's name alone, and a socket has none
        raise UsageError(f"{url}: on a socket, no certificate would be checked; name a key with tls-psk-file=PATH")
    for name, _ in query:
        known = name in _PARAMETERS and (parts.scheme.startswith("nbds") or name == "socket")
        if not known or (name == "socket" and not parts.scheme.endswith("+unix")):
            raise UsageError(f"{url}: {name!r} is not a parameter that is known for {parts.scheme}")
    try:
        _ = parts.port
    except ValueError:
        raise UsageError(f"{url}: its port is no number below 65536") from None
    query = [(name, os.path.abspath(value) if name in _PATHS else value) for name, value in query]  # noqa: PTH100
    # not by urlunsplit, which makes nbd+unix:/EXPORT of it
    encoded = urllib.parse.urlencode(query, safe="/", quote_via=urllib.parse.quote)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{encoded}" if encoded else "")
