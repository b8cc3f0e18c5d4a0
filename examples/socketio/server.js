'use strict';
// A Socket.IO server as one writes it for several workers of Node's cluster module: it
// listens on its port, and an adapter joins it to the other workers.

const http = require('http');
const { Server } = require('socket.io');
const app = require('./app');

const { PORT = 3000, HOST, REDIS_URL } = process.env;

async function main() {
  const server = http.createServer();
  const io = new Server(server);
  io.adapter(REDIS_URL ? await redisAdapter(server) : require('@socket.io/cluster-adapter').createAdapter());
  app(io);
  server.listen(PORT, HOST);
}

async function redisAdapter(server) {
  const pub = require('redis').createClient({ url: REDIS_URL });
  const sub = pub.duplicate();
  for (const client of [pub, sub]) {
    client.on('error', (err) => console.error('redis:', err.message));
    server.on('close', () => client.destroy()); // or it would keep the process from ending
  }
  await Promise.all([pub.connect(), sub.connect()]);
  return require('@socket.io/redis-adapter').createAdapter(pub, sub);
}

main();
