'use strict';
// A SockJS server with Meteor's options (packages/ddp-server/stream_server.js in its
// source). Nothing in it is about handfast but what it says of itself.

const http = require('http');
const sockjs = require('sockjs');

const { PORT = 8080, HANDFAST_SLOT: slot, HANDFAST_GENERATION: generation, HANDFAST_BEHIND_PROXY: proxy } = process.env;

const stream = sockjs.createServer({
  prefix: '/sockjs',
  log: () => {},
  heartbeat_delay: 45_000,
  disconnect_delay: 60_000,
  disable_cors: false,
  jsessionid: false,
});

// The proxy adds the address that it was called from.
const client = (connection) =>
  proxy === 'true' ? connection.headers['x-forwarded-for'].split(',').at(-1).trim() : connection.remoteAddress;

stream.on('connection', (connection) => {
  connection.on('data', (message) => connection.write(JSON.stringify({
    slot: Number(slot), generation: Number(generation), client: client(connection), message,
  })));
});

const server = http.createServer((req, res) => res.writeHead(404).end());
stream.installHandlers(server);
server.listen(PORT);
