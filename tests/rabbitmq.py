"""A private RabbitMQ for tests, from the machine's `rabbitmq-server`, which is installed where that is allowed.

`rollcall dev` needs no broker, so none of this is part of the product. It never touches a node that runs already.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from rollcall.launcher import Server, ServerFailed, free_port, kill, launch, on_a_port, run

# The one in /usr/sbin changes to the user rabbitmq and serves only the system's own node.
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
POLICY = Path("/usr/sbin/policy-rc.d")
COOKIE = ".erlang.cookie"
INSTALL_SECONDS = 300.0
# 5 s on an idle machine. A node killed on its first start is of no use: its feature flags are half enabled.
READY_SECONDS = 120.0

CONFIGURATION = """
# A test must not be held up by the alarms that protect a real node.
disk_free_limit.absolute = 1MB
"""


@dataclass(frozen=True)
class RabbitMQ:
    """A running private node, with the name server (epmd) that Erlang wants beside it."""

    url: str
    node: Server
    epmd: Server
    environment: dict[str, str]
    name: str = "rollcall@localhost"

    def stop(self) -> None:
        """Stop the node, then its name server, and return when both are gone. A repeat does nothing."""
        self.node.stop()
        self.epmd.stop()

    def kill(self) -> None:
        """Kill the node as a crash does, and then stop its name server."""
        kill(self.node.process)
        self.epmd.stop()

    def control(self, *arguments: str) -> str:
        """Tell the node something by `rabbitmqctl`, and return what it says; raise ServerFailed where it has been stopped.

        For RabbitMQ 4 would start a name server then, which nobody stops.
        """
        if self.epmd.process.poll() is not None:
            raise ServerFailed("RabbitMQ has been stopped")
        return subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "-n", self.name, *arguments],
            env=os.environ | self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def new_host(self) -> str:
        """Make a virtual host and say its URL: as good as a node of one's own for those who do not stop it, and nearly free."""
        name = f"host-{uuid4().hex[:12]}"
        self.call("rabbit_vhost, add", f'<<"{name}">>, <<"guest">>')
        everything = '<<".*">>, <<".*">>, <<".*">>'
        self.call("rabbit_auth_backend_internal, set_permissions", f'<<"guest">>, <<"{name}">>, {everything}, <<"guest">>')
        return f"{self.url}{name}"

    def call(self, function: str, arguments: str) -> str:
        """Call a function inside the node, as `rabbitmqctl` does, for a tenth of its cost; say what it returned.

        `function` is an Erlang `module, function`, `arguments` what stands between the parentheses. Raises ServerFailed when
        the node did not do it, or is not there.
        """
        script = f'io:format("~p~n", [rpc:call(rollcall@localhost, {function}, [{arguments}])]), halt().'
        name = f"asking-{uuid4().hex[:8]}@localhost"
        asked = subprocess.run(
            ["erl", "-noinput", "-hidden", "-boot", "start_clean", "-sname", name, "-eval", script],
            env=os.environ | self.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        if asked.returncode or asked.stdout.startswith("{badrpc"):
            raise ServerFailed(f"RabbitMQ: {function}: {(asked.stdout or asked.stderr).strip()}")
        return asked.stdout


def start_rabbitmq(data: Path, *, port: int | None = None, joining: RabbitMQ | None = None) -> RabbitMQ:
    """Start a node on 127.0.0.1 that keeps all it has in this folder, the log included; user and password are `guest`.

    With `joining` it makes a cluster with that one, whose name server it shares and which stops that in the end.
    Call it from the main thread (see `launch`); raises ServerFailed.
    """
    server = ensure_rabbitmq()
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    (data / "rabbitmq.conf").write_text(CONFIGURATION)
    (data / "enabled_plugins").write_text("[].\n")
    (data / "rabbitmq-env.conf").touch()
    # Started by us, not by Erlang: what Erlang starts is a daemon that outlives everyone.
    epmd = joining.epmd if joining else on_a_port(None, lambda port: start_epmd(data, port))
    name = f"{data.name}@localhost" if joining else RabbitMQ.name
    member = (data / "mnesia").exists()
    if joining:
        shutil.copy2(Path(joining.environment["HOME"], COOKIE), data / COOKIE)
    # That goes for whoever asks a node whose epmd has gone, too: `erl` starts none, nor does `rabbitmqctl` before RabbitMQ 4.
    environment = {"ERL_EPMD_PORT": epmd.url.rpartition(":")[2], "ERL_FLAGS": "-start_epmd false"}

    def start(port: int) -> Server:
        return launch(
            "RabbitMQ",
            [str(server)],
            url=f"amqp://guest:guest@127.0.0.1:{port}/",
            says="Server startup complete",
            log=data / "rabbitmq.log",
            environment=environment | node_environment(data, name, port),
            ready_seconds=READY_SECONDS,
        )

    try:
        node = on_a_port(port, start)
    except BaseException:
        epmd.stop()
        raise
    port = int(node.url.rpartition(":")[2].strip("/"))
    rabbitmq = RabbitMQ(node.url, node, epmd, environment | node_environment(data, name, port), name)
    if joining and not member:
        for step in (["stop_app"], ["join_cluster", joining.name], ["start_app"]):
            rabbitmq.control(*step)
    return rabbitmq


def start_epmd(data: Path, port: int) -> Server:
    """Start a name server for one node."""
    return launch(
        "RabbitMQ's epmd",
        ["epmd", "-d", "-port", str(port), "-address", "127.0.0.1"],
        url=f"epmd://127.0.0.1:{port}",
        says="epmd running",
        log=data / "epmd.log",
    )


def node_environment(data: Path, name: str, port: int) -> dict[str, str]:
    """The variables that keep a node apart from every other one on the machine, and its files in this folder."""
    return {
        "HOME": str(data),  # where Erlang keeps its cookie
        "ERL_CRASH_DUMP": str(data / "erl_crash.dump"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
        "RABBITMQ_SCHEMA_DIR": str(data / "schema"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "generated"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(data / "feature_flags"),
        "RABBITMQ_PID_FILE": str(data / "node.pid"),
        "RABBITMQ_LOG_BASE": str(data),
        "RABBITMQ_LOGS": "-",
        # Lets the script become the node, so that the leash, and a test's SIGSTOP or SIGKILL, reach the node itself.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def ensure_rabbitmq() -> Path:
    """Find `rabbitmq-server` on this machine, installing Debian's package where we may; raise ServerFailed where we may not."""
    if RABBITMQ_SERVER.exists():
        return RABBITMQ_SERVER
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ServerFailed(
            "RabbitMQ is not on this machine, and only root can install it, with apt-get:"
            " install rabbitmq-server, or set ROLLCALL_TEST_AMQP_URL"
        )
    with TemporaryDirectory() as folder, no_services_started():
        apt_get(Path(folder), "update")
        apt_get(Path(folder), "install", "--yes", "--no-install-recommends", "rabbitmq-server")
    return RABBITMQ_SERVER


def apt_get(folder: Path, *arguments: str) -> None:
    """Run apt-get without questions; raise ServerFailed when it fails or takes longer than INSTALL_SECONDS."""
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=60", *arguments]
    run(f"apt-get {arguments[0]}", apt, log=folder / "apt.log", seconds=INSTALL_SECONDS)


@contextmanager
def no_services_started() -> Iterator[None]:
    """Let the packages installed meanwhile start nothing, unless the machine has its own policy on that."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
