"""Names of the parameters of tests that are the same in every process: pytest-xdist compares them."""

import re

__all__ = ["steady"]


def steady(value: object) -> str:
    """Text of a value, without addresses and with sets in order."""
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))
