"""Socket.IO clients that poll. In a round each asks who its worker is; then a line says how many have which
worker, and how many sessions had to be begun anew so far.

    python3 clients.py http://127.0.0.1:5000 [CLIENTS [ROUNDS]]
"""

import json
import sys
import time
from collections import Counter

import socketio

url, clients, rounds = (sys.argv[1:] + ["20", "3"][len(sys.argv) - 2 :])[:3]
PATIENCE = 120  # seconds, for what takes a fraction of one


class Client:
    def __init__(self):
        self.sessions = 0
        self.socket = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=1, request_timeout=PATIENCE)
        self.socket.on("connect", self.begins)
        self.socket.connect(url, transports=["polling"], wait_timeout=PATIENCE)

    def begins(self):
        self.sessions += 1

    def ask(self):
        try:
            return self.socket.call("who are you", timeout=PATIENCE)["pid"]
        except socketio.exceptions.SocketIOError as err:
            return type(err).__name__


everybody = [Client() for _ in range(int(clients))]
done = 0
while done < float(rounds):
    done += 1
    workers = Counter(client.ask() for client in everybody)
    reconnects = sum(client.sessions - 1 for client in everybody)
    print(json.dumps({"round": done, "reconnects": reconnects, "workers": workers}), flush=True)
    time.sleep(0.1)
for client in everybody:
    client.socket.disconnect()
