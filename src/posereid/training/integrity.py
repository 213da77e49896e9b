"""Whether a checkpoint's folder holds what was written there.

``checkpoint.json`` lists the size and the SHA-256 of every file beside it, and the SHA-256 of its own content as
JSON with sorted keys, so that a changed byte anywhere in the folder is noticed. Format 1, of posereid before that,
has neither: it is still read, as it is.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from posereid.files import write_atomically
from posereid.messages import shown

FORMAT = 2
ABOUT_FILE = "checkpoint.json"
RESUME_FILE = "resume.pt"
_PART = re.compile(r"\w+", re.ASCII)
_FILE = re.compile(r"\w[\w.-]*", re.ASCII)
# Ten million identities take less.
_LARGEST_ABOUT = 2**27


class DamageError(Exception):
    """What is wrong with a checkpoint's folder, in half a sentence that begins with the file."""


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``checkpoint.json`` with the fields of ``about``, the format, and the digests of what is in ``folder``."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in folder.iterdir()}
    content = {**about, "format": FORMAT, "files": dict(sorted(files.items()))}
    content["sha256"] = _content_digest(content)
    write_atomically(folder / ABOUT_FILE, json.dumps(content, indent=1))


def read_verified(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``checkpoint.json``, their types checked, once every file is found as it was written.

    ``step`` is a whole number from 0, ``stage`` and ``training_set`` are texts, ``identities`` is a list of whole
    numbers; ``recipe`` is there, unchecked. Raises DamageError.
    """
    try:
        about = _read_about(folder / ABOUT_FILE)
        _check_fields(about)
        files = _listed_files(about)
    except FileNotFoundError:
        raise DamageError(f"{ABOUT_FILE} is missing") from None
    except KeyError as error:
        raise DamageError(f"{ABOUT_FILE} lacks {error}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamageError(f"{ABOUT_FILE} cannot be used: {error}") from None
    for name, (size, digest) in files.items():
        _verify_file(folder / name, size, digest)
    return about


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits; one that has not changed since is not read again."""
    status = path.stat()
    return _digest_as_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest_as_of(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _content_digest(about: Mapping[str, Any]) -> str:
    content = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_about(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_ABOUT:
        raise ValueError(f"it has more than {_LARGEST_ABOUT} bytes")
    about = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise ValueError("it is not a JSON object")
    # A format 1 that lists files is a damaged format 2.
    if about["format"] not in (1, FORMAT) or (about["format"] == 1 and {"files", "sha256"} & about.keys()):
        raise ValueError(f"its format is {shown(about['format'])}, this version reads 1 and {FORMAT}")
    if about["format"] == FORMAT and about["sha256"] != _content_digest(about):
        raise ValueError("its content is not what was written")
    return about


def _check_fields(about: Mapping[str, Any]) -> None:
    if type(about["step"]) is not int or about["step"] < 0:
        raise ValueError(f"its step is {shown(about['step'])}, not a whole number from 0")
    for name in ("stage", "training_set"):
        if not isinstance(about[name], str):
            raise ValueError(f"its {name} is {shown(about[name])}, not a text")
    identities = about["identities"]
    if not isinstance(identities, list) or not all(type(identity) is int for identity in identities):
        raise ValueError(f"its identities are {shown(identities)}, not a list of whole numbers")
    if "recipe" not in about:
        raise KeyError("recipe")


def _listed_files(about: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file that belongs to a checkpoint; none in format 1.

    Raises ValueError for names that could lead out of the folder.
    """
    parts = about["parts"]
    if not isinstance(parts, list) or not all(isinstance(part, str) and _PART.fullmatch(part) for part in parts):
        raise ValueError(f"its parts are {shown(parts)}, not a list of plain names")
    if about["format"] == 1:
        return {}
    files = about["files"]
    if not isinstance(files, dict):
        raise ValueError(f"its files are {shown(files)}, not a JSON object")
    for name in files:
        if not _FILE.fullmatch(name):
            raise ValueError(f"it lists a file {shown(name)}, not a plain name")
    if absent := {RESUME_FILE, *(f"{part}.safetensors" for part in parts)} - files.keys():
        raise ValueError(f"its files lack {min(absent)}")
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def _verify_file(path: Path, size: int, digest: str) -> None:
    try:
        if not path.is_file():
            raise DamageError(f"{path.name} is missing")
        if (found := path.stat().st_size) != size:
            raise DamageError(f"{path.name} has {found} bytes instead of {shown(size)}")
        if file_digest(path) != digest:
            raise DamageError(f"{path.name} is not what was written")
    except OSError as error:
        raise DamageError(f"{path.name} cannot be read: {error.strerror}") from None
