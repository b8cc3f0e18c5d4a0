'use strict';
// Socket.IO clients, each with a loopback address of its own, that check what they were
// promised. With --reload they send SIGUSR2 to handfast in the middle. With --keeps-sessions
// long-polling clients must keep theirs then, too.
//
//     node clients.js http://127.0.0.1:3000 [--clients 200] [--workers N] [--reload PID [--keeps-sessions]]

const assert = require('assert');
const http = require('http');
const { availableParallelism } = require('os');
const { parseArgs } = require('util');
const { io } = require('socket.io-client');

const { values: options, positionals: [url] } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: 'string', default: '200' },
    workers: { type: 'string', default: String(availableParallelism()) },
    reload: { type: 'string' },
    'keeps-sessions': { type: 'boolean', default: false },
  },
});

const transports = {
  'long polling': ['polling'],
  WebSocket: ['websocket'],
  upgraded: ['polling', 'websocket'],
};
const kinds = Object.keys(transports);
const rooms = ['attic', 'cellar', 'garden', 'kitchen', 'library'];
const patience = 30_000; // ms, for what takes less than a second

class Client {
  constructor(i, kind = kinds[i % kinds.length]) {
    this.i = i;
    this.kind = kind;
    this.room = rooms[i % rooms.length];
    this.address = `127.2.${Math.floor(i / 250)}.${1 + (i % 250)}`;
    this.inbox = [];
    this.sessions = [];
    this.interruptions = [];
  }

  async connect() {
    this.socket = io(url, {
      forceNew: true,
      transports: transports[this.kind],
      agent: new http.Agent({ localAddress: this.address }), // makes a connection for each request
      reconnectionDelay: 100,
      reconnectionDelayMax: 1000,
      retries: 10, // what is not acknowledged is sent again
      ackTimeout: 10_000,
    });
    this.socket.on('connect', () => this.sessions.push(this.socket.id));
    this.socket.on('news', (text) => this.inbox.push(text));
    this.socket.on('disconnect', (reason, details) => this.interrupted(reason, details));
    this.socket.on('connect_error', (err) => this.interrupted(err.message, err));
    await until(() => this.connected(), () => `${this} is connected`);
  }

  connected() {
    const transport = this.kind === 'long polling' ? 'polling' : 'websocket';
    return this.socket.connected && this.socket.io.engine.transport.name === transport;
  }

  interrupted(reason, details) {
    if (reason === 'io client disconnect') return; // that was us
    const answer = details?.context?.responseText;
    this.interruptions.push(answer ? `${reason}: ${answer}` : reason);
  }

  ask(...question) {
    return this.socket.emitWithAck(...question);
  }

  async meet() {
    const { pid, client } = await this.ask('who are you');
    assert.strictEqual(client, this.address, 'the address that the worker sees');
    return pid;
  }

  toString() {
    return `${this.kind} client ${this.address} of worker ${this.pid} (interruptions: ${this.interruptions.join('; ') || 'none'})`;
  }
}

async function until(happened, what) {
  for (const start = Date.now(); !happened(); await pause(5)) {
    assert(Date.now() - start < patience, `not within ${patience} ms: ${what()}`);
  }
}

const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
const all = (list, act) => Promise.all(list.map(act));
const sorted = (list) => [...list].sort();
const pidsOf = (clients) => [...new Set(clients.map(({ pid }) => pid))].sort();
const oneOfEach = (clients) => pidsOf(clients).map((pid) => clients.find((client) => client.pid === pid));
const tally = (clients) => kinds.map((kind) => `${clients.filter((client) => client.kind === kind).length} ${kind}`).join(', ');
const untouched = (clients) => clients.forEach((client) => assert.deepStrictEqual(client.interruptions, [], `${client}`));

// place: a client is always with the same worker.
async function place(clients) {
  await all(clients, async (client) => {
    client.pid = await client.meet();
    for (let again = 0; again < 3; again++) assert.strictEqual(await client.meet(), client.pid, `${client}`);
  });
  for (const pid of pidsOf(clients)) {
    console.log(`worker ${pid}: ${tally(clients.filter((client) => client.pid === pid))}`);
  }
}

