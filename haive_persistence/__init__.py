"""State persistence for AI agents on Postgres."""

__version__ = "0.1.0"
