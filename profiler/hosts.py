"""Which addresses are this machine's alone. Pure: no name is looked up."""

from __future__ import annotations

import ipaddress

LOOPBACK = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this address; of names, localhost alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposed(what: str, host: str, port: int) -> str | None:
    """What to say where something listens for other machines too; None where it does not."""
    if is_loopback(host):
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{what} listens on {shown or 'all addresses'}:{port}: other machines can reach it, without a key"


def scrape_host(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return LOOPBACK if host in ("", "0.0.0.0") else f"[{host}]" if ":" in host else host
