"""Ports that stay ours, and the address that others reach us at."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import zmq

from llumnix import hosts
from llumnix.cluster import ports
from llumnix.cluster.ports import listen_for_admin, numeric, own_address, reserve_ports
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


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_what_can_be_no_name_of_a_host_is_told(host: str) -> None:
    with pytest.raises(UsageError, match=rf"^--cluster-address {host} is not known: no name of a host is like that\.$"):
        numeric(host)


@pytest.mark.parametrize(
    ("address", "parts"), [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("[fd00::1]:6379", ("fd00::1", 6379))]
)
def test_address_of_the_head_is_taken_apart(address: str, parts: tuple[str, int]) -> None:
    assert hosts.split(address) == parts
    assert f"{hosts.bracketed(parts[0])}:{parts[1]}" == address


@pytest.mark.parametrize("address", ["auto", ":6379", "head:", "head:x", "head:65536", f"head:{'9' * 30}"])
def test_what_names_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        hosts.split(address)


def test_cluster_made_on_the_spot_needs_no_network() -> None:
    assert own_address("") == "127.0.0.1"


class Routes:
    """A machine that has ways to some hosts: they are known by the address that it has on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ways: dict[str, str]) -> None:
        addresses = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.168.5.2", "fe80::1%eth0"]}
        self.addresses = addresses
        monkeypatch.setattr(ports, "_own_ends_of", lambda host: [ways[host]] if host in ways else [])
        monkeypatch.setattr(psutil, "net_if_addrs", self._interfaces)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def _interfaces(self) -> dict[str, list[SimpleNamespace]]:
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return {
            name: [SimpleNamespace(address=each, family=families[":" in each]) for each in addresses]
            for name, addresses in self.addresses.items()
        }


def test_without_a_default_route_auto_takes_the_way_to_the_head_that_ray_has_joined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Routes(monkeypatch, {"192.168.5.1": "192.168.5.2", "head": "192.168.5.3"})
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("192.168.5.1:6379\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert own_address("auto") == "192.168.5.2"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # which Ray prefers
    assert own_address("auto") == "192.168.5.3"


@pytest.mark.parametrize("ray_address", ["auto", "127.0.0.1:6379", "nobody:6379"])
def test_an_address_that_no_route_tells_is_asked_for_rather_than_guessed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_address: str
) -> None:
    machine = Routes(monkeypatch, {"127.0.0.1": "127.0.0.1"})
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UsageError, match="name it with --cluster-address"):
        own_address(ray_address)
    machine.addresses["eth0"].remove("192.168.5.2")
    assert own_address(ray_address) == "127.0.0.1"  # there is nobody else


def test_a_head_on_this_machine_has_the_way_to_anywhere_of_either_family(monkeypatch: pytest.MonkeyPatch) -> None:
    Routes(monkeypatch, {"127.0.0.1": "127.0.0.1", "2001:db8::1": "fd00::2"})
    assert own_address("127.0.0.1:6379") == "fd00::2"


def test_own_address_is_one_that_can_be_listened_on() -> None:
    for ray_address in ("auto", "127.0.0.1:6379", "10.255.0.1:6379"):
        (held,) = reserve_ports(own_address(ray_address), 1)
        held.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_admin_port_on_every_address_is_there_for_both_families_as_the_other_port_is() -> None:
    with socket.socket(socket.AF_INET6) as other:
        usual = other.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    (held,) = reserve_ports("127.0.0.1", 1)
    port = held.getsockname()[1]
    held.close()
    sock = listen_for_admin("::", port)
    assert sock is not None
    with sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == usual
        if not usual:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_admin_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^The admin port {port} cannot be opened: address already in use\.$"):
            listen_for_admin("127.0.0.1", port)
    assert listen_for_admin("127.0.0.1", 0) is None
