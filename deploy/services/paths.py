"""Paths that servers cannot take, and what they get instead.

Knows which characters a shell, a Java properties file and a search path misread. Does not know
which server is given what.

Triton's Python backend starts its stub by `bash -c` with unquoted paths, so a blank splits them
and other characters could run commands: it is given symbolic links in the folder for temporary
files.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from deploy.services.process import ServiceUnavailable

_SAFE = re.compile(r"[A-Za-z0-9_./+@%=-]*")
_SEPARATORS = {":": "a colon", ",": "a comma", "\\": "a backslash", "\n": "a line break"}


def is_shell_safe(path: Path) -> bool:
    """Whether a shell reads the path, unquoted, as one word."""
    return _SAFE.fullmatch(str(path)) is not None


def link_folder(key: str) -> Path:
    """Where the links of one server lie; `key` is unique among the user's servers.

    Raises:
        ServiceUnavailable: the folder for temporary files has a name that a shell splits.
    """
    folder = Path(tempfile.gettempdir()).resolve() / f"tidemill-{os.getuid()}-{key}"
    if not is_shell_safe(folder):
        raise ServiceUnavailable(
            f"Triton's Python backend cannot use paths with blanks or other signs, such as {folder}: "
            "set TMPDIR to a folder without them, such as /tmp"
        )
    return folder


def shell_safe(path: Path, name: str, key: str) -> Path:
    """The path, or a link `name` to it that a shell reads as one word."""
    path = path.resolve()
    if is_shell_safe(path):
        return path
    folder = link_folder(key)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceUnavailable(f"{folder} belongs to another user: remove it, or set TMPDIR")
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return link


def remove_links(key: str) -> None:
    shutil.rmtree(Path(tempfile.gettempdir()).resolve() / f"tidemill-{os.getuid()}-{key}", True)


def refuse_separators(path: Path, what: str) -> None:
    """Raises ServiceUnavailable if the path has a character that separates paths in some server's
    settings, or is not UTF-8."""
    text = str(path)
    found = next((name for sign, name in _SEPARATORS.items() if sign in text), "")
    try:
        text.encode()
    except UnicodeEncodeError:
        found, text = "bytes that are not UTF-8", ascii(text)
    if found:
        raise ServiceUnavailable(
            f"{what} is {text}, and the servers cannot use a path with {found}: choose another "
            "folder (TIDEMILL_HOME sets the home)"
        )
