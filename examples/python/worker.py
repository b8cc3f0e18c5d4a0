#!/usr/bin/env python3
"""An HTTP server that runs alone, or as several workers: handfast run -- ./worker.py

It needs Python 3.9 or later and nothing else. The class Mailbox is all that a worker
needs to know of handfast (fdpass/doc.go has the whole story); any server of the
socketserver family can be fed from it as in main. Where a connection brings requests of
several clients or sessions, HandBack has each of them served where it belongs: behind a
proxy that pools its connections, say, or by handfast run --session cookie:route.
"""
import http.server
import ipaddress
import os
import select
import signal
import socket
import struct
import sys
import threading

import clients

HANDOFF, READY, LEAVE, REPORT, PING, PONG, HAND_BACK, SLOTS = 1, 2, 3, 6, 7, 8, 9, 10  # types of messages
HEADER = struct.Struct("!BBHHH")  # version, type, number of records, size of one, bytes of details
RECORD = struct.Struct("!BBH16sI")  # flags, family, port, address, scope
DETAILS = struct.Struct("!HH")  # behind it, if there are details: how many bytes, zero
COUNTS = struct.Struct("!4xQQI")  # the record of a report: open, accepted, requests that named us
NUMBER = struct.Struct("!4xII12x")  # the record of slots: how many there are, whether another worker is in ours
UNPLACED = 2  # flag: the first request may be another slot's
UNIX = 4  # flag: a Unix socket, whose peer is a trusted proxy
ROUTE = os.getenv("HANDFAST_ROUTE", "")  # the token by which sessions name us; empty: by none


