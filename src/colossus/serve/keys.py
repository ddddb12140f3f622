"""API keys: a file of ``name sha256hex`` lines, so that who reads the file has no key."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from pathlib import Path

from colossus.spec.errors import Problem, SpecError

_PREFIX = "sk-colossus-"
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY_S = 1.0


def hashed(key: str) -> str:
    """What the file holds of a key. Plain SHA-256 is enough: a key has 256 random bits, and no dictionary holds it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key(name: str, file: Path) -> str:
    """Makes a key, appends its line to ``file`` (made for its owner alone), and returns it; it cannot be had again."""
    if not _NAME.fullmatch(name):
        raise SpecError("--new-key", [Problem(path="NAME", value=repr(name), rule="has 1 to 64 letters, digits, or . _ @ -")])
    key = _PREFIX + secrets.token_urlsafe(32)
    try:
        if file.exists() and name in dict(read_keys(file)):
            raise SpecError(str(file), [Problem(path="NAME", value=repr(name), rule="has a key already", hint="delete its line to revoke it")])
        _append(file, f"{name} {hashed(key)}\n")
    except OSError as error:
        hint = f"make its folder: mkdir -p {file.parent}" if isinstance(error, FileNotFoundError) else None
        raise SpecError("--new-key", [Problem(path="FILE", value=str(file), rule=str(error.strerror or error), hint=hint)]) from error
    return key


def _append(file: Path, line: str) -> None:
    if not file.exists():
        file.touch(mode=0o600)
    text = file.read_text()
    begin = "\n" if text and not text.endswith("\n") else ""
    with file.open("a") as out:
        out.write(begin + line)


def read_keys(file: Path) -> list[tuple[str, str]]:
    """(name, hash) of each line. Empty lines and those that begin with # say nothing. All problems at once."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        rule = str(error.strerror) if isinstance(error, OSError) else "is no text"
        problem = Problem(path="--api-keys", value=str(file), rule=rule, hint=f"make one: colossus serve --new-key NAME {file}")
        raise SpecError("--api-keys", [problem]) from error
    keys: list[tuple[str, str]] = []
    problems = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _HASH.fullmatch(words[1]):
            problems.append(Problem(path=f"line {number}", value=repr(words[0]), rule="must be a name and the SHA-256 of its key in 64 hexadecimal digits"))
        elif words[0] in dict(keys):
            problems.append(Problem(path=f"line {number}", value=repr(words[0]), rule="has a line already"))
        else:
            keys.append((words[0], words[1]))
    if problems:
        raise SpecError(str(file), problems)
    return keys


class Keys:
    """The keys of a file, read anew when it changes; a broken new version is not taken. At first there must be a key; all may be revoked."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys = read_keys(file)
        if not self._keys:
            rule = "has no key, so nobody could use this server"
            raise SpecError("--api-keys", [Problem(path="--api-keys", value=str(file), rule=rule, hint=f"make one: colossus serve --new-key NAME {file}")])
        self._stamp = self._stamped()
        self._looked_s = time.monotonic()

    def owner(self, key: str) -> str | None:
        """Whose key it is. Takes the same time whichever key it is, and whether any."""
        self._refresh()
        digest, found = hashed(key), None
        for name, known in self._keys:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _stamped(self) -> tuple[int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now
        stamp = self._stamped()
        if stamp is None or stamp == self._stamp:
            return
        try:
            self._keys = read_keys(self._file)
        except SpecError:  # half written, perhaps: look again
            return
        self._stamp = stamp
