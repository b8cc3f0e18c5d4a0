'use strict';
// An Engine.IO server that is no module of its own, as far as can be seen: it gets requests of its sessions.

const http = require('http');

const server = http.createServer((req, res) => res.end('ok'));
server.listen({ port: 0, host: '127.0.0.1', exclusive: true }, async () => {
  const token = process.env.HANDFAST_ROUTE;
  for (const path of ['/?sid=other', `/?EIO=4&sid=mine.${token}`, '/?EIO=4', '/?EIO=4&sid=lost', '/?EIO=4&sid=lost']) {
    console.error(path);
    await new Promise((resolve) => http.get({ port: server.address().port, path }, (res) => res.resume().on('end', resolve)));
  }
  process.exit();
});