class Mailbox:
    """The connections that the master hands to this process, and their clients."""

    def __init__(self, fd):
        self.socket = socket.socket(fileno=fd)
        self.socket.set_inheritable(False)
        self.reports = os.getenv("HANDFAST_REPORT") == "1"
        self.limited = self.reports and os.getenv("HANDFAST_MAX_CONNECTIONS_PER_SLOT", "0") != "0"
        self.counting = threading.Lock()
        self.open = self.accepted = self.named = 0
        self.due = None  # the report that is to be sent
        self.back = HandBack.of(self, os.environ)

    def say(self, kind, record=b"", details=b"", fds=()):
        """Sends a message, and tells whether the master has it."""
        message = HEADER.pack(1, kind, 1 if record else 0, len(record) or RECORD.size, len(details)) + record + details
        try:
            if fds and not select.select([], [self.socket], [], 1)[1]:
                return False  # it does not keep up
            socket.send_fds(self.socket, [message], fds, socket.MSG_DONTWAIT if fds else 0)
            return True
        except OSError:
            return False  # it is gone: end of file is next

    def count(self, accepted=0, closed=0, named=0):
        """Is told of connections, and of requests that name us, and reports them within a second. A
        master that limits connections hears at once of those that are closed."""
        with self.counting:
            self.accepted += accepted
            self.open += accepted - closed
            self.named += named
            if self.limited and closed:
                self.report()
            elif self.reports and not self.due:
                self.due = threading.Timer(1, self.report_due)
                self.due.daemon = True
                self.due.start()

    def report(self):
        return self.say(REPORT, COUNTS.pack(self.open, self.accepted, self.named & 0xFFFFFFFF))

    def report_due(self):
        with self.counting:
            self.due = None
            self.report()

    def drain(self):
        """Is told that those between two requests are to go back now."""
        if self.back:
            os.write(self.back.drained, b"x")

    def __iter__(self):
        """Yields connections until the master wants no more served."""
        if self.reports:
            self.report()  # before READY: we report
        if os.getenv("HANDFAST_PING") == "1":
            self.say(PONG)  # and answer pings
        if self.back:
            self.say(HAND_BACK)  # and hand back
        self.say(READY)
        while True:
            data, fds, _, _ = socket.recv_fds(self.socket, 8192, 64, socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            arrived = [socket.socket(fileno=fd) for fd in fds]
            version, kind, count, size, details = HEADER.unpack_from(data)
            if version != 1 or len(data) != HEADER.size + count * size + details:
                raise ValueError("the master speaks another protocol")
            if kind == PING:
                self.say(PONG)  # from here, where connections are taken
            if kind == SLOTS and self.back:
                self.back.resize(*NUMBER.unpack_from(data, HEADER.size))
            if kind == HANDOFF:
                self.count(count, count - len(arrived))  # some may have found no room
                yield from self.connections(data, arrived)
            else:
                for connection in arrived:
                    connection.close()  # of a later version

    def connections(self, data, arrived):
        """Yields those of a handoff, each with what the master says of it."""
        _, _, count, size, details = HEADER.unpack_from(data)
        at = HEADER.size + count * size  # details of the next one
        for i, received in enumerate(arrived):
            begin = HEADER.size + i * size
            length = DETAILS.unpack_from(data, begin + RECORD.size)[0] if details else 0
            record = data[begin:begin + RECORD.size]
            yield Connection(received.detach(), record, data[at:at + length], self.back)
            at += length


class Connection(socket.socket):
    """A connection that was handed off, and what came with it."""

    def __init__(self, fd, record, details, back):
        super().__init__(fileno=fd)
        self.setblocking(True)  # it comes as the master had it
        self.record, self.details = record, details
        self.flags, family, self.port, raw, self.scope = RECORD.unpack(record)
        self.address = clients.address(raw if family == 6 else raw[:4]) if family else clients.UNIX if self.flags & UNIX else None
        self.back = back if back and back.looks_at(self) else None  # None: it stays here

    @property
    def client(self):
        """(address, port); ("", 0) if it is unknown."""
        text = str(self.address or "")
        return (f"{text}%{self.scope}" if self.scope else text), self.port


class HandBack:
    """Hands connections back between two requests: those whose next request belongs to another
    worker, and all when this one drains."""

    def __init__(self, mailbox, env):
        self.mailbox = mailbox
        self.clients = clients.Clients(env)
        self.slot, self.slots = int(env["HANDFAST_SLOT"]), int(env["HANDFAST_SLOTS"])
        self.replaced = False  # by another worker: only requests that name us are ours
        self.adopted = set()  # tokens of workers that are no more, whose requests the master brings us
        own = env.get("HANDFAST_SLOT_ADDRESS")
        self.own = ipaddress.ip_network(own) if own else []
        self.drains, self.drained = os.pipe()  # something is in it when the worker drains

    @classmethod
    def of(cls, mailbox, env):
        """None, if the master takes nothing back, or we cannot read where requests belong."""
        if env.get("HANDFAST_HAND_BACK") != "1":
            return None
        back = cls(mailbox, env)
        return back if back.clients.known else None

    def looks_at(self, connection):
        """Tells whether requests on a connection may belong to several workers."""
        if not connection.address or not self.clients.matter(connection.address):
            return False
        return connection.family == socket.AF_UNIX or clients.address(connection.getsockname()[0]) not in self.own

    def resize(self, slots, replaced):
        self.adopted = set()  # they may be another slot's now
        self.slots, self.replaced = slots, replaced != 0

    def await_request(self, connection, seconds):
        """Waits for the next request, and tells whether it is to be served here. If not, the
        connection is the master's now, or it was silent for too long."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.register(self.drains, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(1000 * seconds)]
        if not ready:
            return False
        if self.slots == 0 or self.drains not in ready and self.is_ours(connection):
            return True
        if self.give(connection):
            connection.close()  # not shut down
            return False
        connection.back = None
        return True

    def is_ours(self, connection):
        """Tells whether a request that has come is to be served here."""
        request = self.peek(connection)
        if request in (None, -1):
            return request == -1
        for token in request.tokens:
            if token == ROUTE.encode():
                self.mailbox.count(named=1)
                return True
            if token not in self.adopted:
                return False
        return not self.replaced and (bool(request.tokens) or request.slot in (self.slot, None))

    def adopt(self, connection):
        """Notes the workers that a request names which the master has brought: they are no more."""
        request = self.peek(connection) if self.clients.sessions else -1
        if request not in (None, -1) and ROUTE.encode() not in request.tokens:
            self.adopted = (self.adopted if len(self.adopted) < 4096 else set()) | set(request.tokens)

    def peek(self, connection):
        """The clients.Request that has come; None: not all of it; -1: it is none."""
        data = connection.recv(65536, socket.MSG_PEEK)
        # At end of file, and when it speaks something else, the server knows what to do.
        return self.clients.read(connection.address, data, self.slots) if data else -1

    def give(self, connection):
        record, details = connection.record, connection.details
        if details:
            record += DETAILS.pack(len(details), 0)
        return self.mailbox.say(HAND_BACK, record, details, [connection.fileno()])


class Reader(socket.SocketIO):
    """Reads from a socket no more than it is asked for: the next request stays there. read may
    return less."""

    def __init__(self, connection):
        super().__init__(connection, "r")
        self.connection = connection

    def peek(self, _):
        """Is for readline, which would read byte by byte."""
        return self.connection.recv(8192, socket.MSG_PEEK)


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
    idle = 120  # seconds that a proxy may leave a connection in its pool; a drain takes no longer for it
    draining = False

    def setup(self):
        super().setup()
        self.rfile.close()
        self.rfile = Reader(self.connection)
        # The first request is the master's word, unless that has seen nothing of it.
        self.expecting = getattr(self.connection, "flags", 0) & UNPLACED

    @property
    def back(self):
        """None, if the connection stays here."""
        return getattr(self.connection, "back", None)

    def handle_one_request(self):
        if self.back and not self.expecting:
            self.back.adopt(self.connection)
        elif self.back and not self.back.await_request(self.connection, self.idle):
            self.close_connection = True
            return
        self.expecting = True
        super().handle_one_request()

    def stays_open(self):
        """Tells whether there may be another request, with us or another worker."""
        # Nobody reads a body: it would be the next request, with any client in it.
        has_body = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        return not has_body and (not self.draining or self.back and self.back.slots > 0)

    def do_GET(self):
        slot, generation = os.getenv("HANDFAST_SLOT", "0"), os.getenv("HANDFAST_GENERATION", "0")
        text = f"slot={slot} pid={os.getpid()} generation={generation} client={self.client_address[0]}\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        if ROUTE and ROUTE not in self.headers.get("Cookie", ""):  # a session of any kind is with us from now on
            self.send_header("Set-Cookie", f"route={ROUTE}; Path=/; HttpOnly; SameSite=Lax")
        if not self.stays_open():
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

    mailbox = server.mailbox = Mailbox(int(fd))

    def leave(*_):  # SIGTERM: take no more than what is on its way; a second time: stop
        if Handler.draining:
            os._exit(1)
        Handler.draining = True
        mailbox.say(LEAVE)
        mailbox.drain()

    signal.signal(signal.SIGTERM, leave)
    for connection in mailbox:
        server.process_request(connection, connection.client)
    Handler.draining = True
    mailbox.drain()
    server.server_close()


if __name__ == "__main__":
    main()
