"""Stops an embedded server that no process uses any more, even if its last user was killed.

A process of its own, one per running server, started with it and run as a script: it waits for
`users.lock` in the kernel, which costs nothing, and has that lock once every user is gone. Only
the standard library is imported, and little of it.
"""

import fcntl
import os
import signal
import socket
import sys


def listening(root: str) -> int | None:
    """The process id of the postmaster, if it lives."""
    try:
        with open(f"{root}/pgdata/postmaster.pid") as file:
            lines = file.read().splitlines()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        return int(lines[0])
    except (OSError, IndexError, ValueError):
        return None


def become_owner(root: str) -> None:
    """Give up root's rights: the process to stop is named by a file that the server's account can change."""
    owner = os.stat(f"{root}/pgdata", follow_symlinks=False)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def keep(root: str) -> None:
    """Wait until the server has no user, then stop it."""
    mine = os.open(f"{root}/watchdog.lock", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # it has a watchdog
    users = os.open(f"{root}/users.lock", os.O_RDONLY | os.O_NOFOLLOW)
    fcntl.flock(users, fcntl.LOCK_EX)
    server = os.open(f"{root}/server.lock", os.O_RDONLY | os.O_NOFOLLOW)
    become_owner(root)
    try:
        fcntl.flock(server, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        if (pid := listening(root)) is not None:
            os.kill(pid, signal.SIGINT)
        # users.lock is held until it is gone, so that no process connects to what is going.
        fcntl.flock(server, fcntl.LOCK_SH)


if __name__ == "__main__":
    if os.fork() == 0:  # an orphan: it outlives whoever started it, and leaves nothing to reap
        os.setsid()
        keep(sys.argv[1])
