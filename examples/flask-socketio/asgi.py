"""A python-socketio server for ASGI. The lines with generate_id are for several workers."""

import os

import socketio

sio = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(sio)

generate_id = sio.eio.generate_id
sio.eio.generate_id = lambda: f"{generate_id()}.{os.environ['HANDFAST_ROUTE']}"


@sio.on("who are you")
async def who(sid):
    return {"pid": os.getpid()}
