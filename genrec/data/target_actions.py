"""Which events are worth predicting: those whose action is wanted (completed streams, say, and not skips)."""

import difflib
from collections.abc import Sequence

from genrec.data.manifest import Manifest
from genrec.errors import ConfigError


def target_codes(names: Sequence[str] | None, manifest: Manifest) -> tuple[int, ...] | None:
    """Codes of the named actions of a prepared set; None, for every action, without names.

    Raises ConfigError when the set does not have one of them.
    """
    if names is None:
        return None
    for name in names:
        if name not in manifest.actions:
            close = difflib.get_close_matches(name, manifest.actions, n=3, cutoff=0.4)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(manifest.actions) or 'none'}."
            )
            raise ConfigError(f"sequence.target_actions has {name!r}, which is no action of the prepared set; {hint}")
    return tuple(sorted(manifest.actions.index(name) + 1 for name in names))
