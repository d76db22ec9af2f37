"""How a process says that it could not start."""

import pytest

from shared import process
from shared.errors import StartupFailed, Unavailable


@pytest.mark.parametrize("error", [StartupFailed("ROLLCALL_AMQP_URL: gone"), Unavailable("no connection to the broker")])
def test_a_start_that_fails_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """A chaos run killed the broker between a gateway's connecting and its asking for answers: 40 lines of traceback."""

    async def main() -> None:
        raise error

    assert process.run(main) == 1
    assert capsys.readouterr().err == f"rollcall: {error}\n"
