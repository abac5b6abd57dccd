"""Quotas as the providers tell of them: headers on every response, and the 429 that refuses. Pure."""

from __future__ import annotations

import math
import time

from profiler.emulator.conversation import ApiError
from profiler.emulator.quota import KeyQuota, Refusal

ORGANIZATION = "org-emulator"

# What a scenario without quotas announces: limits that nobody meets.
UNLIMITED: dict[str, bytes] = {
    "openai": (
        b"x-ratelimit-limit-requests: 1000000\r\nx-ratelimit-limit-tokens: 1000000000\r\n"
        b"x-ratelimit-remaining-requests: 999999\r\nx-ratelimit-remaining-tokens: 999999000\r\n"
        b"x-ratelimit-reset-requests: 0s\r\nx-ratelimit-reset-tokens: 0s\r\n"
    ),
    "anthropic": b"",
}


def headers(provider: str, quota: KeyQuota, now_ns: int, wall: float) -> bytes:
    """The header lines for the state of `quota`; `wall` is the Unix time of `now_ns`."""
    lines = []
    for bucket in quota.buckets:
        remaining, reset_ns = int(bucket.level(now_ns)), bucket.reset_ns()
        if provider == "openai":
            lines.append(
                f"x-ratelimit-limit-{bucket.resource}: {round(bucket.stated)}\r\n"
                f"x-ratelimit-remaining-{bucket.resource}: {max(0, remaining)}\r\n"
                f"x-ratelimit-reset-{bucket.resource}: {go_duration(reset_ns)}\r\n"
            )
        else:
            name = f"anthropic-ratelimit-{bucket.resource}"
            lines.append(
                f"{name}-limit: {round(bucket.stated)}\r\n{name}-remaining: {max(0, remaining)}\r\n"
                f"{name}-reset: {rfc3339(wall + reset_ns / 1e9)}\r\n"
            )
    if provider == "anthropic" and (split := [b for b in quota.buckets if b.resource.endswith("tokens")]):
        limit = sum(round(bucket.stated) for bucket in split)
        remaining = sum(max(0, int(bucket.level(now_ns))) for bucket in split)
        reset = rfc3339(wall + max(bucket.reset_ns() for bucket in split) / 1e9)
        name = "anthropic-ratelimit-tokens"
        lines.append(f"{name}-limit: {limit}\r\n{name}-remaining: {remaining}\r\n{name}-reset: {reset}\r\n")
    return "".join(lines).encode()


def refusal_error(provider: str, refusal: Refusal, model: str) -> ApiError:
    """The provider's 429 for `refusal`."""
    if provider == "openai":
        kind, unit = {
            "requests": ("requests", "requests per min (RPM)"),
            "tokens": ("tokens", "tokens per min (TPM)"),
        }.get(refusal.resource, ("requests", "concurrent requests"))
        return ApiError(
            f"Rate limit reached for {model} in organization {ORGANIZATION} on {unit}: Limit"
            f" {round(refusal.limit)}, Used {math.ceil(refusal.used)}, Requested {int(refusal.requested)}."
            f" Please try again in {go_duration(refusal.retry_ns)}. Visit"
            " https://platform.openai.com/account/rate-limits to learn more.",
            status=429,
            kind=kind,
            code="rate_limit_exceeded",
        )
    if refusal.resource == "concurrent":
        message = (
            "Number of concurrent connections has exceeded your rate limit. Please try again later or contact"
            " sales at https://www.anthropic.com/contact-sales to discuss your options for a rate limit"
            " increase."
        )
    else:
        message = (
            f"This request would exceed your organization's rate limit of {round(refusal.limit):,}"
            f" {refusal.resource.replace('-', ' ')} per minute (org: {ORGANIZATION}, model: {model}). For"
            " details, refer to: https://docs.claude.com/en/api/rate-limits."
        )
    return ApiError(message, status=429, kind="rate_limit_error")


def retry_headers(provider: str, retry_ns: int) -> bytes:
    """`retry-after` in whole seconds, for OpenAI also `retry-after-ms`; both rounded up."""
    seconds = -(-retry_ns // 1_000_000_000)
    line = b"retry-after: %d\r\n" % seconds
    if provider == "openai":
        line += b"retry-after-ms: %d\r\n" % -(-retry_ns // 1_000_000)
    return line


def go_duration(ns: int) -> str:
    """A duration as OpenAI writes it: 2ms, 3.89s, 1m12s."""
    if ns <= 0:
        return "0s"
    if ns < 1_000_000_000:
        return f"{-(-ns // 1_000_000)}ms"
    seconds = ns / 1e9
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{whole % 60}s"


def rfc3339(wall: float) -> str:
    """Unix time as RFC 3339 in UTC, to the second, rounded up."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(-(-wall // 1))))
