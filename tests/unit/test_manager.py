"""The manager's sockets: each is found by its own name, and leaves nothing behind."""

from typing import Any

import pytest

from gateway.engine.server import NAMESPACES, Json, Manager, Server


@pytest.fixture
def manager() -> Manager:
    manager = Manager("redis://nowhere", channel="x")
    Server(async_mode="aiohttp", client_manager=manager, json=Json, namespaces=list(NAMESPACES))
    return manager


async def connected(manager: Manager, eio_sid: str, namespace: str = "/") -> str:
    return str(await manager.connect(eio_sid, namespace))


async def test_who_disconnects_leaves_nothing_behind(manager: Manager) -> None:
    sids = [await connected(manager, "one"), await connected(manager, "two")]
    manager.pre_disconnect(sids[0], "/")

    manager.basic_disconnect(sids[0], "/")

    assert [manager.is_connected(sid, "/") for sid in sids] == [False, True]
    manager.basic_disconnect(sids[1], "/")
    assert (manager.rooms, manager.pending_disconnect) == ({}, {})


async def test_a_handshake_that_is_refused_leaves_nothing_behind(manager: Manager) -> None:
    sid = await manager.pre_connect("one", "/")

    manager.basic_disconnect(sid, "/")

    assert (manager.rooms, manager.pending_connect) == ({}, {})


async def test_a_socket_is_alone_in_the_room_of_its_own_name(manager: Manager) -> None:
    sids = [await connected(manager, "one"), await connected(manager, "two")]

    assert list(manager.get_participants("/", sids[1])) == [(sids[1], "two")]
    assert list(manager.get_participants("/", None)) == [(sids[0], "one"), (sids[1], "two")]
    assert list(manager.get_participants("/attendance", sids[1])) == []


async def test_one_socket_is_told_while_it_is_there(manager: Manager) -> None:
    heard: list[tuple[bytes, ...]] = []
    link: Any = type("Link", (), {"closed": False, "put": lambda self, message: heard.append(message.packets)})()
    sid = await connected(manager, "one", "/attendance")
    manager.server.eio.sockets["one"] = link

    manager.emit_here("first", {}, sid, "/attendance")
    link.closed = True
    manager.emit_here("second", {}, sid, "/attendance")
    manager.basic_disconnect(sid, "/attendance")
    manager.emit_here("third", {}, sid, "/attendance")

    assert heard == [(b'42/attendance,["first",{}]',)]
