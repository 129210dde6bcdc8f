"""
A power cut at any moment of an edit leaves a header that opens with the old secret or with the new one.

The writes are those that the program really made, as strace saw them; the rest is replayed: cut between any two of
them, inside each, and with any part of what had not been synced on the storage.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.crash import Recording, record
from support.cryptsetup import Format, cryptsetup
from support.mounts import Argument, lukshdrfs
from support.processes import kill
from support.tools import program, require
from support.volumes import MIB

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import HeaderError, LukshdrfsError, PayloadError
from lukshdrfs.headers import file as header_file
from lukshdrfs.headers import open_header, read_header, repair_header
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.keyslots import change_keyslot, volume_digest
from lukshdrfs.luks.model import Digest, Header, Keyslot
from lukshdrfs.secret import SecretBytes

# to its own user, the program is not open for tracing
pytestmark = [pytest.mark.root, pytest.mark.needs("cryptsetup", "strace")]

LUKS1 = Format("luks1", "aes-xts-plain64", 256)
LUKS2 = Format("luks2", "aes-xts-plain64", 256)
CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]

ON_DISK = 1
"""So many states of each recording, and its last but one, are tried with cryptsetup, and by our reader of files."""

SLOTS = 8
OTHER = "a-new-one"


@dataclasses.dataclass
class Volume:
    """A header file in a folder of its own, and key files elsewhere."""

    folder: Path
    keys: Path

    @property
    def header(self) -> Path:
        return self.folder / "header.img"

    @property
    def payload(self) -> Path:
        return self.keys / "payload.img"

    def key(self, name: str | int) -> Path:
        """Return the key file of a name; keyslot N is made with the name N."""
        path = self.keys / f"key-{name}"
        path.write_bytes(secret(name))
        return path

    def key_command(self, command: str, *options: Argument) -> list[Argument]:
        cheap = [] if command == "remove" else CHEAP
        return ["key", command, "--header", self.header, *cheap, *options]

    def record(self, *arguments: Argument) -> Recording:
        return record(self.folder, *arguments)


def secret(name: str | int) -> bytes:
    return f"the secret {name}".encode()


MakeVolume = Callable[..., Volume]


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format, int], Path]:
    """Return a function that has cryptsetup make a header with so many keyslots, each once."""

    @functools.cache
    def make(layout: Format, slots: int) -> Path:
        volume = Volume(tmp_path_factory.mktemp("master"), tmp_path_factory.mktemp("keys"))
        volume.payload.write_bytes(bytes(MIB))
        cryptsetup(
            "luksFormat", *layout.options, "--key-file", volume.key(0), "--header", volume.header, volume.payload
        )
        for slot in range(1, slots):
            cryptsetup("luksAddKey", *CHEAP, "--key-file", volume.key(0), volume.header, volume.key(slot))
        return volume.header

    return make


@pytest.fixture
def make(tmp_path: Path, masters: Callable[[Format, int], Path]) -> MakeVolume:
    """Return a function that makes a volume with keyslots 0 to `slots` - 1, save those that are `free`."""

    def make_volume(layout: Format, slots: int, free: Sequence[int] = ()) -> Volume:
        volume = Volume(tmp_path / "volume", tmp_path / "keys")
        volume.folder.mkdir()
        volume.keys.mkdir()
        volume.payload.write_bytes(bytes(MIB))
        shutil.copy(masters(layout, slots), volume.header)
        for slot in free:
            cryptsetup("luksKillSlot", volume.header, str(slot))
        return volume

    return make_volume


# --- what opens -------------------------------------------------------------------------------------------------


def keys_by_slot(data: bytes, names: Sequence[str | int]) -> dict[int, dict[str | int, bytes]]:
    """Return the volume key for each of the secrets that open a keyslot, for each that is in use."""
    header = parse_header(data)
    found: dict[int, dict[str | int, bytes]] = {}
    for slot in header.keyslots:
        material = header.area[slot.area.offset : slot.area.offset + slot.area.size]
        place = slot, volume_digest(header), hashlib.sha256(material).digest()
        keys = ((name, _key_in_slot(header, place, secret(name))) for name in names)
        found[slot.id] = {name: key for name, key in keys if key is not None}
    return found


def keys_in(data: bytes, names: Sequence[str | int]) -> dict[str | int, bytes]:
    """Return the volume key for each of the secrets that open a header; the header itself must be valid."""
    return {name: key for keys in keys_by_slot(data, names).values() for name, key in keys.items()}


Place = tuple[Keyslot, Digest, bytes]
_seen: dict[tuple[Place, bytes], bytes | None] = {}


def _key_in_slot(header: Header, place: Place, passphrase: bytes) -> bytes | None:
    """Return what a keyslot gives for a passphrase. Most states differ in one keyslot: the others are known."""
    if (place, passphrase) not in _seen:
        slot, digest, _ = place
        with SecretBytes.copy_of(passphrase) as wanted:
            try:
                key = unlock(header, digest, wanted, slot.id)
            except LukshdrfsError:
                _seen[place, passphrase] = None
            else:
                _seen[place, passphrase] = bytes(key.volume_key.view)
                key.volume_key.wipe()
    return _seen[place, passphrase]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    _seen.clear()


@dataclasses.dataclass
class Promise:
    """What must be so of a header at every moment of an edit."""

    always: Sequence[str | int]
    """Secrets that are in neither the old nor the new one only."""
    before: Sequence[str | int] = ()
    after: Sequence[str | int] = ()
    one_of_them: bool = True
    """Whether of the secrets that go and come one must open it; not so where there are others anyway."""
    dying: int | None = None
    """The keyslot whose material is overwritten while it is in use. Every other one that is in use opens."""

    @property
    def names(self) -> list[str | int]:
        return [*self.always, *self.before, *self.after]

    def check(self, data: bytes, volume_key: bytes) -> None:
        """Fail unless a header keeps it."""
        by_slot = keys_by_slot(data, self.names)
        assert {slot for slot, keys in by_slot.items() if not keys} <= {self.dying}, "a keyslot that nothing opens"
        found = {name: key for keys in by_slot.values() for name, key in keys.items()}
        assert set(found.values()) <= {volume_key}
        assert set(self.always) <= set(found), "a secret that has nothing to do with the edit is lost"
        assert found or not self.names
        if self.one_of_them and (self.before or self.after):
            assert set(found) & {*self.before, *self.after}, "neither the old secret nor the new one opens it"

    def check_on_disk(self, header: Path, volume: Volume) -> None:
        """Fail unless our reader and cryptsetup find the same on a file."""
        names = [*self.always[:1], *self.before, *self.after]
        found = {name for name in names if opens_file(header, name)}
        assert set(self.always) & set(names) <= found
        for name in names:
            assert opens_with_cryptsetup(header, volume, name) is (name in found), name


def opens_file(header: Path, name: str | int) -> bool:
    """Tell whether our reader opens a header file with a secret, as it reads it for a mount."""
    parsed = read_header(header, warn=False)
    with SecretBytes.copy_of(secret(name)) as passphrase:
        try:
            unlock(parsed, volume_digest(parsed), passphrase).volume_key.wipe()
        except LukshdrfsError:
            return False
    return True


def opens_with_cryptsetup(header: Path, volume: Volume, name: str | int) -> bool:
    """Tell whether cryptsetup opens a copy of a header file; opening may mend it."""
    copy = volume.keys / "copy.img"
    shutil.copyfile(header, copy)
    done = subprocess.run(
        [
            program("cryptsetup"), "open", "--test-passphrase", "--batch-mode", "--key-file", volume.key(name),
            "--header", copy, volume.payload,
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1, 2}, done.stderr
    return done.returncode == 0


def check_all(recording: Recording, promise: Promise, volume: Volume, name: str = "header.img") -> None:
    """Check every state of a header in place, some of them on the disk, and the two ends."""
    before, after = (files[name] for files in (recording.before, recording.after))
    (volume_key,) = set(keys_in(before, promise.names).values())
    assert set(keys_in(before, promise.names)) == {*promise.always, *promise.before}
    assert set(keys_in(after, promise.names)) == {*promise.always, *promise.after}
    states = [state[name] for state in recording.states()]
    assert before in states
    assert after in states
    for data in states:
        promise.check(data, volume_key)
    path = volume.keys / "state.img"
    for data in _some(states):
        path.write_bytes(data)
        promise.check_on_disk(path, volume)


def _some(states: list[bytes]) -> list[bytes]:
    return [*random.Random(len(states)).sample(states, min(len(states), ON_DISK)), states[-2]]


def rest(*gone: int, slots: int) -> list[int]:
    return [slot for slot in range(slots) if slot not in gone]


# --- LUKS1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 5, 6, 7])
def test_luks1_added_key(slot: int, make: MakeVolume) -> None:
    """While a keyslot of a LUKS1 header is made (6 lies in two sectors), all the others open it."""
    volume = make(LUKS1, SLOTS, free=[slot])
    others = rest(slot, slots=SLOTS)
    recording = volume.record(
        *volume.key_command("add", "--key-file", volume.key(others[0]), "--new-key-file", volume.key(OTHER))
    )
    check_all(recording, Promise(others, after=[OTHER], one_of_them=False), volume)


@pytest.mark.parametrize("slot", range(SLOTS))
def test_luks1_changed_key(slot: int, make: MakeVolume) -> None:
    """While any keyslot of a LUKS1 header is changed, by way of any other one, the old or the new secret opens it."""
    spare = (slot + 3) % SLOTS
    volume = make(LUKS1, SLOTS, free=[spare])
    recording = volume.record(
        *volume.key_command("change", "--key-file", volume.key(slot), "--new-key-file", volume.key(OTHER))
    )
    check_all(recording, Promise(rest(slot, spare, slots=SLOTS), before=[slot], after=[OTHER], dying=spare), volume)
    assert parse_header(recording.after["header.img"]).keyslot(slot) is not None


@pytest.mark.parametrize("slot", [0, 5, 6, 7])
def test_luks1_removed_key(slot: int, make: MakeVolume) -> None:
    """While a keyslot of a LUKS1 header is destroyed, all the others open it."""
    volume = make(LUKS1, SLOTS)
    recording = volume.record(*volume.key_command("remove", "--key-file", volume.key(slot)))
    check_all(recording, Promise(rest(slot, slots=SLOTS), before=[slot], one_of_them=False, dying=slot), volume)


def test_luks1_only_key_changed(make: MakeVolume) -> None:
    """The only secret of a LUKS1 header can be changed without a moment at which none opens it."""
    volume = make(LUKS1, 1)
    recording = volume.record(
        *volume.key_command("change", "--key-file", volume.key(0), "--new-key-file", volume.key(OTHER))
    )
    check_all(recording, Promise([], before=[0], after=[OTHER], dying=1), volume)


@pytest.mark.parametrize(("layout", "slot"), [(LUKS1, 0), (LUKS1, 6), (LUKS2, 3)], ids=["luks1", "luks1-6", "luks2"])
def test_key_changed_in_place(layout: Format, slot: int, make: MakeVolume) -> None:
    """
    Where all areas are in use, a key is changed only if that is asked for, and by one synced step.

    A crash in it may cost that keyslot and nothing else: the header is valid, and every other secret opens it.
    """
    volume = make(layout, SLOTS)
    before = volume.header.read_bytes()
    command = volume.key_command("change", "--key-file", volume.key(slot), "--new-key-file", volume.key(OTHER))
    refused = lukshdrfs(*command)
    assert refused.returncode in {1, 4}
    assert "--in-place" in refused.stderr
    assert volume.header.read_bytes() == before
    recording = volume.record(*command, "--in-place")
    others = rest(slot, slots=SLOTS)
    check_all(recording, Promise(others, before=[slot], after=[OTHER], one_of_them=False, dying=slot), volume)
    lost = [
        number
        for number, moment in enumerate(recording.moments)
        for state in moment.states(steps=4)
        if not {slot, OTHER} & set(keys_in(state["header.img"], [slot, OTHER]))
    ]
    assert set(lost) == {0}, "the old or the new key opens it before and after the first step"


@pytest.mark.parametrize("failing", [1, 2])
def test_key_that_storage_refuses_to_change_in_place(
    failing: int, make: MakeVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a write fails on the way, what was there is put back, and the old secret opens it."""
    volume = make(LUKS2, SLOTS)
    before = volume.header.read_bytes()
    syncs = itertools.count(1)

    def sync(_descriptor: int, what: str) -> None:
        if next(syncs) == failing:
            raise PayloadError(f"{what}: no", errno.EIO)

    with open_header(str(volume.header)) as file:
        slot = file.header.keyslot(3)
        assert slot is not None
        assert slot.kdf is not None
        new = NewKeyslot(slot.kdf, CipherSpec.parse(slot.area.encryption), slot.area.key_size)
        with SecretBytes.copy_of(secret(3)) as old, SecretBytes.copy_of(secret(OTHER)) as other:
            key = unlock(file.header, volume_digest(file.header), old, 3)
            edit = change_keyslot(file.header, 3, key.volume_key, other, new, in_place=True)
        assert edit.in_place
        monkeypatch.setattr(header_file, "sync_descriptor", sync)
        with pytest.raises(PayloadError, match="put back"):
            file.apply(edit)
    assert volume.header.read_bytes() == before


