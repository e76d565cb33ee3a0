"""Ports of a node that are kept for gangs, and how they are told."""

import socket

import pytest

from mgpu_nb.cluster.messages import pack_ports, unpack_ports
from mgpu_nb.cluster.ports import KeptPorts
from mgpu_nb.engines.protocol import ProtocolError

LOOPBACK = "127.0.0.1"


def test_a_kept_port_is_nobody_elses_and_does_not_listen() -> None:
    kept = KeptPorts(LOOPBACK, 3)
    assert len(set(kept.ports)) == 3
    with pytest.raises(OSError, match="in use"):
        socket.create_server((LOOPBACK, kept.ports[0]))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, kept.ports[0]), timeout=5)
    with socket.create_server((LOOPBACK, kept.ports[0]), reuse_port=True):
        socket.create_connection((LOOPBACK, kept.ports[0]), timeout=5).close()
    kept.close()
    kept.close()
    socket.create_server((LOOPBACK, kept.ports[1])).close()


def test_ports_of_an_address_of_another_machine_cannot_be_kept() -> None:
    with pytest.raises(OSError, match="assign"):
        KeptPorts("192.0.2.1", 1)


def test_ports_are_told_with_their_address() -> None:
    assert unpack_ports(pack_ports("10.0.0.1", (4, 5)), 2) == ("10.0.0.1", (4, 5))
    assert unpack_ports(b"", 2) == ("", ())


@pytest.mark.parametrize(
    "packed",
    [
        b"{}",
        b"[]",
        b"[1, 2, 3]",
        b'["a", 2]',
        b'["a", 2, 3, 4]',
        b'["a", 2, "3"]',
        b'["a", 2, true]',
        b"\xff",
    ],
)
def test_what_is_no_ports_is_refused(packed: bytes) -> None:
    with pytest.raises(ProtocolError, match="ports of a node"):
        unpack_ports(packed, 2)
