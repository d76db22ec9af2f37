"""The leash: run as a script, it becomes the program it is given, which then gets a signal when its parent dies.

Linux only, and only the standard library: it is started as `python -I -S leash.py PARENT SIGNAL USER PROGRAM …`. The kernel
forgets PR_SET_PDEATHSIG whenever a process changes its credentials, so the user is changed first and the leash tied last.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

SAME_USER = "same-user"
"""Run the program as who we are."""

NAMESPACE = "namespace"
"""Run it in a user namespace of its own: it sees itself as nobody, and its files stay ours."""

NOBODY = 65534

# From <linux/prctl.h>, <linux/securebits.h>, <linux/capability.h> and <linux/sched.h>.
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000

libc = ctypes.CDLL(None, use_errno=True)


def main(parent: int, death_signal: int, user: str, program: list[str]) -> None:
    """Change user as told (`same-user`, `namespace` or `UID:GID`), tie the leash, and become the program."""
    if user == NAMESPACE:
        enter_namespace()
    elif user != SAME_USER:
        uid, gid = user.split(":")
        become(int(uid), int(gid))
    call(libc.prctl, PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent died before the leash was tied")
    # Python ignores it, and what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(program[0], program)


def enter_namespace() -> None:
    """Be nobody to our own eyes and ourselves to the file system; raise OSError where user namespaces are refused."""
    uid, gid = os.geteuid(), os.getegid()
    call(libc.unshare, CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")


def become(uid: int, gid: int) -> None:
    """Leave root for this user, and keep of its powers only that of passing closed folders (CAP_DAC_OVERRIDE).

    Programs and data are often below /root, which is closed to everyone else. SECBIT_NO_SETUID_FIXUP lets access(2) count the
    power too: without it Postgres reads its own binary but believes it cannot.
    """
    call(libc.prctl, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    effective = permitted = inheritable = 1 << CAP_DAC_OVERRIDE
    call(libc.capset, header, (ctypes.c_uint32 * 6)(effective, permitted, inheritable, 0, 0, 0))
    call(libc.prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def call(function: Callable[..., int], *arguments: object) -> None:
    """Call a C function that answers 0 when it went well; raise OSError when it does not."""
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), getattr(function, "__name__", None))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
