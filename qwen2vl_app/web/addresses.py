"""This machine's address in its network, also in one without a way out, and ports that are free."""

import ipaddress
import socket
import struct
import sys
from pathlib import Path

# Where Linux tells what belongs to an interface (netdevice(7)).
SIOCGIFADDR = 0x8915
SIOCGIFFLAGS = 0x8913
IFF_RUNNING = 0x40
NO_ADDRESS = (
    "no network address found: connect to the room's Wi-Fi (or open a hotspot), "
    "or start with --host YOUR-ADDRESS"
)


def own_address() -> str | None:
    """The IPv4 address under which other machines of the network find this one; None without."""
    towards = address_towards_the_internet()
    if towards is not None:
        return towards
    # A hotspot, or a router without internet: there is no way out, but there are neighbours.
    for address in [*interface_addresses(), *named_addresses()]:
        if is_for_others(address):
            return address
    return None


def address_towards_the_internet() -> str | None:
    """The address that a packet to the internet would be sent from; None without a way there."""
    # A datagram socket that is "connected" sends nothing, but has the address it would send from.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of the block for documentation: nobody's
        except OSError:
            return None
        address = probe.getsockname()[0]
    return address if is_for_others(address) else None


def interface_addresses() -> list[str]:
    """The addresses of the interfaces that are connected, on Linux; those of hardware first."""
    if sys.platform != "linux":
        return []
    import fcntl  # Windows has none

    hardware: list[str] = []
    virtual: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            # What the system is asked with: the name in 16 bytes, and room for its answer.
            question = struct.pack("16s24x", name.encode())
            try:
                flags = fcntl.ioctl(probe, SIOCGIFFLAGS, question)[16:18]
                answer = fcntl.ioctl(probe, SIOCGIFADDR, question)[20:24]
            except OSError:  # it has no address
                continue
            if not struct.unpack("H", flags)[0] & IFF_RUNNING:
                continue  # no cable, or a bridge of containers with nothing on it
            kind = hardware if Path("/sys/class/net", name, "device").exists() else virtual
            kind.append(socket.inet_ntoa(answer))
    return hardware + virtual


def named_addresses() -> list[str]:
    """The addresses that this machine's own name stands for: on Windows all, on macOS most."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, family=socket.AF_INET)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]


def is_for_others(address: str) -> bool:
    """Whether other machines can reach it: no loopback, and none that was made up for lack of
    one (169.254.x.x).
    """
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError if the port is taken or the host isn't this machine."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two programs share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)  # visitors who come before the server has started wait
    except OSError:
        listener.close()
        raise
    return listener


def next_free_port(host: str, port: int) -> int | None:
    """The first free port above `port`; None if none of the next hundred is."""
    for candidate in range(port + 1, min(port + 101, 65536)):
        try:
            listen(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None
