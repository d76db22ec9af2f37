"""session-service: owns courses, their rosters, and the life of every session."""
