"""A payload in an image format: an export of an engine that runs for it alone."""

from __future__ import annotations

import threading
from typing import Self

from lukshdrfs.payload.nbd.payload import PATIENCE_S, NbdPayload
from lukshdrfs.payload.qemu.engine import Engine
from lukshdrfs.payload.qemu.image_creation import write_empty_image
from lukshdrfs.payload.qemu.image_file import ImageFile


class EnginePayload(NbdPayload):
    """What `lukshdrfs.payload.qemu.engine` exports. The image is locked by the engine."""

    _engine: Engine | None = None
    _closed = False

    def __init__(self, client: object, name: str, kept: object, *, read_only: bool) -> None:
        """See NbdPayload."""
        super().__init__(client, name, kept, read_only=read_only)
        self._client_in_use = threading.Lock()

    @classmethod
    def start(
        cls, name: str, image_format: str, *, read_only: bool, write_through: bool = False,
        patience_s: float = PATIENCE_S, backing_chain: bool = False,
    ) -> Self:  # fmt: skip
        """
        Open an image (its path), start an engine for it and connect to it; otherwise as `NbdPayload.open`.

        With `backing_chain`, it may have backing files, which are opened as the owner of the image could.
        Raises DeviceError if it cannot be opened, InUse if somebody else has it.
        """
        image = ImageFile.open(name, read_only=read_only)
        return cls._serve(
            image, image_format, write_through=write_through, patience_s=patience_s, backing_chain=backing_chain
        )

    @classmethod
    def create(cls, name: str, image_format: str, size: int) -> Self:
        """
        Make a thin image of `size` bytes in a new file, and open it as `start` does.

        Raises DeviceError, also if there is something of that name; nothing is left behind then.
        """
        image = ImageFile.create(name)
        try:
            write_empty_image(image, image_format, size)
            return cls._serve(image, image_format, write_through=False, patience_s=PATIENCE_S, backing_chain=False)
        except BaseException:
            image.remove()
            image.close()
            raise

    @classmethod
    def _serve(
        cls, image: ImageFile, image_format: str, *, write_through: bool, patience_s: float, backing_chain: bool
    ) -> Self:
        engine = Engine(image, image_format, backing_chain=backing_chain)
        try:
            payload = cls.open(
                engine.address, read_only=image.read_only, write_through=write_through, name=image.name,
                patience_s=patience_s,
            )  # fmt: skip
        except BaseException:
            engine.close()
            raise
        payload.take_over(engine)
        return payload

    def take_over(self, engine: Engine) -> None:
        """Let this payload own its engine, which is started again if it dies."""
        self._engine = engine
        engine.keep_running(self._fail_at_once)

    def _fail_at_once(self) -> None:
        """Let nobody wait for an engine that will not be back."""
        with self._client_in_use:
            if not self._closed:
                self.fail_waiting()

    @property
    def image(self) -> ImageFile:
        """The file or device that the image is in, as it is held here."""
        assert self._engine is not None
        return self._engine.image

    def close(self) -> None:
        """See Payload. The engine ends."""
        with self._client_in_use:
            self._closed = True
        try:
            super().close()
        finally:
            if self._engine:
                self._engine.close()
