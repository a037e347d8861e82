#!/usr/bin/env python3
"""Writes vectors.txt: where libmemcached puts keys, for larder's ketama to agree with.

The owners are asked of libmemcached itself. For the pools on loopback, pylibmc also stores the keys on real servers, and
what each server then has must be the same. On Debian: apt-get install memcached python3-pylibmc, then

    /usr/bin/python3 vectors.py > vectors.txt
"""

import ctypes
import socket
import subprocess
import sys
import time

import pylibmc

LIBRARY = ctypes.CDLL("libmemcached.so.11")
LIBRARY.memcached_create.restype = ctypes.c_void_p
LIBRARY.memcached_server_by_key.restype = ctypes.c_void_p
LIBRARY.memcached_server_name.restype = ctypes.c_char_p
LIBRARY.memcached_server_port.restype = ctypes.c_uint16
# Of enum memcached_behavior_t.
BEHAVIORS = {"ketama": 3, "ketama_weighted": 16}

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def keys(count):
    """The keys whose owners a line tells; the test makes the same."""
    return [f"v1/käse:{n}" if n % 10 == 9 else f"v1/user:{n}" for n in range(count)]


def split(server):
    """`host`, `host:port`, `[ipv6]:port` or `/path`, each with `*weight` or without."""
    server, _, weight = server.partition("*")
    if server.startswith("/"):
        return server, 0, int(weight or 1)
    if server.startswith("["):
        host, _, port = server[1:].partition("]")
        port = port[1:]
    elif server.count(":") > 1:
        host, port = server, ""
    else:
        host, _, port = server.partition(":")
    return host, int(port or 11211), int(weight or 1)


def owners(behavior, servers, count):
    handle = ctypes.c_void_p(LIBRARY.memcached_create(None))
    check(LIBRARY.memcached_behavior_set(handle, BEHAVIORS[behavior], ctypes.c_uint64(1)))
    known = {}
    for number, server in enumerate(servers):
        host, port, weight = split(server)
        known[host, port] = number
        if host.startswith("/"):
            add = LIBRARY.memcached_server_add_unix_socket_with_weight
            check(add(handle, host.encode(), weight))
        else:
            add = LIBRARY.memcached_server_add_with_weight
            check(add(handle, host.encode(), ctypes.c_uint16(port), weight))
    found = []
    for key in keys(count):
        error = ctypes.c_int()
        text = key.encode()
        server = ctypes.c_void_p(
            LIBRARY.memcached_server_by_key(handle, text, ctypes.c_size_t(len(text)), ctypes.byref(error))
        )
        name = LIBRARY.memcached_server_name(server).decode()
        found.append(known[name, LIBRARY.memcached_server_port(server)])
    LIBRARY.memcached_free(handle)
    return found


def check(code):
    if code != 0:
        sys.exit(f"libmemcached says {code}")


def stored_by_pylibmc(behavior, servers, count):
    """Which of these servers, started for it, has each key once pylibmc has stored it."""
    places = [split(server) for server in servers]
    processes = [
        subprocess.Popen(["memcached", "-u", "root", "-U", "0", "-m", "8", "-l", host, "-p", str(port)])
        for host, port, _ in places
    ]
    try:
        for host, port, _ in places:
            until_it_answers(host, port)
        specs = [f"{host}:{port}:{weight}" for host, port, weight in places]
        client = pylibmc.Client(specs, behaviors={behavior: True})
        for key in keys(count):
            client.set(key, "x")
        lines = [socket.create_connection((host, port)).makefile("rwb") for host, port, _ in places]
        found = []
        for key in keys(count):
            has = []
            for number, line in enumerate(lines):
                line.write(b"mg " + key.encode() + b"\r\n")
                line.flush()
                if line.readline() == b"HD\r\n":
                    has.append(number)
            assert len(has) == 1, (key, has)
            found += has
        return found
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until_it_answers(host, port):
    for _ in range(1000):
        try:
            socket.create_connection((host, port)).close()
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{host}:{port} doesn't answer")


def main():
    pools = [
        (400, ["127.77.0.1", "127.77.0.2", "127.77.0.3"]),
        (400, ["127.77.0.1:21211", "127.77.0.2*2", "127.77.0.3:11212*5"]),
        (400, ["10.0.0.5", "cache-b:11212*3", "Cache-C.Example.com*2", "/run/memcached.sock"]),
        (400, ["::1", "[fe80::2]:11212", "[FE80::0:3]*2"]),
        (400, ["a*1024", "b*1536", "c*512", "d*4096"]),
        (400, [f"10.1.{n}.7" for n in range(50)]),
        (400, [f"cache-{n}:11311*{n % 5 + 1}" for n in range(20)]),
    ]
    # The number of points of each is rounded down in single precision.
    pools += [(100, [f"10.2.0.{n}" for n in range(count)]) for count in range(2, 31)]
    pools += [(100, [f"10.3.0.{n}*{n * 7 % 11 + 1}" for n in range(count)]) for count in range(2, 20)]
    print(f"# Made by vectors.py with pylibmc {pylibmc.__version__}.")
    print("# hash servers: the number of each key's server, in digits and letters.")
    for behavior in BEHAVIORS:
        for count, servers in pools:
            if behavior == "ketama":
                # It knows no weights.
                servers = [server.partition("*")[0] for server in servers]
            found = owners(behavior, servers, count)
            if servers[0].startswith("127."):
                stored = stored_by_pylibmc(behavior, servers, count)
                assert stored == found, f"{behavior} {servers}: pylibmc differs from libmemcached"
                print(f"{behavior} {servers}: pylibmc stored as said", file=sys.stderr)
            print(behavior, ",".join(servers) + ":", "".join(DIGITS[number] for number in found))


main()
