"""
Writes what is made from the program's own parsers: manual pages and shell completion, below docs/.

    generate.py           write them
    generate.py --check   say which are not as they would be written now; exit status 1 if any
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from lukshdrfs._version import VERSION
from lukshdrfs.cli.commands.mount.fstab_options import (
    FLAGS,
    KERNEL,
    NOT_OURS,
    SECURITY_CONTEXTS,
    VALUES,
    WITHOUT_EFFECT,
)
from lukshdrfs.cli.main import build_parser

DOCS = Path(__file__).parent
BY_THE_SHORT_FORM = ("offset", "size")
"""Second names of options."""

WITHOUT_LONG_OPTION = {
    "fsname": "what the mount table shows as the source (the payload)",
    "uid": "owner of the image, by number (who mounts)",
    "gid": "group of the image, by number (who mounts)",
    "umask": "permissions that the image does not have, octal (077)",
}

EXIT_STATUS = """.TP
0
done
.TP
1
wrong usage, no usable keyslot, or anything not below; of check: the payload gives itself away
.TP
2
no key opens it
.TP
3
out of memory
.TP
4
missing or wrong device, file, mountpoint or header; a header that asks for what is not supported
.TP
5
in use"""

SECRETS = """No secret is ever an argument or an environment variable. Without an option that names one, the keys of
keyring tokens are tried, then a passphrase is asked for at the terminal (or by systemd's agents, in a service); without
a terminal, one line of standard input counts, without its newline, at most 512 bytes. SRC is a path, fd:N, or \\- for
standard input."""

SEE_ALSO = r"\fBcryptsetup\fR(8), \fBmount\fR(8), \fBlosetup\fR(8), \fBqemu-storage-daemon\fR(1)"


def main_page() -> str:
    """Return lukshdrfs(1)."""
    parser = build_parser()
    page = _page(parser, "1", "User Commands", "unlock a LUKS volume with a detached header as one plaintext file")
    page.add_section("SECRETS", ">", SECRETS)
    page.add_section("EXIT STATUS", ">", EXIT_STATUS)
    page.add_section("SEE ALSO", ">", rf"\fBmount.lukshdrfs\fR(8), {SEE_ALSO}")
    return f"{page}\n"


def helper_page() -> str:
    """Return mount.lukshdrfs(8)."""
    parser = argparse.ArgumentParser(
        prog="mount.lukshdrfs",
        add_help=False,
        description="The helper by which mount(8) mounts file systems of the types lukshdrfs and fuse.lukshdrfs: "
        "'mount -t lukshdrfs PAYLOAD MOUNTPOINT -o header=FILE,keyfile=FILE', and lines of fstab. It is not meant to "
        "be called directly. 'lukshdrfs install-mount-helper' puts it where mount(8) looks.",
    )
    parser.add_argument("payload", metavar="PAYLOAD", help="file or block device with the ciphertext")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory, or a file to mount over")
    parser.add_argument("-o", metavar="OPT[,OPT...]", help="options, below; a comma in a value is written \\,")
    parser.add_argument("-f", action="store_true", help="do nothing: a fake mount")
    parser.add_argument("-s", action="store_true", help="leave out options that are unknown")
    parser.add_argument("-v", action="store_true", help="say more")
    parser.add_argument("-n", action="store_true", help="do not write /etc/mtab, which this program never does")
    parser.add_argument("-N", metavar="NAMESPACE", help="mount in that mount namespace, where all paths are looked up")
    parser.add_argument("-t", metavar="TYPE", help="lukshdrfs or fuse.lukshdrfs; of no effect")
    page = _page(parser, "8", "System Administration", "mount helper of lukshdrfs")
    options = "\n".join(f".TP\n\\fB{name}\\fR\n{text}" for name, text in _mount_options())
    page.add_section("MOUNT OPTIONS", ">", options)
    page.add_section("EXIT STATUS", ">", EXIT_STATUS)
    page.add_section("SEE ALSO", ">", rf"\fBlukshdrfs\fR(1), {SEE_ALSO}")
    return f"{page}\n"


def _mount_options() -> Iterator[tuple[str, str]]:
    """Yield what can stand behind -o: the option, and what it means."""
    subparsers = build_parser()._subparsers  # noqa: SLF001 - argparse has no public way to them
    assert subparsers is not None
    mount = subparsers._group_actions[0].choices["mount"]  # type: ignore[index] # noqa: SLF001
    meanings = {action.dest: action.help for action in mount._actions} | WITHOUT_LONG_OPTION  # noqa: SLF001
    for name, (dest, _) in sorted(VALUES.items()):
        if name in BY_THE_SHORT_FORM:
            yield f"{name}=", f"the same as data\\-{name}=, for the short form: mount(8) takes offset= for itself"
        else:
            yield f"{name}=", str(meanings[dest])
    for name, (dest, _) in sorted(FLAGS.items()):
        yield name, str(meanings[dest]) if name != "rw" else "allow writing (the default)"
    yield ", ".join(sorted(KERNEL)), "for the kernel, as with any FUSE file system"
    yield ", ".join(f"{name}=" for name in SECURITY_CONTEXTS), "for SELinux, where there is it"
    yield ", ".join(sorted(NOT_OURS)) + ", x\\-...", "for mount(8), fstab and systemd; ignored"
    yield ", ".join(sorted(WITHOUT_EFFECT)), "of every file system; they change nothing about this one"


def _page(parser: argparse.ArgumentParser, section: str, manual: str, summary: str) -> Manpage:
    page = Manpage(parser, format="single-commands-section")
    page.date, page.source, page.section, page.manual = "", f"lukshdrfs {VERSION}", section, manual
    page.description = summary
    return page


def documents() -> dict[Path, str]:
    """Return every file and what it is to hold."""
    pages = {DOCS / "man/lukshdrfs.1": main_page(), DOCS / "man/mount.lukshdrfs.8": helper_page()}
    names = {"bash": "lukshdrfs", "zsh": "_lukshdrfs", "fish": "lukshdrfs.fish"}
    return pages | {DOCS / "completion" / name: _completion(shell) for shell, name in names.items()}


COMPLETED = {"SRC": shtab.FILE, "FILE": shtab.FILE, "PAYLOAD": shtab.FILE, "MOUNTPOINT": shtab.DIRECTORY}
"""What is completed, by the name that the argument has in the help."""


def _completion(shell: str) -> str:
    parser = build_parser()
    _complete_files(parser)
    return str(shtab.complete(parser, shell=shell)).rstrip() + "\n"


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                _complete_files(below)
        elif isinstance(action.metavar, str) and action.metavar in COMPLETED:
            action.complete = COMPLETED[action.metavar]  # type: ignore[attr-defined]


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.environ["COLUMNS"] = "100"  # argparse wraps at the terminal's width
    stale = [path for path, text in documents().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if arguments.check:
            print(f"{path} is not what docs/generate.py makes", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(documents()[path], encoding="utf-8")
    return int(bool(stale and arguments.check))


if __name__ == "__main__":
    sys.exit(main())
