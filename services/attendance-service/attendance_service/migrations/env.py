"""Where Alembic begins for schema `attendance`."""

from attendance_service.tables import metadata
from shared.migration import migrate

migrate(metadata)
