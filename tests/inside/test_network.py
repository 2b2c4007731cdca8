"""How another node is reached: addresses and interfaces, as this machine's kernel tells them."""

import socket
import threading
from pathlib import Path

import pytest

from runner.inside.network import LOOPBACK, free_port, interface_of, own_address, reached
from runner.inside.refusal import Refused


def addresses() -> dict[str, str]:
    """Return this machine's IPv6 addresses, as the kernel spells them, and their interfaces."""
    rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0])): row[-1] for row in rows}


@pytest.mark.parametrize("master", [LOOPBACK, "127.0.0.2", "localhost"])
def test_a_master_on_loopback_is_reached_by_loopback(master: str) -> None:
    assert own_address(master) == LOOPBACK
    assert interface_of(LOOPBACK) == "lo"


def test_every_address_of_this_machine_is_reached_from_itself_by_its_own_interface() -> None:
    for address, name in addresses().items():
        if not address.startswith("fe80"):  # means nothing without an interface
            assert own_address(address) == address
            assert interface_of(address) == name


def test_an_address_that_no_interface_has_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        interface_of("192.0.2.1")
    assert str(refused.value) == "error: no network interface here has the address 192.0.2.1"


def test_a_name_that_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        own_address("node-0.invalid")
    assert str(refused.value).startswith("error: there is no way to node-0.invalid: ")


def test_one_that_listens_late_is_reached() -> None:
    port = free_port()
    waiting = threading.Thread(target=reached, args=(LOOPBACK, port, 60))
    waiting.start()
    with socket.create_server((LOOPBACK, port)):
        waiting.join(60)
    assert not waiting.is_alive()


def test_one_that_never_listens_is_given_up() -> None:
    with pytest.raises(ConnectionRefusedError):
        reached(LOOPBACK, free_port(), 0.1)
