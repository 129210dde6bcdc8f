"""Whatever comes of an attempt, no memory keeps a key that nobody was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from support.edited import KEY, adding, after, empty, new_slot
from support.memory_payload import MemoryPayload

from lukshdrfs.errors import KeyslotError, LukshdrfsError, NoUsableKeyslot, WrongKey
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.material import seal, verify_digest
from lukshdrfs.luks.keys.unlock import accept_volume_key, unlock
from lukshdrfs.luks.model import Header
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume.opening import LockedVolume


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[SecretBytes]:
    """Return all secrets that are made from now on."""
    made: list[SecretBytes] = []
    init = SecretBytes.__init__

    def noting(self: SecretBytes, size: int) -> None:
        init(self, size)
        made.append(self)

    monkeypatch.setattr(SecretBytes, "__init__", noting)
    return made


def kept(secrets: list[SecretBytes], *given: SecretBytes) -> list[int]:
    """Return the sizes of secrets that are still there, without those that the caller has been given."""
    return [len(secret) for secret in secrets if len(secret) and not any(secret is each for each in given)]


@pytest.fixture(scope="module")
def header() -> Header:
    """Return a header with two keyslots of the volume key, and one whose digest is another's."""
    return parse_header(after(empty(2, slots=3), adding(b"one"), adding(b"two"), adding(b"unbound")))


def unbound(header: Header) -> Header:
    """Have the third keyslot be bound to a digest of no segment."""
    digest = dataclasses.replace(header.digests[0], keyslots=frozenset({0, 1}))
    other = dataclasses.replace(digest, id=1, keyslots=frozenset({2}), segments=frozenset())
    return dataclasses.replace(header, digests=(digest, other))


@pytest.mark.parametrize(
    ("passphrase", "change", "error"),
    [
        (b"wrong", lambda header: header, WrongKey),
        (b"one", lambda h: dataclasses.replace(h, digests=(dataclasses.replace(h.digests[0], digest=b"x" * 32),)),
         WrongKey),
        (b"one", lambda h: dataclasses.replace(h, digests=(dataclasses.replace(h.digests[0], problem="bad"),)),
         KeyslotError),
        (b"one", lambda h: dataclasses.replace(h, digests=(dataclasses.replace(h.digests[0], unsupported="odd"),)),
         KeyslotError),
        (b"one", lambda h: dataclasses.replace(h, digests=(dataclasses.replace(h.digests[0], iterations=0),)),
         KeyslotError),
        (b"unbound", unbound, NoUsableKeyslot),
        (b"wrong", unbound, WrongKey),
    ],
)  # fmt: skip
def test_a_passphrase_that_opens_nothing_leaves_nothing(
    header: Header, secrets: list[SecretBytes], passphrase: bytes, change: Callable[[Header], Header],
    error: type[LukshdrfsError],
) -> None:  # fmt: skip
    """Area keys, key material, digests and what came out of the area are all wiped, not only let go."""
    changed = change(header)
    with SecretBytes.copy_of(passphrase) as secret:
        with pytest.raises(error):
            unlock(changed, changed.digests[0], secret)
        assert len(secrets) > 2
        assert bytes(secret.view) == passphrase
        assert kept(secrets, secret) == []


def test_a_passphrase_that_opens_leaves_the_volume_key_alone(header: Header, secrets: list[SecretBytes]) -> None:
    """What the caller is given is all that there is."""
    with SecretBytes.copy_of(b"two") as secret:
        found = unlock(header, header.digests[0], secret)
        assert bytes(found.volume_key.view) == KEY
        assert kept(secrets, secret, found.volume_key) == []
    with SecretBytes.copy_of(KEY) as key:
        accepted = accept_volume_key(header, header.digests[0], key)
        assert accepted.volume_key is not key
        assert kept(secrets, key, found.volume_key, accepted.volume_key) == []
    assert bytes(accepted.volume_key.view) == KEY, "a copy, which the given one's end does not touch"


def test_a_keyslot_that_is_made_leaves_nothing(secrets: list[SecretBytes]) -> None:
    """The key material is handed on encrypted; the one that was not is wiped."""
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(b"x") as secret:
        seal(key, secret, new_slot())
        assert kept(secrets, key, secret) == []
        assert (bytes(key.view), bytes(secret.view)) == (KEY, b"x")


@pytest.mark.parametrize("keyslot", [None, 2])
def test_a_volume_has_its_own_copy_of_the_key(header: Header, secrets: list[SecretBytes], keyslot: int | None) -> None:
    """Opened, there is the cipher's; closed, there is none."""
    locked = LockedVolume(header, MemoryPayload(1 << 20), detached=True)
    with SecretBytes.copy_of(b"unbound") as secret:
        volume = locked.unlock(secret, keyslot)
        assert kept(secrets, secret) == [len(KEY)]
        volume.close()
        assert kept(secrets, secret) == []


def test_a_digest_of_a_key_is_wiped(header: Header, secrets: list[SecretBytes]) -> None:
    """What PBKDF2 made of the key to compare it is not kept, whether it was the right one or not."""
    for content in (KEY, bytes(32)):
        with SecretBytes.copy_of(content) as key:
            if content == KEY:
                verify_digest(header.digests[0], key, KdfLimits())
            else:
                with pytest.raises(WrongKey):
                    verify_digest(header.digests[0], key, KdfLimits())
            assert kept(secrets, key) == []
