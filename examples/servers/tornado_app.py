"""A Tornado application with its own server. SIGTERM ends it at once, as Tornado does by itself."""
import asyncio
import os
import sys

import tornado.web


class Who(tornado.web.RequestHandler):
    def get(self):
        self.write('slot=%s pid=%d generation=%s client=%s\n' % (
            os.environ['HANDFAST_SLOT'], os.getpid(), os.environ['HANDFAST_GENERATION'], self.request.remote_ip))


async def main():
    tornado.web.Application([('/.*', Who)]).listen(int(sys.argv[1]), '0.0.0.0')
    await asyncio.Event().wait()


asyncio.run(main())
