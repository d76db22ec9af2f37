"""How the system tests read a list that comes in pages."""

from tests.system.talk import Payload, http


async def pages(url: str, path: str, bearer: str, *, limit: int) -> list[list[Payload]]:
    """Read every page of a list."""
    read: list[list[Payload]] = []
    cursor = None
    while True:
        more = "&" if "?" in path else "?"
        status, page = await http(url, "GET", f"{path}{more}limit={limit}{f'&cursor={cursor}' if cursor else ''}", bearer)
        assert status == 200, page
        assert set(page) == {"items", "next_cursor"}
        read.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return read