def test_luks1_uuid(make: MakeVolume) -> None:
    """A LUKS1 header has the old UUID or the new one, never a mixture."""
    volume = make(LUKS1, 2)
    new = "12345678-9abc-4def-8123-456789abcdef"
    recording = volume.record("header", "set", "--header", volume.header, "--uuid", new)
    check_all(recording, Promise([0, 1]), volume)
    old = parse_header(recording.before["header.img"]).uuid
    assert {parse_header(state["header.img"]).uuid for state in recording.states()} == {old, new}


SLOT_6 = 208 + 6 * 48
"""Where the entry of keyslot 6 is; 16 bytes further the second sector begins."""


def test_luks1_repair(make: MakeVolume, tmp_path: Path) -> None:
    """A repair that was cut off can be repeated, and then the header is what it would have been."""
    volume = make(LUKS1, 3)
    data = bytearray(volume.header.read_bytes())
    data[SLOT_6 + 40 : SLOT_6 + 44] = bytes(4)  # where the area is
    data[SLOT_6 + 14 : SLOT_6 + 16] = b"\x55\xaa"  # a partition table's signature
    data[72:78] = b"SHA256"
    volume.header.write_bytes(data)
    with pytest.raises(HeaderError):
        parse_header(bytes(data))

    recording = volume.record("header", "repair", "--header", volume.header)
    states = recording.states()
    assert len(states) == 4
    for number, state in enumerate(states):
        path = tmp_path / f"state{number}"
        path.write_bytes(state["header.img"])
        repair_header(str(path))
        assert path.read_bytes() == recording.after["header.img"]
    assert set(keys_in(recording.after["header.img"], [0, 1, 2])) == {0, 1, 2}
    assert opens_with_cryptsetup(volume.header, volume, 2)


