"""What makes the start of a process short. Its `__main__` calls this before it imports anything else of ours or of others'.

Only where a process begins, never at import: in `rollcall dev` and in the tests others share the interpreter.
"""

import gc
import sys
from typing import Final

_NEVER_USED: Final = ("requests", "rich", "valkey")
"""What libraries load where it is installed, for what no service does: python-socketio's client and its other manager load
the first and the last, structlog's console the second."""


def hasten() -> None:
    """Have imports cost a fifth less: 0.1 s and more of 0.7.

    Half of it is the garbage collector, which looks through all modules again and again while they are loaded, and finds
    nothing; `process.until_told_to_stop` lets it work again. The other half are the libraries that are never used: to those
    who would load them they look as if they were not installed.
    """
    gc.disable()
    sys.modules.update(dict.fromkeys(_NEVER_USED))  # type: ignore[arg-type]
