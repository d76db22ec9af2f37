"""Bringing the schemas to the newest revision. Alembic is imported here and in the migrations, never by a running service."""

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import SQLAlchemyError

from shared.database import reason
from shared.errors import StartupFailed

_HISTORIES = ("session_service", "attendance_service")


def migrate(url: str) -> None:
    """Migrate every service's schema on a `postgresql://` URL; raise StartupFailed in one line when that fails.

    Runs event loops of its own: where one is running already, call it in a thread. Safe to run several times at once.
    """
    for package in _HISTORIES:
        config = Config()
        config.set_main_option("script_location", f"{package}:migrations")
        config.attributes["url"] = url
        try:
            command.upgrade(config, "head")
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise StartupFailed(f"ROLLCALL_DATABASE_URL: cannot migrate {package}: {reason(error)}") from error
