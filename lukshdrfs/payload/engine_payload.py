"""A payload that an engine opens: a file like any other, until the engine ends."""

from __future__ import annotations

from typing import Self

from lukshdrfs.payload.engine import Engine
from lukshdrfs.payload.file import FilePayload


class EnginePayload(FilePayload):
    """What `lukshdrfs.payload.engine` exports. The image is locked by the engine; ours would lock the export alone."""

    _engine: Engine | None = None

    @classmethod
    def start(cls, name: str, image_format: str, *, read_only: bool, write_through: bool = False) -> Self:
        """
        Start an engine for a payload (a path or an address) and open what it exports.

        Raises DeviceError if it cannot be opened, InUse if somebody else has it, UsageError for an unknown format.
        """
        engine = Engine(name, image_format, read_only=read_only)
        try:
            payload = cls.open(engine.path, read_only=read_only, write_through=write_through, locked=False)
        except BaseException:
            engine.close()
            raise
        payload.take_over(engine, name)
        return payload

    def take_over(self, engine: Engine, name: str) -> None:
        """Let this payload own its engine, and be called what the user calls it."""
        self._engine, self._name = engine, name

    @property
    def path(self) -> str:
        """Where the content lies, raw, as long as the payload is open."""
        return str(self._engine.path) if self._engine else self._name

    def close(self) -> None:
        """See Payload. The engine flushes and ends."""
        try:
            super().close()
        finally:
            if self._engine:
                self._engine.close()
