'use strict';
// Socket.IO clients that check what they were promised. A quarter of them have addresses of their own, a quarter
// share one and a pool of connections, as behind a NAT, a quarter come by IPv6, and a quarter by another address with
// each connection; with --steady none of them changes. With --reload (repeatable) they send SIGUSR2 to handfast in the
// middle, --reloads times; with --crash they kill a worker at the end. With --apart workers are not joined, and
// each client has connections of its own.
//
//     node clients.js http://127.0.0.1:3000 [--ipv6 ::1] [--clients 200] [--workers N] [--steady] [--apart] [--reload PID [--reloads 1]] [--crash]

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
    ipv6: { type: 'string' }, // the server's other address
    reload: { type: 'string', multiple: true },
    steady: { type: 'boolean', default: false },
    apart: { type: 'boolean', default: false },
    reloads: { type: 'string', default: '1' },
    crash: { type: 'boolean', default: false },
  },
});
const workers = Number(options.workers);

const transports = {
  'long polling': ['polling'],
  WebSocket: ['websocket'],
  upgraded: ['polling', 'websocket'],
};
const kinds = Object.keys(transports);
const rooms = ['attic', 'cellar', 'garden', 'kitchen', 'library'];
const patience = 30_000; // ms, for what takes less than a second

// Network is where a client is. Its connections take one way after the other.
class Network extends http.Agent {
  constructor(options, ...ways) {
    super(options);
    this.ways = ways;
    this.connections = 0;
  }

  createConnection(options, connected) {
    return super.createConnection({ ...options, ...this.ways[this.connections++ % this.ways.length] }, connected);
  }

  // xmlhttprequest-ssl makes a request that was reset on such a socket once more, and never ends it (2.1.2).
  reuseSocket(socket, request) {
    super.reuseSocket(socket, request);
    request.reusedSocket = false;
  }
}

const ipv4 = (localAddress) => ({ localAddress });
const ipv6 = options.ipv6 ? { host: options.ipv6, localAddress: '::1', family: 6 } : ipv4('127.3.0.1');
const nat = () => new Network({ keepAlive: true }, ipv4('127.4.0.1'));
const office = nat();
const networks = [
  (own) => new Network({ keepAlive: true }, ipv4(own)),
  options.apart ? nat : () => office,
  () => new Network({ keepAlive: true }, ipv6),
  (own) => new Network({}, ipv4(own), ...(options.steady ? [] : [ipv6])),
];

class Client {
  constructor(i, kind = kinds[i % kinds.length]) {
    this.kind = kind;
    this.room = rooms[i % rooms.length];
    this.network = networks[i % networks.length](`127.2.${Math.floor(i / 250)}.${1 + (i % 250)}`);
    this.inbox = [];
    this.sessions = [];
    this.interruptions = [];
  }

  async connect() {
    this.socket = io(url, {
      forceNew: true,
      transports: transports[this.kind],
      agent: this.network,
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
    assert(this.network.ways.some(({ localAddress }) => localAddress === client.replace(/^::ffff:/, '')), `the worker sees the address ${client}`);
    return pid;
  }

  toString() {
    return `${this.kind} client ${this.network.ways.map(({ localAddress }) => localAddress).join(' and ')} of worker ${this.pid} (interruptions: ${this.interruptions.join('; ') || 'none'})`;
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
    const found = await listed(client, 'who is in', client.room);
    assert.deepStrictEqual(sorted(found.filter((id) => !gone.includes(id))), sorted(members), `${client}`);
    const workers = await listed(client, 'which workers'); // or one that has no client yet
    for (const pid of pidsOf(clients)) assert(workers.includes(pid), `${pid} among ${workers}, ${client}`);
  });
  console.log(`fetchSockets and serverSideEmit: ${pidsOf(clients).length} workers know of each other and of all clients`);
}

async function joined(clients) {
  await news(clients);
  await registers(clients);
}

// listed asks a worker for what it has to find out from the others. Some of these may have ended without a farewell (the adapter's, which a
// program for @socket.io/sticky cannot send any more when it is told to leave): they are missed for ten seconds, and so long the question fails after five.
async function listed(client, ...question) {
  for (const start = Date.now(); ;) {
    const found = await client.ask(...question);
    if (Array.isArray(found)) return found;
    assert(Date.now() - start < patience, `${question}: the answer to ${client} is ${JSON.stringify(found)}`);
  }
}

// asking has all clients ask, again and again, until what happens meanwhile has happened. They stay with their workers.
async function asking(clients, meanwhile) {
  let [over, answers] = [false, 0];
  const all = Promise.all(clients.map(async (client) => {
    for (let last = false; !last; answers++) {
      last = over;
      assert.strictEqual(await client.meet(), client.pid, `${client}`);
      await pause(100);
    }
  }));
  await Promise.race([meanwhile(), all]); // that one fails first
  over = true;
  await all;
  untouched(clients);
  return answers;
}

// replaced waits until newcomers have found so many other workers than there were.
async function replaced(before) {
  const found = new Set();
  for (let i = 0; found.size < workers; i++) {
    const newcomer = new Client(i, 'WebSocket');
    await newcomer.connect();
    const pid = await newcomer.meet();
    newcomer.socket.disconnect();
    if (before.has(pid)) await pause(50); // the new workers need the CPU to start
    else found.add(pid);
  }
  return found;
}

// reload replaces the workers. Clients keep theirs.
async function reload(clients, masters) {
  const known = new Set(pidsOf(clients));
  for (let n = 1; n <= Number(options.reloads); n++) {
    for (const master of masters) process.kill(master, 'SIGUSR2');
    const answers = await asking(clients, async () => { for (const pid of await replaced(known)) known.add(pid); });
    console.log(`reload ${n}: ${answers} of ${answers} questions were answered; with their old workers, not interrupted: ${tally(clients)}`);
  }
}

// crash kills a worker. Its clients alone notice.
async function crash(clients) {
  const { pid } = clients[0];
  const [lost, others] = [clients.filter((client) => client.pid === pid), clients.filter((client) => client.pid !== pid)];
  process.kill(pid, 'SIGKILL');
  await asking(others, () => all(lost, (client) => until(() => client.interruptions.length > 0 && client.connected(), () => `${client} comes back`)));
  await all(lost, async (client) => { client.pid = await client.meet(); });
  console.log(`worker ${pid} was killed: ${tally(lost)} have new sessions; not interrupted: ${tally(others)}`);
}

async function main() {
  const clients = Array.from({ length: Number(options.clients) }, (_, i) => new Client(i));
  for (let i = 0; i < clients.length; i += 20) { // a worker waits 10 s for an upgrade
    await all(clients.slice(i, i + 20), (client) => client.connect());
  }
  await place(clients);
  assert.strictEqual(pidsOf(clients).length, workers, 'workers with clients');
  if (!options.apart) await joined(clients);
  untouched(clients);
  if (options.reload) {
    await reload(clients, options.reload.map(Number));
    if (!options.apart) await joined(clients);
  }
  if (options.crash) await crash(clients);
  for (const client of clients) client.socket.disconnect();
  console.log('all is well');
  process.exit(); // whatever connections are kept
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
