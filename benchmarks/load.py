"""A load generator that costs little: keep-alive connections over raw sockets, in a process of its
own.

It reads one line of JSON for each job, `{"port": ..., "path": ..., "connections": ..., "requests":
...}`, and answers with the nanoseconds that the job took, from the first byte sent to the last one
received. It goes on to the next line, so a run starts one interpreter only, and ends when its
standard input does.

All connections send, then all are read: the server always has the next requests waiting, and a
request costs this side two system calls. Responses are recognised by their length, which the first
response of a connection shows; that fits servers that answer the same request with the same number
of bytes each time.
"""

from __future__ import annotations

import json
import socket
import sys
from time import perf_counter_ns

TIMEOUT_SECONDS = 30.0


def main() -> None:
    for line in sys.stdin:
        print(load(**json.loads(line)), flush=True)


def load(*, port: int, path: str, connections: int, requests: int) -> int:
    """Make `requests` requests over `connections` connections and return the nanoseconds they took.

    The first request of each connection is not among them: it opens the connection and tells the
    length of a response.

    :raises RuntimeError: a response is not a 200, or not as long as the first.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: benchmark\r\nAccept: */*\r\n\r\n".encode()
    opened: list[socket.socket] = []
    try:
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.append(connection)
        length = 0
        for connection in opened:
            connection.sendall(request)
            length = first_length(connection)
        began = perf_counter_ns()
        for _ in range(requests // connections):
            for connection in opened:
                connection.sendall(request)
            for connection in opened:
                answer = connection.recv(65536)
                while len(answer) < length:
                    more = connection.recv(65536)
                    if not more:
                        raise RuntimeError(
                            f"The server on port {port} closed a connection in the middle of a response."
                        )
                    answer += more
                if len(answer) > length or not answer.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(
                        f"The server on port {port} changed its answer to {answer[:200]!r}."
                    )
        return perf_counter_ns() - began
    finally:
        for connection in opened:
            connection.close()


def first_length(connection: socket.socket) -> int:
    """Read one response to its end, by its Content-Length, and return how long it was."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = connection.recv(65536)
        if not more:
            raise RuntimeError(f"The server closed the connection after {answer[:200]!r}.")
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            missing = int(value) - len(body)
            break
    else:
        raise RuntimeError(f"The response has no Content-Length: {head[:200]!r}.")
    while missing > 0:
        more = connection.recv(65536)
        if not more:
            raise RuntimeError("The server closed the connection in the middle of a response.")
        answer += more
        missing -= len(more)
    return len(answer)


if __name__ == "__main__":
    main()