# --- LUKS2 ------------------------------------------------------------------------------------------------------

COPY = 16 << 10


def _sound(_data: bytearray) -> None:
    """Leave both copies as they are."""


def _no_primary(data: bytearray) -> None:
    data[4096 + 20] ^= 1


def _no_secondary(data: bytearray) -> None:
    data[COPY + 4096 + 20] ^= 1


BEFORE: dict[str, Callable[[bytearray], None]] = {
    "sound": _sound,
    "primary damaged": _no_primary,
    "secondary damaged": _no_secondary,
}


@pytest.fixture(params=BEFORE)
def luks2(request: pytest.FixtureRequest, make: MakeVolume) -> Volume:
    """Return a LUKS2 header with three keyslots; one of its copies may be damaged."""
    return damaged(make(LUKS2, 3), request.param)


def damaged(volume: Volume, how: str) -> Volume:
    data = bytearray(volume.header.read_bytes())
    BEFORE[how](data)
    volume.header.write_bytes(data)
    return volume


def test_luks2_added_key(luks2: Volume) -> None:
    """While a keyslot is made in a LUKS2 header, whichever of its copies is sound, all the others open it."""
    recording = luks2.record(*luks2.key_command("add", "--key-file", luks2.key(1), "--new-key-file", luks2.key(OTHER)))
    check_all(recording, Promise([0, 1, 2], after=[OTHER], one_of_them=False), luks2)


