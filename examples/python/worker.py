#!/usr/bin/env python3
"""An HTTP server that runs alone, or as several workers: handfast run -- ./worker.py

It needs Python 3.9 or later and nothing else. The class Mailbox is all that a worker
needs to know of handfast (fdpass/doc.go has the whole story); any server of the
socketserver family can be fed from it as in main.
"""
import http.server
import ipaddress
import os
import signal
import socket
import struct
import sys
import threading

HANDOFF, READY, LEAVE, REPORT, PING, PONG = 1, 2, 3, 6, 7, 8  # types of messages
HEADER = struct.Struct("!BBHHH")  # version, type, number of records, size of one, zero
RECORD = struct.Struct("!BBH16sI")  # flags, family, port, address, scope
COUNTS = struct.Struct("!4xQQ4x")  # the record of a report: open, accepted


class Mailbox:
    """The connections that the master hands to this process, and their clients."""

    def __init__(self, fd):
        self.socket = socket.socket(fileno=fd)
        self.socket.set_inheritable(False)
        self.limited = os.getenv("HANDFAST_MAX_CONNECTIONS_PER_SLOT", "0") != "0"
        self.counting = threading.Lock()
        self.open = self.accepted = 0

    def say(self, kind, record=b""):
        try:
            self.socket.send(HEADER.pack(1, kind, 1 if record else 0, RECORD.size, 0) + record)
        except OSError:
            pass  # the master is gone: end of file is next

    def count(self, accepted=0, closed=0):
        """Is told of connections. A master that limits them hears of those that are closed."""
        with self.counting:
            self.accepted += accepted
            self.open += accepted - closed
            if self.limited and (closed or not accepted):
                self.say(REPORT, COUNTS.pack(self.open, self.accepted))

    def __iter__(self):
        """Yields (socket, (address, port)) until the master wants no more served."""
        self.count()  # before READY: we report
        if os.getenv("HANDFAST_PING") == "1":
            self.say(PONG)  # and answer pings
        self.say(READY)
        while True:
            data, fds, _, _ = socket.recv_fds(self.socket, 4096, 64, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            connections = [socket.socket(fileno=fd) for fd in fds]
            version, kind, count, size, _ = HEADER.unpack_from(data)
            if version != 1 or len(data) != HEADER.size + count * size:
                raise ValueError("the master speaks another protocol")
            if kind == PING:
                self.say(PONG)  # from here, where connections are taken
            if kind == HANDOFF:
                self.count(count, count - len(connections))  # some may have found no room
            for i, connection in enumerate(connections):
                if kind == HANDOFF:
                    connection.setblocking(True)  # it comes as the master had it
                    yield connection, self.client(data, HEADER.size + i * size)
                else:
                    connection.close()  # of a later version

    @staticmethod
    def client(data, offset):
        _, family, port, address, scope = RECORD.unpack_from(data, offset)
        if family == 0:
            return "", 0  # unknown
        ip = str(ipaddress.ip_address(address if family == 6 else address[:4]))
        return (f"{ip}%{scope}" if scope else ip), port


class Server(http.server.ThreadingHTTPServer):
    mailbox = None
    daemon_threads = False  # server_close waits for them

    def shutdown_request(self, request):
        super().shutdown_request(request)
        if self.mailbox:
            self.mailbox.count(closed=1)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    timeout = 10  # seconds that a client may be silent; a drain takes as long
    draining = False

    def do_GET(self):
        slot, generation = os.getenv("HANDFAST_SLOT", "0"), os.getenv("HANDFAST_GENERATION", "0")
        text = f"slot={slot} pid={os.getpid()} generation={generation} client={self.client_address[0]}\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        if self.draining:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


def main():
    fd = os.environ.pop("HANDFAST_FD", None)  # not for processes that we start
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    server = Server(("", port), Handler, bind_and_activate=fd is None)
    if fd is None:
        print("listening on port", server.server_port, flush=True)
        server.serve_forever()

    def leave(*_):  # SIGTERM: take no more than what is on its way; a second time: stop
        if Handler.draining:
            os._exit(1)
        Handler.draining = True
        mailbox.say(LEAVE)

    mailbox = server.mailbox = Mailbox(int(fd))
    signal.signal(signal.SIGTERM, leave)
    for connection, client in mailbox:
        server.process_request(connection, client)
    Handler.draining = True
    server.server_close()


if __name__ == "__main__":
    main()
