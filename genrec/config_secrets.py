"""Which parts of a URI look like credentials: configs and logs are kept, so places must not hold any."""

import re
from urllib.parse import parse_qsl, urlsplit

_SECRET = re.compile("key|secret|token|passw|pwd|credential|signature|^sig$", re.IGNORECASE)


def secrets_in(place: str | None) -> list[str]:
    """What in a URI looks like credentials, in words that do not show them; empty for a path and a clean URI."""
    url = urlsplit(place or "")
    if not url.scheme:
        return []
    secrets = [name for name, _ in parse_qsl(url.query, keep_blank_values=True) if _SECRET.search(name)]
    if url.password is not None:
        secrets.append("a password before the @")
    return secrets


def check_no_secrets(setting: str, place: str | None) -> None:
    """Raises ValueError, without the value, when the place that a setting names holds credentials."""
    secrets = secrets_in(place)
    if secrets:
        raise ValueError(
            f"{setting} must not hold credentials ({', '.join(secrets)}), because configs and logs are kept; give them "
            "to the machines (an instance role, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )
