"""The network of a node: how another one is reached, and by which interface. No name but the other's is looked up."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
import time
from pathlib import Path

from runner.inside.refusal import Refused

LOOPBACK = "127.0.0.1"
# linux/sockios.h
_SIOCGIFADDR = 0x8915
_IFREQ_BYTES = 40
_NAME_BYTES = 15
_ADDRESS_AT = 20
_TRY_S = 5.0
_PAUSE_S = 0.2
_ANY_PORT = 9


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def reached(address: str, port: int, patience_s: float) -> None:
    """Return as soon as something listens there. Raises OSError after patience_s; a name may be late, too."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with socket.create_connection((address, port), timeout=_TRY_S):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def own_address(other: str) -> str:
    """Return this machine's address on the way to another, which is sent nothing. Raises Refused."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(other, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError as error:
        raise Refused(f"there is no way to {other}: {error.strerror or error}") from None


def interface_of(address: str) -> str:
    """Return the name of the interface that has an address. Raises Refused."""
    for _, name in socket.if_nameindex():
        if address == _address_of(name):
            return name
    found = _interfaces_v6().get(ipaddress.ip_address(address).packed)
    if found is None:
        raise Refused(f"no network interface here has the address {address}")
    return found


def _address_of(name: str) -> str | None:
    """Return the IPv4 address of an interface, None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            request = struct.pack(f"{_IFREQ_BYTES}s", name.encode()[:_NAME_BYTES])
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[_ADDRESS_AT : _ADDRESS_AT + 4])


def _interfaces_v6() -> dict[bytes, str]:
    """Return the interfaces by their IPv6 addresses."""
    try:
        rows = [line.split() for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {bytes.fromhex(row[0]): row[-1] for row in rows}
