"""nginx in front of two gateways, with the configuration of deploy/nginx, all but where the gateways are.

That part (gateways.conf) needs a newer nginx than Debian's, and Docker's DNS.
"""

import asyncio
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
import socketio

from gateway import door
from gateway.limits import Limit
from rollcall.launcher import Server, ServerFailed, free_port, launch, run
from tests.contract.bus_talk import eventually
from tests.rabbitmq import apt_get, no_services_started
from tests.system.gateways import gateways_alone
from tests.system.rig import token

NGINX = Path(__file__).parents[2] / "deploy" / "nginx"
NAMESPACE = "/attendance"
CLIENTS = 12


def ensure_nginx() -> str:
    """Find nginx on this machine, installing Debian's package where we may; raise ServerFailed where we may not."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    if shutil.which("nginx", path=search) is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise ServerFailed("nginx is not on this machine, and only root can install it, with apt-get")
        with TemporaryDirectory() as folder, no_services_started():
            apt_get(Path(folder), "update")
            apt_get(Path(folder), "install", "--yes", "--no-install-recommends", "nginx")
    found = shutil.which("nginx", path=search)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def nginx() -> str:
    """The program. Where there can be none the tests are skipped; with CI set they fail."""
    try:
        return ensure_nginx()
    except ServerFailed as failed:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"LEFT OUT: {failed}")


def configure(folder: Path, port: int, gateways: list[str]) -> list[str]:
    """Write the configuration for these ports; return nginx's arguments."""
    text, changed = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", (NGINX / "nginx.conf").read_text())
    assert changed == 1
    (folder / "nginx.conf").write_text(text)

    text, changed = re.subn(
        r"server gateway:8080 resolve (.*);",
        lambda found: "\n".join(f"server {url.removeprefix('http://')} {found[1]};" for url in gateways),
        (NGINX / "gateways.conf").read_text(),
    )
    assert changed == 2
    # Debian's own folders are root's.
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        text += f"{kind}_temp_path {folder / kind};\n"
    (folder / "gateways.conf").write_text(text)
    return ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", f"daemon off; pid {folder / 'pid'};"]


@contextmanager
def serving(nginx: str, folder: Path, gateways: list[str]) -> Iterator[Server]:
    """Run nginx in front of gateways at these addresses."""
    port = free_port()
    # It says nothing when it is ready, so its port is asked.
    arguments = [nginx, *configure(folder, port, gateways)]
    server = launch("nginx", arguments, url=f"http://127.0.0.1:{port}", says="", log=folder / "nginx.log")
    try:
        yield server
    finally:
        server.stop()


async def listening(server: Server) -> None:
    def is_open() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(server.url.rpartition(":")[2]))) == 0

    await eventually(is_open)


