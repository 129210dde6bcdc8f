"""What the package promises: its names, their documentation, its exit codes."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Iterator
from typing import get_type_hints

import pytest

import lukshdrfs
from lukshdrfs import errors

NAMES = {
    "DeviceError", "HeaderError", "HeaderPin", "InUse", "KdfLimits", "KeyslotError", "LukshdrfsError",
    "NoHeader", "NoUsableKeyslot", "OutOfMemory", "PayloadError", "ReadOnlyError", "UnsupportedFeature", "UsageError",
    "Volume",
    "WrongKey", "__version__", "open_volume",
}  # fmt: skip

EXIT_CODES = {
    "LukshdrfsError": (1, errno.EIO),
    "UsageError": (1, errno.EINVAL),
    "NoHeader": (4, errno.EIO),
    "NoUsableKeyslot": (1, errno.EACCES),
    "WrongKey": (2, errno.EACCES),
    "OutOfMemory": (3, errno.ENOMEM),
    "DeviceError": (4, errno.EIO),
    "PayloadError": (4, errno.EIO),
    "ReadOnlyError": (4, errno.EROFS),
    "HeaderError": (4, errno.EIO),
    "KeyslotError": (4, errno.EIO),
    "UnsupportedFeature": (4, errno.EIO),
    "InUse": (5, errno.EBUSY),
}
PUBLIC = sorted(NAMES - {"__version__"})


def test_the_public_names_are_these() -> None:
    """A name is added to the package, or taken away, on purpose."""
    assert set(lukshdrfs.__all__) == NAMES
    assert list(lukshdrfs.__all__) == sorted(lukshdrfs.__all__)


def members(owner: object) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties of a class of ours."""
    for name, member in vars(owner).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod))):
            yield name, member


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    """Each public name, and each public method of it, has a docstring of its own."""
    found = getattr(lukshdrfs, name)
    assert found.__doc__
    if inspect.isclass(found):
        for member_name, member in members(found):
            assert getattr(member, "__doc__", None), f"{name}.{member_name}"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_types(name: str) -> None:
    """Each parameter and result of the public functions and methods has a type."""
    found = getattr(lukshdrfs, name)
    functions = (
        [found]
        if inspect.isfunction(found)
        else [member for _, member in inspect.getmembers(found, inspect.isfunction)]
    )
    for function in functions:
        if function.__name__.startswith("_") and function.__name__ != "__init__":
            continue
        hints = get_type_hints(function)
        for parameter in list(inspect.signature(function).parameters.values()):
            assert parameter.name in ("self", "exc_info", *hints), f"{function.__qualname__}: {parameter.name}"


@pytest.mark.parametrize("name", EXIT_CODES)
def test_exit_codes_are_cryptsetups(name: str) -> None:
    """Each error has the exit code that cryptsetup ends with in its place, and an errno for requests that meet it."""
    error = getattr(errors, name)

    assert (error.exit_code, error.errno) == EXIT_CODES[name]
    assert issubclass(error, errors.LukshdrfsError)
    assert getattr(lukshdrfs, name) is error


def test_no_error_is_left_out() -> None:
    """Every error class is public, has an exit code here, and stands in the tree of the module's docstring."""
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    documented = dict(re.findall(r"^[ *+-]*(\w+) \((\d)\)", errors.__doc__ or "", re.MULTILINE))

    assert classes == set(EXIT_CODES)
    assert documented == {name: str(code) for name, (code, _) in EXIT_CODES.items()}


def test_wrong_passphrase_bad_header_and_bug_are_three_things() -> None:
    """A wrong key is no header error, a damaged keyslot is one, and neither is a Python error."""
    assert not issubclass(errors.WrongKey, errors.HeaderError)
    assert issubclass(errors.KeyslotError, errors.HeaderError)
    assert not issubclass(errors.LukshdrfsError, (OSError, ValueError))


def test_a_payload_error_carries_the_storages_errno() -> None:
    """What the storage answered is in the error; without an answer it is EIO."""
    assert errors.PayloadError("full", errno.ENOSPC).errno == errno.ENOSPC
    assert errors.PayloadError("bad").errno == errno.EIO
    assert errors.PayloadError.errno == errno.EIO, "one error's errno is not another's"


def test_the_version_is_one() -> None:
    """The version has three numbers."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", lukshdrfs.__version__)