def test_luks2_changed_key(luks2: Volume) -> None:
    """While a keyslot is changed in a LUKS2 header, the old or the new secret opens it."""
    recording = luks2.record(
        *luks2.key_command("change", "--key-file", luks2.key(1), "--new-key-file", luks2.key(OTHER))
    )
    check_all(recording, Promise([0, 2], before=[1], after=[OTHER]), luks2)


def test_luks2_removed_key(luks2: Volume) -> None:
    """While a keyslot is destroyed in a LUKS2 header, all the others open it."""
    recording = luks2.record(*luks2.key_command("remove", "--key-file", luks2.key(1)))
    check_all(recording, Promise([0, 2], before=[1], one_of_them=False, dying=1), luks2)


def test_luks2_priority_and_names(luks2: Volume) -> None:
    """Priority, label and UUID are the old or the new ones, and every secret opens the header meanwhile."""
    new = "12345678-9abc-4def-8123-456789abcdef"
    recording = luks2.record("key", "change", "--header", luks2.header, "--key-slot", "1", "--priority", "prefer")
    check_all(recording, Promise([0, 1, 2]), luks2)
    recording = luks2.record("header", "set", "--header", luks2.header, "--label", "new", "--uuid", new)
    check_all(recording, Promise([0, 1, 2]), luks2)
    old = parse_header(recording.before["header.img"])
    headers = [parse_header(state["header.img"]) for state in recording.states()]
    assert {(header.label, header.uuid) for header in headers} == {("", old.uuid), ("new", new)}


