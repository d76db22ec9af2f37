"""attendance-service: owns the roll of every session, its records and its history."""
