"""The private RabbitMQ of the tests: it can what we need, is installed where it is missing, and leaves nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import pytest

from rollcall.launcher import ServerFailed
from tests import rabbitmq
from tests.system.family import everyone


@pytest.mark.usefixtures("rabbitmq")
def test_asking_a_broker_that_has_gone_leaves_no_name_server(tmp_path: Path) -> None:
    """Erlang would start one as a daemon, on the port of the one that ended with its node, and it would stay for ever."""
    broker = rabbitmq.start_rabbitmq(tmp_path / "rabbitmq")
    port = f"ERL_EPMD_PORT={broker.environment['ERL_EPMD_PORT']}\0".encode()
    assert "rollcall@localhost" in broker.call("erlang, node", "")
    broker.stop()

    with pytest.raises(ServerFailed):
        broker.call("erlang, node", "")
    with pytest.raises(ServerFailed):
        broker.control("list_vhosts")

    left = [process.pid for process in everyone() if process.name() == "epmd" and port in process.environment()]
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    assert left == []


@pytest.mark.parametrize("kind", ["quorum", "stream"])
async def test_quorum_queues_and_streams_work(amqp_url: str, kind: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.declare_queue(
            f"test.servers.{kind}.{os.getpid()}", durable=True, arguments={"x-queue-type": kind}
        )
        try:
            await channel.default_exchange.publish(aio_pika.Message(b"here"), routing_key=queue.name)
            first = {"x-stream-offset": "first"} if kind == "stream" else None
            async with queue.iterator(arguments=first, timeout=5) as messages:
                message = await anext(messages)
                await message.ack()
                assert message.body == b"here"
        finally:
            await queue.delete(if_unused=False, if_empty=False)


def test_a_broker_is_installed_without_its_service_and_without_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation may leave a daemon behind that holds our pipes, as RabbitMQ's own does."""
    policy, binary, seen, daemon = (tmp_path / name for name in ("policy-rc.d", "rabbitmq-server", "seen", "daemon"))
    apt_get = tmp_path / "apt-get"
    apt_get.write_text(
        f"#!/bin/sh\nset -e\necho $DEBIAN_FRONTEND $* >> {seen}\n"
        f'case "$*" in *install*) (sh {policy} || echo policy $? >> {seen}); touch {binary};'
        f" setsid sleep 60 & echo $! > {daemon};; esac\n"
    )
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(rabbitmq, "POLICY", policy)
    monkeypatch.setattr(rabbitmq, "RABBITMQ_SERVER", binary)

    assert rabbitmq.ensure_rabbitmq() == binary

    os.kill(int(daemon.read_text()), signal.SIGKILL)
    update, install, answer = seen.read_text().splitlines()
    assert update.startswith("noninteractive") and update.endswith("update")
    assert install.endswith("install --yes --no-install-recommends rabbitmq-server")
    assert answer == "policy 101", "nothing may be started while packages are installed"
    assert not policy.exists()


AT_ONCE = ("-p", "xdist", "-n", "1")


@pytest.mark.parametrize(
    ("ci", "workers", "outcome"), [("", (), "1 skipped"), ("", AT_ONCE, "1 skipped"), ("true", (), "1 error")]
)
def test_a_missing_broker_is_said_loudly_and_fails_in_ci(
    tmp_path: Path, ci: str, workers: tuple[str, ...], outcome: str
) -> None:
    """In the tests' own process, and where `make test` has them run in others."""
    (tmp_path / "no_broker.py").write_text(
        "from pathlib import Path\nfrom tests import rabbitmq\n"
        "rabbitmq.RABBITMQ_SERVER = Path('/nowhere')\nrabbitmq.shutil.which = lambda name: None\n"
    )
    (tmp_path / "test_it.py").write_text("def test_that_needs_a_broker(amqp_url): pass\n")
    environment = {name: value for name, value in os.environ.items() if name != "ROLLCALL_TEST_AMQP_URL"}
    environment |= {"CI": ci, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "-p",
            "no_broker",
            *workers,
            "-c",
            "/dev/null",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert outcome in done.stdout
    assert "ROLLCALL_TEST_AMQP_URL" in done.stdout, "what to do about it"
    assert done.returncode == (1 if ci else 0)
    assert ci or "LEFT OUT: EVERY TEST THAT NEEDS RABBITMQ DID NOT RUN." in done.stdout


# Databases, for the tests
