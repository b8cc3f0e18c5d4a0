"""A python-socketio server for ASGI. The lines with generate_id, and app, are for several workers."""

import os

import socketio

sio = socketio.AsyncServer(async_mode="asgi", ping_timeout=60)  # seconds, in place of 20: a busy machine is late now and then
sessions = socketio.ASGIApp(sio)

generate_id = sio.eio.generate_id
sio.eio.generate_id = lambda: f"{generate_id()}.{os.environ['HANDFAST_ROUTE']}"


@sio.on("who are you")
async def who(sid):
    environ = sio.get_environ(sid)
    return {"pid": os.getpid(), "client": environ.get("HTTP_X_FORWARDED_FOR", environ["asgi.scope"]["client"][0])}


async def app(scope, receive, send):
    """Has the connection closed after each answer: the first request on a connection chooses the worker of all."""

    async def close(message):
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    await sessions(scope, receive, close)
