"""The one exception for what a user can mend, and how programs end on it."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what is required, what arrived and what to do.

    Programs print it as one line on stderr and exit with code 2; in Python it is a `ValueError`.
    """
