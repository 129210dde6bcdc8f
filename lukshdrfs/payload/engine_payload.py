"""A payload in an image format: an export of an engine that runs for it alone."""

from __future__ import annotations

from typing import Self

from lukshdrfs.payload.engine import Engine
from lukshdrfs.payload.nbd import PATIENCE_S, NbdPayload


class EnginePayload(NbdPayload):
    """What `lukshdrfs.payload.engine` exports. The image is locked by the engine."""

    _engine: Engine | None = None

    @classmethod
    def start(
        cls, name: str, image_format: str, *, read_only: bool, write_through: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> Self:  # fmt: skip
        """
        Start an engine for an image (its path) and connect to it; otherwise as `NbdPayload.open`.

        Raises DeviceError if it cannot be opened, InUse if somebody else has it, UsageError for an unknown format.
        """
        engine = Engine(name, image_format, read_only=read_only)
        try:
            payload = cls.open(
                engine.address, read_only=read_only, write_through=write_through, name=name, patience_s=patience_s
            )
        except BaseException:
            engine.close()
            raise
        payload.take_over(engine)
        return payload

    def take_over(self, engine: Engine) -> None:
        """Let this payload own its engine, which is started again if it dies."""
        self._engine = engine
        engine.keep_running()

    def close(self) -> None:
        """See Payload. The engine ends."""
        try:
            super().close()
        finally:
            if self._engine:
                self._engine.close()
