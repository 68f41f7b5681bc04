"""Ports that stay ours, and the address that others reach us at."""

from __future__ import annotations

import socket

import pytest
import zmq

from llumnix.cluster.ports import numeric, own_address, reserve_ports, split_address
from llumnix.errors import UsageError


def test_zeromq_listens_on_a_reserved_port_again_and_again() -> None:
    (held,) = reserve_ports("127.0.0.1", 1)
    address = f"tcp://127.0.0.1:{held.getsockname()[1]}"
    for _ in range(3):  # as a process that is restarted
        with zmq.Context() as context, context.socket(zmq.PULL) as reader, context.socket(zmq.PUSH) as writer:
            reader.bind(address)
            writer.connect(address)
            writer.send(b"heard")
            assert reader.poll(5000)
            assert reader.recv() == b"heard"
    held.close()


def test_reserved_ports_are_given_to_nobody_else() -> None:
    held = reserve_ports("127.0.0.1", 50)
    ports = {sock.getsockname()[1] for sock in held}
    assert len(ports) == 50
    probes = [socket.socket() for _ in range(200)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    assert ports.isdisjoint(probe.getsockname()[1] for probe in probes)
    for sock in (*held, *probes):
        sock.close()


def test_address_of_another_machine_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.77 is not an address of this machine"):
        reserve_ports("192.0.2.77", 5)


def test_name_of_a_machine_becomes_its_number() -> None:
    assert numeric("127.0.0.1") == "127.0.0.1"
    assert numeric("localhost") in ("127.0.0.1", "::1")
    with pytest.raises(UsageError, match=r"--cluster-address no\.such\.name\.invalid is not known"):
        numeric("no.such.name.invalid")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("[fd00::1]:6379", ("fd00::1", 6379)), ("auto", ("auto", 0))],
)
def test_address_of_the_head_is_taken_apart(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_cluster_made_on_the_spot_needs_no_network() -> None:
    assert own_address("") == "127.0.0.1"


def test_own_address_is_one_that_can_be_listened_on() -> None:
    for ray_address in ("auto", "127.0.0.1:6379", "10.255.0.1:6379"):
        (held,) = reserve_ports(own_address(ray_address), 1)
        held.close()
