'use strict';
// A Socket.IO server as one writes it for several workers of Node's cluster module: it
// listens on its port, and an adapter joins it to the other workers.

const http = require('http');
const { Server } = require('socket.io');
const { createAdapter } = require('@socket.io/cluster-adapter');
const { createAdapter: createRedisAdapter } = require('@socket.io/redis-adapter');
const { createClient } = require('redis');
const app = require('./app');

const { PORT = 3000, HOST, REDIS_URL } = process.env;

async function main() {
  const server = http.createServer();
  const io = new Server(server);
  const redis = REDIS_URL ? await connect() : [];
  io.adapter(REDIS_URL ? createRedisAdapter(...redis) : createAdapter());
  app(io);
  server.listen(PORT, HOST);
  server.once('close', async () => { // with its last connection; nothing else may keep the process
    await io.close();
    for (const client of redis) client.close();
  });
}

async function connect() {
  const pub = createClient({ url: REDIS_URL });
  const sub = pub.duplicate();
  for (const client of [pub, sub]) client.on('error', (err) => console.error('redis:', err.message));
  return Promise.all([pub.connect(), sub.connect()]);
}

main();
