"""URLs with credentials in them, as people paste them."""

import re
from urllib.parse import unquote


def is_clear(url: str) -> bool:
    """Whether all of ``url`` can be shown, and nothing but %-encoding tells where its password ends.

    Where it does not, readers differ: one takes for the host, which errors name, what another takes for the
    end of the password.
    """
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    unique = authority.count("@") <= 1 and "@" not in rest[len(authority) :]
    return unique and url.isprintable() and "\0" not in unquote(url)
