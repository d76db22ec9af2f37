"""Where Alembic begins for schema `sessions`."""

from session_service.tables import metadata
from shared.migration import migrate

migrate(metadata)