// news: what one worker tells all, or a room, reaches those at all workers, once.
async function news(clients) {
  const from = oneOfEach(clients);
  await all(clients, (client) => client.ask('join', client.room));
  for (const client of clients) client.inbox = [];
  await all(from, async (speaker) => {
    await speaker.ask('tell all', `${speaker.pid} to all`);
    for (const room of rooms) await speaker.ask('tell room', room, `${speaker.pid} to ${room}`);
    await speaker.ask('tell all', `${speaker.pid} has finished`); // what came twice has come before
  });
  await all(clients, async (client) => {
    const want = from.flatMap(({ pid }) => [`${pid} to all`, `${pid} to ${client.room}`, `${pid} has finished`]);
    await until(() => want.every((text) => client.inbox.includes(text)), () => `${want} for ${client}, who has ${client.inbox}`);
    assert.deepStrictEqual(sorted(client.inbox), sorted(want), `${client}`);
  });
  console.log(`news from ${from.length} workers, to all and to ${rooms.length} rooms: each client got its own, once`);
}

// registers: each worker can tell who is in a room, and which workers there are.
async function registers(clients) {
  const gone = clients.flatMap(({ sessions, socket }) => sessions.filter((id) => id !== socket.id)); // or not yet timed out
  await all(oneOfEach(clients), async (client) => {
    const members = clients.filter(({ room }) => room === client.room).map(({ socket }) => socket.id);
    const found = await client.ask('who is in', client.room);
    assert.deepStrictEqual(sorted(found.filter((id) => !gone.includes(id))), sorted(members), `${client}`);
    const workers = await client.ask('which workers'); // or one that has no client yet
    for (const pid of pidsOf(clients)) assert(workers.includes(pid), `${pid} among ${workers}, ${client}`);
  });
  console.log(`fetchSockets and serverSideEmit: ${pidsOf(clients).length} workers know of each other and of all clients`);
}

// reload replaces the workers, while all clients go on asking.
async function reload(clients, master) {
  let [reloaded, answers] = [false, 0];
  process.kill(master, 'SIGUSR2');
  const asking = all(clients, async (client) => {
    for (let last = false; !last; answers++) {
      last = reloaded;
      await client.meet();
      await pause(100);
    }
  });
  await all(oneOfEach(clients), replaced);
  reloaded = true;
  await asking;
  console.log(`reloaded; meanwhile ${answers} of ${answers} questions were answered`);
}

// replaced waits until who comes anew from the client's address finds another worker.
async function replaced({ i, pid }) {
  for (let now = pid; now === pid;) {
    const newcomer = new Client(i, 'WebSocket');
    await newcomer.connect();
    now = await newcomer.meet();
    newcomer.socket.disconnect();
    if (now === pid) await pause(50); // the new workers need the CPU to start
  }
}

// stayed: who has a WebSocket keeps it, and its worker. A long-polling client may lose its
// session, and then has a new one with a new worker: those are returned.
async function stayed(clients) {
  const before = new Map(clients.map((client) => [client, client.pid]));
  const kept = [], moved = [];
  for (const client of clients) {
    client.pid = await client.meet();
    (client.pid === before.get(client) ? kept : moved).push(client);
  }
  untouched(kept);
  for (const client of moved) assert.strictEqual(client.kind, 'long polling', `${client}`);
  console.log(`with their old workers, not interrupted: ${tally(kept)}`);
  if (moved.length > 0) console.log(`with new workers: ${tally(moved)}; ${[...new Set(moved.flatMap((client) => client.interruptions))].join('; ')}`);
  return moved;
}

async function main() {
  const clients = Array.from({ length: Number(options.clients) }, (_, i) => new Client(i));
  for (let i = 0; i < clients.length; i += 20) { // a worker waits 10 s for an upgrade
    await all(clients.slice(i, i + 20), (client) => client.connect());
  }
  await place(clients);
  assert.strictEqual(pidsOf(clients).length, Number(options.workers), 'workers with clients');
  await news(clients);
  await registers(clients);
  untouched(clients);
  if (options.reload) {
    await reload(clients, Number(options.reload));
    const moved = await stayed(clients);
    if (options['keeps-sessions']) assert.deepStrictEqual(moved, [], 'clients who lost their session');
    await news(clients);
    await registers(clients);
  }
  for (const client of clients) client.socket.disconnect();
  console.log('all is well');
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
