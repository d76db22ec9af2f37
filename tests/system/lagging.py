"""A gateway that measures how long its loop stalls: `python -m tests.system.lagging REDIS_URL`.

It prints its address, and for each line it reads how many connections there are and the longest stall since then. A stall is
what the process itself computed between two looks: that others had the processor meanwhile is no fault of the loop.
"""

import asyncio
import json
import sys
import time

from shared.process import guarded, run, until_told_to_stop
from tests.system.gateways import gateways_alone

LOOK_SECONDS = 0.002


class Watch:
    """Looks at the clock again and again."""

    def __init__(self) -> None:
        self.stall_ms = 0.0

    async def look(self) -> None:
        """Measure, for ever."""
        while True:
            computed = time.thread_time()
            await asyncio.sleep(LOOK_SECONDS)
            self.stall_ms = max(self.stall_ms, (time.thread_time() - computed) * 1000)

    def seen(self) -> float:
        """Say what was seen, and forget it."""
        seen, self.stall_ms = self.stall_ms, 0.0
        return seen


async def main(redis_url: str) -> None:
    """Run the gateway beside the watch."""
    watch = Watch()
    loop = asyncio.get_running_loop()
    async with gateways_alone(redis_url, count=1) as gateways, guarded(watch.look):
        [[url, gateway]] = gateways.items()
        print(url, flush=True)

        def tell() -> None:
            if sys.stdin.readline():
                print(json.dumps({"connections": gateway.connections(), "stall_ms": watch.seen()}), flush=True)
            else:
                loop.remove_reader(sys.stdin)

        loop.add_reader(sys.stdin, tell)
        await until_told_to_stop()


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1])))
