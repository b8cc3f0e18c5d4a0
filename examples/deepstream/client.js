'use strict';
// Clients of deepstream, each with a loopback address of its own. In a round one of
// them emits an event, sets a record and offers a procedure; all get the event, see the
// record and call the procedure. Then a line says in which slots they are.

delete globalThis.WebSocket; // from Node 22 on; ws can be told the address to come from
const timers = require('timers/promises');
const { DeepstreamClient } = require('@deepstream/client');

const [url = 'ws://127.0.0.1:8080/deepstream', clients = 60, rounds = 3] = process.argv.slice(2);

class Client {
  constructor(i) {
    this.address = `127.0.1.${1 + i}`;
    this.deepstream = new DeepstreamClient(url, { socketOptions: { localAddress: this.address } });
    this.deepstream.on('error', (error, event) => console.error(this.address, event, error?.message ?? error));
    this.deepstream.on('clientDataChanged', (data) => this.welcome(data));
  }

  welcome({ slot, generation, address }) {
    if (address !== this.address || (this.slot ?? slot) !== slot) {
      throw new Error(`${this.address} in slot ${this.slot} came to slot ${slot} as ${address}`);
    }
    Object.assign(this, { slot, generation });
  }

  async join() {
    await this.deepstream.login({ username: this.address });
    this.event = new Waiting();
    this.deepstream.event.subscribe('round', (round) => this.event.set(round));
    this.seen = new Waiting();
    this.record = this.deepstream.record.getRecord('round');
    await this.record.whenReady();
    this.record.subscribe('n', (n) => this.seen.set(n), true);
  }

  // call tries again: other workers learn of a procedure a moment after it is offered, and on a
  // busy machine an answer may take longer than deepstream waits for it.
  async call(name, n) {
    for (;;) {
      try {
        return await this.deepstream.rpc.make(name, n);
      } catch (error) {
        if (!['NO_RPC_PROVIDER', 'ACCEPT_TIMEOUT', 'RESPONSE_TIMEOUT', 'ACK_TIMEOUT'].includes(error)) throw error;
        await timers.setTimeout(100);
      }
    }
  }
}

// Waiting is for a value that will come.
class Waiting {
  set(value) {
    this.value = value;
    if (this.came && value === this.wanted) this.came();
  }

  for(value) {
    if (value === this.value) return undefined;
    this.wanted = value;
    return new Promise((came) => { this.came = came; });
  }
}

const all = Array.from({ length: clients }, (_, i) => new Client(i));
const count = (value) => all.reduce((n, c) => ({ ...n, [value(c)]: (n[value(c)] || 0) + 1 }), {});

process.once('SIGTERM', () => process.exit());

(async () => {
  await all[0].join(); // and create the record
  await Promise.all(all.slice(1).map((c) => c.join()));
  for (let round = 1; round <= rounds; round++) {
    const first = all[round % all.length];
    const heard = all.filter((c) => c !== first).map((c) => c.event.for(round)); // not by who emits
    const seen = all.map((c) => c.seen.for(round));
    const emit = () => first.deepstream.event.emit('round', round);
    const again = setInterval(emit, 300); // a subscription is known to the other workers a moment later
    emit();
    first.record.set('n', round);
    await Promise.all([...heard, ...seen]);
    clearInterval(again);

    const name = `double ${round}`;
    first.deepstream.rpc.provide(name, (n, response) => response.send({ n: 2 * n, slot: first.slot }));
    const answers = await Promise.all(all.map((c) => c.call(name, round)));
    first.deepstream.rpc.unprovide(name);
    if (answers.some(({ n, slot }) => n !== 2 * round || slot !== first.slot)) throw new Error(JSON.stringify(answers));

    console.log(JSON.stringify({ round, from: first.slot, slots: count((c) => c.slot), generations: count((c) => c.generation) }));
    await timers.setTimeout(100);
  }
  all.forEach((c) => c.deepstream.close());
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
