"""Texts that look like a password or a token; it must not know where they were found."""

import re

HIDDEN = "(hidden)"

_SECRETS = re.compile(
    r"""
    (?<=://)[^/@\s'"]+(?=@)                      # https://USER:PASSWORD@host
    | \bhf_[A-Za-z0-9]{20,}                      # Hugging Face
    | \b(?:api_org|sk|rk|pk)[_-][A-Za-z0-9_-]{20,}
    | \bgh[opsur]_[A-Za-z0-9]{20,}               # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_-]{16,}                 # GitLab
    | \bwandb_v\d_[A-Za-z0-9_]{20,}
    | \bAKIA[0-9A-Z]{16}\b                       # Amazon
    | \bxox[abprs]-[A-Za-z0-9-]{10,}             # Slack
    | \beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+        # a JSON web token
    """,
    re.VERBOSE,
)


def has_secret(text: str) -> bool:
    """Whether a part of the text looks like a secret."""
    return _SECRETS.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with all that looks like a secret replaced, for messages."""
    return _SECRETS.sub(HIDDEN, text)
