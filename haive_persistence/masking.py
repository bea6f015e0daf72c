"""Connection strings with their secrets masked, in every spelling that libpq reads."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"

_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}

# The password may hold anything, an unescaped @ or / too: it ends at the last @.
_USERINFO = re.compile(r"(\w://[^:@]*(?:@[^:]*)?:)(.*)(?=@)", re.DOTALL)
_OPTION = re.compile(r"([?&])([^=&]*)=([^&]*)", re.DOTALL)
# A value is quoted, or ends at a space; a backslash escapes the next character. A quote may be missing.
_KEYWORD = re.compile(
    rf"(\b(?:{'|'.join(_SECRETS)})\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)+)", re.DOTALL | re.IGNORECASE
)


def mask_secrets(text: str) -> str:
    """A connection string, or a text with one in it, without passwords."""
    if "://" not in text:
        return _KEYWORD.sub(rf"\g<1>{MASK}", text)
    return _OPTION.sub(_mask_option, _USERINFO.sub(rf"\g<1>{MASK}", text))


def _mask_option(option: re.Match[str]) -> str:
    name = unquote(option[2]).strip().lower()
    return f"{option[1]}{option[2]}={MASK}" if name in _SECRETS else option[0]
