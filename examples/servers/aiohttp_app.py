"""An aiohttp application with its own server, which finishes requests on SIGTERM."""
import os
import sys

from aiohttp import web


async def who(request):
    return web.Response(text='slot=%s pid=%d generation=%s client=%s\n' % (
        os.environ['HANDFAST_SLOT'], os.getpid(), os.environ['HANDFAST_GENERATION'], request.remote))


app = web.Application()
app.router.add_get('/{any:.*}', who)
web.run_app(app, host='0.0.0.0', port=int(sys.argv[1]), print=None, access_log=None)
