"""What secrets are called, and what looks like one, by the patterns of well-kept detectors."""

from __future__ import annotations

import re

PATTERNS = (  # as of gitleaks and detect-secrets
    r"(?<!sha256:)\b[0-9a-fA-F]{32,}\b",  # Ray's tokens, Weights & Biases
    r"\beyJ[\w-]{20,}",  # JSON web tokens
    r"\bhf_[A-Za-z0-9]{30,}",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20}",
    r"\b(A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    r"\bsk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic
    r"\bAIza[\w-]{35}",
    r"\bxox[abprs]-[\w-]{10,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY",
    r"\w://[^/\s:@]*:[^/\s@]+@",  # a user and a password
    r"[?&](sig|token|access_token|api_key|password|secret|X-Amz-Signature|AccountKey)=[^&\s]",
)
NAMES = "SFT_RL_SECRETS"
"""Variable with the names of a job's secrets, commas between; all of its processes have it."""
SECRET = re.compile("|".join(PATTERNS))


def holds_secret(text: str) -> bool:
    """Whether a text holds what looks like a token, a key, or a URL with credentials."""
    return SECRET.search(text) is not None
