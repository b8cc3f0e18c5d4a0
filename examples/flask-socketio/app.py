"""A Flask-SocketIO server. The lines with generate_id are for several workers."""

import os

from flask import Flask, request
from flask_socketio import SocketIO

app = Flask(__name__)
# ping_timeout: seconds, in place of 20: a busy machine is late now and then.
socketio = SocketIO(app, async_mode=os.environ.get("ASYNC_MODE", "threading"), ping_timeout=60)

generate_id = socketio.server.eio.generate_id
socketio.server.eio.generate_id = lambda: f"{generate_id()}.{os.environ['HANDFAST_ROUTE']}"


@socketio.on("who are you")
def who():
    return {"pid": os.getpid(), "client": request.headers.get("X-Forwarded-For", request.remote_addr)}
