"""The check that psycopg can work, made where it is imported for the first time.

psycopg is plain Python that needs libpq: a wheel's (`psycopg[binary]`), a compiled one (`psycopg[c]`), or the
system's. The choice is the application's, so it may be missing.
"""

from __future__ import annotations

from importlib import import_module

from haive_persistence.errors import ConfigError


def require_driver() -> None:
    """Import psycopg. Raises ConfigError, saying what to install, if it finds no libpq."""
    try:
        import_module("psycopg")
    except ImportError as error:
        raise ConfigError(
            "psycopg finds no libpq: pip install 'haive-persistence[binary]' for one that comes as a wheel, "
            f"or psycopg[c], or the system's libpq (Debian: libpq5). psycopg says: {error}"
        ) from error
