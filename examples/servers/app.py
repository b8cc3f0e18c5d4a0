"""A WSGI application, for gunicorn."""
import os


def app(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain')])
    text = 'slot=%s pid=%d generation=%s client=%s\n' % (
        os.environ['HANDFAST_SLOT'], os.getpid(), os.environ['HANDFAST_GENERATION'], environ['REMOTE_ADDR'])
    return [text.encode()]