@pytest.mark.parametrize("how", list(BEFORE)[1:])
def test_luks2_repair(how: str, make: MakeVolume) -> None:
    """While a copy of a LUKS2 header is repaired, every secret opens it."""
    volume = damaged(make(LUKS2, 3), how)
    recording = volume.record("header", "repair", "--header", volume.header)
    check_all(recording, Promise([0, 1, 2]), volume)
    assert not parse_header(recording.after["header.img"]).warnings


def test_edit_after_a_crash(make: MakeVolume) -> None:
    """An edit can be cut off, the next one too: what the first left is as good a start as any."""
    volume = make(LUKS2, 2)
    change = volume.key_command("change", "--key-file", volume.key(1), "--new-key-file", volume.key(OTHER))
    states = [state["header.img"] for state in volume.record(*change).states(steps=1)]
    older = [data for data in states if "older" in str(parse_header(data).warnings)]
    assert older
    for data in older[:2]:
        volume.header.write_bytes(data)
        assert set(keys_in(data, [0, 1, OTHER])) == {0, OTHER}
        recording = volume.record(
            *volume.key_command("change", "--key-file", volume.key(OTHER), "--new-key-file", volume.key("third"))
        )
        check_all(recording, Promise([0], before=[OTHER], after=["third"]), volume)


