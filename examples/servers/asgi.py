"""An ASGI application, for uvicorn."""
import os


async def app(scope, receive, send):
    if scope['type'] != 'http':
        return
    text = 'slot=%s pid=%d generation=%s client=%s\n' % (
        os.environ['HANDFAST_SLOT'], os.getpid(), os.environ['HANDFAST_GENERATION'], scope['client'][0])
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': text.encode()})
