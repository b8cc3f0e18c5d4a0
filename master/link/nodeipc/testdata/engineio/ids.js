'use strict';
// Says which ids sessions have, of Engine.IO of several ages and of servers that make ids themselves.

const { fork } = require('child_process');
const { Worker, isMainThread } = require('worker_threads');
const { Server } = require('socket.io');
const { Server: Engine } = require(require.resolve('engine.io', { paths: [require.resolve('socket.io')] }));
const say = require('./say');

async function main() {
  await say('socket.io 4', (server) => new Server(server));
  await say('socket.io 2', (server) => require('socket.io2')(server), 3);
  await say('own', (server) => { new Server(server).engine.generateId = () => 'own'; });
  await say('promised', (server) => { new Server(server).engine.generateId = async () => 'promised'; });
  await say('named', (server) => { new Server(server).engine.generateId = () => `named.${process.env.HANDFAST_ROUTE}`; });
  await say('class', (server) => new (class extends Engine { generateId() { return 'class'; } })().attach(server, { path: '/socket.io' }));
  const { engine } = await say('before', (server) => new Server(server));
  const before = engine.generateId; // which says the token already
  await say('around', (server) => { new Server(server).engine.generateId = function (req) { return `around-${before.call(this, req)}`; }; });
  await new Promise((resolve) => fork(__filename, ['child']).on('exit', resolve));
  await new Promise((resolve) => new Worker(__filename).on('exit', resolve));
}

if (!isMainThread) say('thread', (server) => new Server(server));
else if (process.argv[2] === 'child') say('child', (server) => new Server(server)).then(() => process.exit());
else main().then(() => process.exit());