# --- any order --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, masters: Callable[[Format, int], Path]
) -> list[tuple[Recording, bytes]]:
    """Return changes of keyslot 1 or 6, recorded once, and the volume keys."""
    require(["root", "strace", "cryptsetup"])
    found = []
    for layout, slots, how in ((LUKS1, 2, "sound"), (LUKS1, 7, "sound"), *((LUKS2, 2, how) for how in BEFORE)):
        folder = tmp_path_factory.mktemp("recorded")
        volume = Volume(folder / "volume", folder)
        volume.folder.mkdir()
        shutil.copy(masters(layout, slots), volume.header)
        volume = damaged(volume, how)
        recording = volume.record(
            *volume.key_command("change", "--key-file", volume.key(slots - 1), "--new-key-file", volume.key(OTHER))
        )
        (volume_key,) = keys_in(recording.before["header.img"], [0]).values()
        found.append((recording, volume_key))
    return found


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_of_what_is_under_way(data: st.DataObject, recorded: list[tuple[Recording, bytes]]) -> None:
    """Whichever sectors of what has not been synced are on the storage, the old or the new secret opens the header."""
    number = data.draw(st.integers(0, len(recorded) - 1))
    recording, volume_key = recorded[number]
    moment = data.draw(st.sampled_from(recording.moments))
    mask = data.draw(st.integers(0, (1 << len(moment.writes)) - 1))
    state = moment.after(mask, 0)["header.img"]
    changed, others, spare = (6, [0, 1, 2, 3, 4, 5], 7) if number == 1 else (1, [0], 2)
    Promise(others, before=[changed], after=[OTHER], dying=spare if number < 2 else None).check(state, volume_key)
    _seen.clear()


# --- headers that are replaced as a whole -----------------------------------------------------------------------


def check_replaced(recording: Recording, promise: Promise, volume: Volume) -> None:
    """Check that there is a whole header, the old or the new one, at every moment."""
    (volume_key,) = set(keys_in(recording.before["header.img"], promise.names).values())
    states = recording.states(steps=1)
    assert {state["header.img"] for state in states} == {
        recording.before["header.img"],
        recording.after["header.img"],
    }
    for data in (recording.before["header.img"], recording.after["header.img"]):
        promise.check(data, volume_key)


def test_restored_file(make: MakeVolume) -> None:
    """A detached header that is restored is the old or the new one, and before it goes a whole copy of it is kept."""
    volume = make(LUKS2, 2)
    backup = volume.keys / "backup.img"
    assert lukshdrfs("header", "backup", "--header", volume.header, backup).returncode == 0
    change = volume.key_command("change", "--key-file", volume.key(1), "--new-key-file", volume.key(OTHER))
    assert lukshdrfs(*change).returncode == 0

    recording = volume.record("header", "restore", "--header", volume.header, backup)
    check_replaced(recording, Promise([0], before=[OTHER], after=[1]), volume)
    old = recording.before["header.img"]
    for state in recording.states():
        assert state["header.img"] == old or state.get("header.img.before") == old


@pytest.mark.parametrize("to", ["luks1", "luks2"])
def test_converted_file(to: str, make: MakeVolume) -> None:
    """A detached header that is converted is the old or the new one."""
    volume = make(LUKS1 if to == "luks2" else LUKS2, 2)
    recording = volume.record("header", "convert", "--header", volume.header, "--type", to)
    check_replaced(recording, Promise([0, 1]), volume)
    assert parse_header(recording.after["header.img"]).type == to