@pytest.fixture
async def front(nginx: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """nginx, in front of two gateways."""
    async with gateways_alone(redis_url, {"ROLLCALL_TRUSTED_PROXIES": "127.0.0.1"}) as gateways:
        with serving(nginx, tmp_path, list(gateways)) as server:
            await listening(server)
            yield server


class Client:
    """A Socket.IO client that connects, asks something, and is answered; it says the same User-Agent with every request."""

    def __init__(self, transports: list[str], user_agent: str) -> None:
        self._transports = transports
        self._user_agent = user_agent

    async def visit(self, url: str) -> str:
        """Do all of that; return the transport it ended on."""
        shown = token("s1", "student")
        async with aiohttp.ClientSession(headers={"User-Agent": self._user_agent}) as session:
            client = socketio.AsyncClient(reconnection=False, http_session=session)
            await client.connect(
                url, auth={"token": shown}, transports=self._transports, namespaces=[NAMESPACE], wait_timeout=10
            )
            try:
                answer: dict[str, Any] = await client.call("nobody knows this", {}, namespace=NAMESPACE, timeout=10)
                assert answer["ok"] is False
                return str(client.transport())
            finally:
                # Not `client.disconnect()`, which waits for the poll in hand: up to 30 s. Closing the session ends it.
                await client.eio.disconnect(abort=True)


def browsers(transports: list[str], *, behind_one_name: bool = False) -> list[Client]:
    """Clients of one address, each with a User-Agent of its own, or all with one."""
    return [Client(transports, f"Browser/{0 if behind_one_name else n}") for n in range(CLIENTS)]


def requests(server: Server, uri: str = "/socket.io/") -> Counter[str]:
    """How many requests each gateway was given, by nginx's log."""
    return Counter(re.findall(rf'(?m)"[A-Z]+ {uri}" .* gateway=(\S+)$', server.log.read_text()))


def test_nginx_understands_the_configuration(nginx: str, tmp_path: Path) -> None:
    arguments = configure(tmp_path, free_port(), [f"http://127.0.0.1:{free_port()}" for _ in range(2)])

    run("nginx -t", [nginx, "-t", *arguments], log=tmp_path / "test.log")


def test_the_part_that_debians_nginx_cannot_read_follows_a_scale() -> None:
    """`hash … consistent` would take turns among the addresses behind one name, and tear polling sessions apart."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (NGINX / "gateways.conf").read_text())

    assert text.count("server gateway:8080 resolve") == text.count("zone ") == text.count("upstream ") == 2
    assert "resolver 127.0.0.11" in text
    assert "consistent" not in text


async def test_polling_clients_stay_with_their_gateway(front: Server) -> None:
    """Several requests make one session; were only one of them to reach the other gateway, it would break."""
    ended_on = await asyncio.gather(*(client.visit(front.url) for client in browsers(["polling"])))

    assert set(ended_on) == {"polling"}
    assert len(requests(front)) == 2, "all went to one gateway: nothing is shown"


async def test_polling_clients_upgrade_on_their_gateway(front: Server) -> None:
    ended_on = await asyncio.gather(*(client.visit(front.url) for client in browsers(["polling", "websocket"])))

    assert set(ended_on) == {"websocket"}
    await eventually(lambda: requests(front).total() >= 2 * CLIENTS)
    assert len(requests(front)) == 2, "all went to one gateway: nothing is shown"


async def test_a_node_client_that_names_itself_only_when_it_polls_reaches_its_gateway(front: Server) -> None:
    """Its polling says `node-XMLHttpRequest`; its WebSocket says nothing. From several addresses, for one may be lucky."""
    url = f"{front.url}/socket.io/?EIO=4"
    for number in range(2, 10):
        connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{number}", 0))
        async with aiohttp.ClientSession(connector=connector, skip_auto_headers=["User-Agent"]) as session:
            async with session.get(f"{url}&transport=polling", headers={"User-Agent": "node-XMLHttpRequest"}) as answer:
                [sid] = re.findall(r'"sid":"([^"]+)"', await answer.text())
            async with session.ws_connect(f"{url}&transport=websocket&sid={sid}") as upgrade:
                await upgrade.send_str("2probe")
                assert await upgrade.receive_str(timeout=10) == "3probe"


async def test_clients_that_begin_as_websockets_are_spread_evenly(front: Server) -> None:
    """However alike they are: an app's users behind one campus address."""
    clients = browsers(["websocket"], behind_one_name=True)
    ended_on = await asyncio.gather(*(client.visit(front.url) for client in clients))

    assert set(ended_on) == {"websocket"}
    await eventually(lambda: requests(front).total() == CLIENTS)
    assert len(requests(front)) == 2
    assert min(requests(front).values()) >= CLIENTS // 3


async def test_newcomers_go_past_a_gateway_that_is_going_away(nginx: str, redis_url: str, tmp_path: Path) -> None:
    """However they begin, and without hearing of it."""
    async with gateways_alone(redis_url) as gateways:
        with serving(nginx, tmp_path, list(gateways)) as server:
            await listening(server)
            await next(iter(gateways.values())).leave()
            for client in browsers(["websocket"]) + browsers(["polling"]):
                await client.visit(server.url)


async def test_no_websocket_is_compressed(front: Server) -> None:
    url = f"{front.url}/socket.io/?EIO=4&transport=websocket"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as socket:
        assert not socket.compress


async def test_http_comes_through_and_nothing_else_does(front: Server) -> None:
    statuses = {}
    async with aiohttp.ClientSession(front.url) as session:
        for path in ("/health/live", "/health/ready", "/api/v1/courses", "/docs", "/docs/docs.js", "/docsx", "/metrics", "/"):
            async with session.get(path) as answer:
                statuses[path] = answer.status, answer.content_type
    json = "application/json"
    assert statuses == {
        "/health/live": (200, json),
        "/health/ready": (200, json),
        "/api/v1/courses": (401, json),
        "/docs": (200, "text/html"),
        "/docs/docs.js": (200, "text/javascript"),
        "/docsx": (404, json),
        "/metrics": (404, json),
        "/": (404, json),
    }
    assert set(requests(front, "/docsx")) <= {"-"}


async def test_the_log_tells_no_session_id(front: Server) -> None:
    """Who reads it could speak for the session."""
    await Client(["polling"], "Browser/0").visit(front.url)

    assert requests(front)
    assert "sid=" not in front.log.read_text()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may show few bad tokens."""
    monkeypatch.setattr(door, "REFUSED_TOKENS", Limit(burst=30, per_second=0.5))


async def test_a_client_is_known_by_its_own_address_whatever_it_claims(few: None, front: Server) -> None:
    """Bad tokens from one address are refused as too many, each with another claim; from another address they are not."""

    async def shown(session: aiohttp.ClientSession, claimed: str) -> int:
        headers = {"Authorization": "Bearer bad", "X-Forwarded-For": claimed}
        async with session.get(f"{front.url}/api/v1/courses", headers=headers) as answer:
            return answer.status

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))) as one,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=("127.0.0.3", 0))) as other,
    ):
        async with asyncio.timeout(30):
            while 429 not in await asyncio.gather(*(shown(one, f"192.0.2.{number}") for number in range(50))):
                pass
        assert await shown(other, "127.0.0.2") == 401
