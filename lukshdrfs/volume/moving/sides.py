"""Both sides of a conversion: how the data were and how they will be, with the keys to either."""

from __future__ import annotations

from typing import Self

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import DeviceError, HeaderError
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Side, Stage
from lukshdrfs.luks.model import Segment
from lukshdrfs.payload import Payload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR, round_down


class Sides:
    """A payload and the ciphers of both sides of the volume that is on it. A context manager that wipes the keys."""

    def __init__(self, payload: Payload, old: SectorCipher | None, new: SectorCipher | None, shift: int = 0) -> None:
        """
        Put them together; the ciphers are this object's to close, None where the data were or will be plain.

        `shift` is how many bytes before the volume are on the payload that the header does not count.
        """
        self.payload = payload
        self.old = old
        self.new = new
        self.shift = shift

    @classmethod
    def opened(
        cls,
        payload: Payload,
        state: ReencryptionState,
        old_key: SecretBytes | None,
        new_key: SecretBytes | None,
        shift: int = 0,
    ) -> Self:
        """Make the ciphers. The keys stay the caller's. Raises UnsupportedFeature."""
        lost = old_key is None and state.stage is Stage.FINISHED  # and not needed any more
        old = None if lost else _cipher(state.previous, old_key)
        try:
            return cls(payload, old, _cipher(state.final, new_key), shift)
        except BaseException:
            if old is not None:
                old.close()
            raise

    def cipher(self, side: Side) -> SectorCipher | None:
        """Return what the data of one side are encrypted with."""
        return self.old if side in (Side.OLD, Side.MOVED) else self.new

    def place(self, state: ReencryptionState, side: Side, start: int) -> int:
        """Return the byte of the payload where the plaintext from byte `start` on is, or will be."""
        return state.place_of(side, start) + self.shift

    def reencrypt(self, state: ReencryptionState, data: memoryview, start: int) -> None:
        """Turn ciphertext of the old side into that of the new one; `data` are the plaintext's from byte `start` on."""
        if self.old is not None:
            self.old.decrypt(data, state.previous.iv_tweak + start // SECTOR)
        if self.new is not None:
            self.new.encrypt(data, state.final.iv_tweak + start // SECTOR)

    def close(self) -> None:
        """Wipe the keys. May be called again."""
        for cipher in (self.old, self.new):
            if cipher is not None:
                cipher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cipher(segment: Segment, key: SecretBytes | None) -> SectorCipher | None:
    if segment.type != "crypt":
        return None
    if key is None:
        raise HeaderError("a key of the volume is missing")
    return SectorCipher(CipherSpec.parse(segment.encryption), key, segment.sector_size)


def plaintext_size(state: ReencryptionState, payload_size: int, shift: int = 0) -> int:
    """
    Return how many bytes of plaintext a half-converted volume has on a payload, which it must fit.

    Raises DeviceError if the payload is too short, or is no whole sectors of both sides.
    """
    last = state.parts[-1]
    end = max((_end_on_payload(state, part.side, part.start, part.size) for part in state.parts), default=0) + shift
    if end > payload_size:
        raise DeviceError(f"the payload has {payload_size} bytes; the half-converted volume needs {end}")
    if last.size is not None:
        return last.start + last.size
    there = payload_size - state.place_of(last.side, last.start) - shift
    if last.side is Side.NEW:
        there -= state.protection.shift  # the end of a payload whose data are shifted is not the volume's yet
    tail = there % state.sector_size
    if tail and (there % SECTOR or state.sector_size > SECTOR):
        raise DeviceError(
            f"the payload has {payload_size} bytes: the data at its end are no whole sectors of {state.sector_size}, "
            "and would be lost by converting them"
        )
    return last.start + round_down(there, state.sector_size)


def _end_on_payload(state: ReencryptionState, side: Side, start: int, size: int | None) -> int:
    return state.place_of(side, start) + (size if size is not None else state.sector_size)
