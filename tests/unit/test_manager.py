"""The manager's rooms: a socket leaves just those it is in, without a look at any other."""

import asyncio

import pytest

from gateway.engine.outbound import Message
from gateway.engine.server import NAMESPACES, Json, Manager, Server


@pytest.fixture
def manager() -> Manager:
    manager = Manager("redis://nowhere", channel="x")
    Server(async_mode="aiohttp", client_manager=manager, json=Json, namespaces=list(NAMESPACES))
    return manager


async def connected(manager: Manager, eio_sid: str, namespace: str = "/") -> str:
    return str(await manager.connect(eio_sid, namespace))


async def test_who_disconnects_is_in_no_room_any_more_and_leaves_nothing_behind(manager: Manager) -> None:
    sids = [await connected(manager, "one"), await connected(manager, "two")]
    for sid in sids:
        assert manager.enter_here(sid, "/", "roll:x")
    manager.pre_disconnect(sids[0], "/")

    manager.basic_disconnect(sids[0], "/")

    assert manager.get_rooms(sids[0], "/") == []
    assert manager.get_rooms(sids[1], "/") == ["roll:x"]
    assert not manager.is_connected(sids[0], "/")
    assert not manager.enter_here(sids[0], "/", "roll:x")
    manager.basic_disconnect(sids[1], "/")
    assert (manager.rooms, manager._rooms_of, manager.pending_disconnect) == ({}, {}, {})


async def test_a_handshake_that_is_refused_leaves_nothing_behind(manager: Manager) -> None:
    sid = await manager.pre_connect("one", "/")

    manager.basic_disconnect(sid, "/")

    assert (manager.rooms, manager._rooms_of, manager.pending_connect) == ({}, {}, {})


async def test_who_leaves_a_room_hears_no_more_of_it_and_may_come_back(manager: Manager) -> None:
    sid = await connected(manager, "one")
    heard: list[str] = []
    manager.server.eio.sockets["one"] = _Ear(heard)
    manager.enter_here(sid, "/", "roll:x")

    manager.leave_here(sid, "/", "roll:x")
    manager.leave_here(sid, "/", "roll:x")
    manager.emit_here("first", {}, "roll:x")
    manager.enter_here(sid, "/", "roll:x")
    manager.emit_here("second", {}, "roll:x")
    await asyncio.sleep(0)

    assert heard == ['42["second",{}]']


class _Ear:
    closed = False

    def __init__(self, heard: list[str]) -> None:
        self._heard = heard

    def put(self, message: Message) -> None:
        self._heard.append(message.body.decode())