@pytest.mark.parametrize("command", ["restore", "convert"])
def test_attached_header_is_kept_first(command: str, make: MakeVolume, tmp_path: Path) -> None:
    """Where a header is overwritten in place, there is a whole copy of it beside from before the first write on."""
    volume = make(LUKS1, 1)
    payload, backup = volume.folder / "payload.img", tmp_path / "backup.img"
    volume.header.unlink()
    create = ["create", "--type", "luks1", "--key-size", "256", "--size", "4M", *CHEAP]
    assert lukshdrfs(*create, "--key-file", volume.key(0), payload).returncode == 0
    assert lukshdrfs("header", "backup", payload, backup).returncode == 0
    if command == "restore":
        change: list[Argument] = ["--key-file", volume.key(0), "--new-key-file", volume.key(OTHER), payload]
        assert lukshdrfs("key", "change", *CHEAP, *change).returncode == 0
        recording = volume.record("header", "restore", payload, backup)
    else:
        recording = volume.record("header", "convert", "--type", "luks2", payload)

    before = recording.before["payload.img"]
    header = parse_header(before[: 2 * MIB])
    assert recording.after["payload.img"] != before
    for state in recording.states():
        kept = state.get("payload.img.before", b"")
        assert state["payload.img"] == before or (before.startswith(kept) and len(kept) >= len(header.area))
        assert state["payload.img"][2 * MIB :] == before[2 * MIB :]


def test_new_header_file_appears_whole(make: MakeVolume, tmp_path: Path) -> None:
    """A header file that is created, backed up or made by a conversion is whole when its name is there."""
    volume = make(LUKS2, 1)
    new = volume.folder / "new.img"
    create = ["create", *CHEAP, "--luks2-keyslots-size", "1M", "--key-file"]
    commands: list[list[Argument]] = [
        [*create, volume.key(0), "--header", new, volume.payload],
        ["header", "backup", "--header", volume.header, new],
        ["header", "convert", "--header", volume.header, "--type", "luks1", "--output", new],
    ]
    for arguments in commands:
        recording = volume.record(*arguments)
        states = recording.states()
        assert {state.get("new.img") for state in states} == {None, recording.after["new.img"]}
        assert {state["header.img"] for state in states} == {recording.before["header.img"]}
        assert set(keys_in(recording.after["new.img"], [0])) == {0}
        new.unlink()


# --- killed for real --------------------------------------------------------------------------------------------

ROUNDS = 30

EDITOR = """
import itertools, os, sys
from lukshdrfs.cli import main

header, *keys = sys.argv[1:]
commands = [
    ["key", "change", "--key-file", keys[0], "--new-key-file", keys[1]],
    ["key", "add", "--key-file", keys[1], "--new-key-file", keys[0]],
    ["key", "remove", "--key-file", keys[1]],
]
for _ in sys.stdin:
    editor = os.fork()
    if editor == 0:
        for command in itertools.cycle(commands):
            cheap = [] if "remove" in command else ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
            main([*command[:2], "--header", header, "-q", *cheap, *command[2:]])
    print(editor, flush=True)
    os.waitpid(editor, 0)
    print("ended", flush=True)
"""
"""Edits a header without end, in a process of its own for each line that it reads."""


@pytest.mark.parametrize("layout", [LUKS1, LUKS2], ids=lambda layout: layout.type)
def test_killed_at_random(layout: Format, make: MakeVolume) -> None:
    """SIGKILL at any moment of changing, adding and removing keys leaves a header that opens."""
    volume = make(layout, 2)
    keys = [volume.key(1), volume.key(OTHER)]
    chance = random.Random()
    with subprocess.Popen(
        [sys.executable, "-c", EDITOR, volume.header, *keys], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as editors:
        assert editors.stdin is not None
        assert editors.stdout is not None
        seen = set()
        for _ in range(ROUNDS // 2):
            editors.stdin.write(b"\n")
            editors.stdin.flush()
            editor = int(editors.stdout.readline())
            time.sleep(chance.uniform(0.005, 0.12))
            kill(editor)
            assert editors.stdout.readline() == b"ended\n"
            data = volume.header.read_bytes()
            seen.add(data)
            found = keys_in(data, [0, 1, OTHER])
            assert 0 in found
            assert len(found) > 1
            assert len(set(found.values())) == 1
        editors.stdin.close()
    assert len(seen) > ROUNDS // 4, "hardly any edit took place"
    assert sorted(path.name for path in volume.folder.iterdir()) == ["header.img"]
    assert opens_with_cryptsetup(volume.header, volume, 0)
