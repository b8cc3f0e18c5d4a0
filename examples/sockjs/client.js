'use strict';
// SockJS clients, a third by each transport. Each connection of a client comes from another address than the one before:
// by IPv4 and, if there is an address of the server's for that, by IPv6.
//
//     node client.js http://127.0.0.1:8080/sockjs [CLIENTS [ROUNDS [::1]]]
//
// In a round every client sends a message and gets it back; then a line says which
// worker answered whom, and which sessions have ended so far. A client whose session ends
// begins another one and sends its message again, as Meteor's does.

const { AsyncLocalStorage } = require('async_hooks');
const http = require('http');
const net = require('net');
const timers = require('timers/promises');
const SockJS = require('sockjs-client');
require('sockjs-client/lib/info-receiver').timeout = 60_000; // eight seconds are too few on a busy machine

const [url = 'http://127.0.0.1:8080/sockjs', clients = 200, rounds = 3, ipv6] = process.argv.slice(2);
const transports = ['xhr-polling', 'xhr-streaming', 'websocket'];

// SockJS's clients cannot be told which address to come from. So whatever connects on behalf of
// one asks whose it is: XHRs by their agent, each with a connection of its own, and
// WebSockets by net.connect.
const source = new AsyncLocalStorage();
const from = (options) => ({ ...options, ...source.getStore().way() });
http.globalAgent = new class extends http.Agent {
  createConnection(options, done) { return super.createConnection(from(options), done); }
}();
net.connect = (options, done) => net.createConnection(from(options), done);

const ended = {}; // how many sessions, by transport and reason

class Client {
  constructor(i) {
    this.transport = transports[i % transports.length];
    this.ways = ['127.1', '127.2'].map((network) => ({ localAddress: `${network}.${Math.floor(i / 250)}.${1 + i % 250}` }));
    if (ipv6) this.ways[1] = { host: ipv6, family: 6, localAddress: '::1' };
    this.connect();
  }

  // way is how the next connection comes to the server.
  way() {
    this.ways.push(this.ways.shift());
    return this.ways[0];
  }

  connect() {
    source.run(this, () => {
      this.socket = new SockJS(url, null, {
        transports: this.transport,
        timeout: 30_000, // or a slow answer on a busy machine is taken for a transport that fails
      });
    });
    this.socket.onopen = () => this.send();
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) => {
      const end = `${this.transport}: ${code} ${reason}`;
      ended[end] = (ended[end] || 0) + 1;
      this.worker = undefined;
      setTimeout(() => this.connect(), 100);
    };
  }

  // ask sends a message, and once more in another session if this one ends.
  ask(message) {
    this.message = message;
    return new Promise((answered) => {
      this.answered = answered;
      if (this.socket.readyState === SockJS.OPEN) this.send();
    });
  }

  send() {
    if (this.message) source.run(this, () => this.socket.send(this.message));
  }

  receive({ slot, generation, client, message }) {
    this.worker ??= `${slot} of generation ${generation}`; // of this session
    const addresses = this.ways.map(({ localAddress }) => localAddress);
    if (message !== this.message || !addresses.includes(client.replace(/^::ffff:/, '')) || this.worker !== `${slot} of generation ${generation}`) {
      throw new Error(`${addresses} of slot ${this.worker} sent ${this.message}; slot ${slot} of generation ${generation} got ${message} from ${client}`);
    }
    this.slot = slot;
    this.generation = generation;
    this.message = null;
    this.answered();
  }

  close() {
    this.socket.onclose = null;
    this.socket.close();
  }
}

const all = Array.from({ length: clients }, (_, i) => new Client(i));

// count returns how many clients have which value.
const count = (value) => all.reduce((n, c) => ({ ...n, [value(c)]: (n[value(c)] || 0) + 1 }), {});

process.once('SIGTERM', () => process.exit());

(async () => {
  for (let round = 1; round <= rounds; round++) {
    await Promise.all(all.map((c) => c.ask(`hello ${round}`)));
    console.log(JSON.stringify({
      round,
      slots: count((c) => c.slot),
      generations: count((c) => `${c.transport}: ${c.generation}`),
      ended,
    }));
    await timers.setTimeout(100);
  }
  all.forEach((c) => c.close());
})();
