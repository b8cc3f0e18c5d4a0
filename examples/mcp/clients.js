// Clients of the MCP SDK, each with a session. They share connections, as fetch does. In a round each
// writes its page and reads it; then a line says how many sessions have failed so far, and at which workers the others are.
//
//     node clients.js http://127.0.0.1:3000/mcp [SESSIONS [ROUNDS]]

import { setTimeout as pause } from 'node:timers/promises';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [url = 'http://127.0.0.1:3000/mcp', sessions = 40, rounds = 3] = process.argv.slice(2);

class Session {
  async begin() {
    this.client = new Client({ name: 'reader', version: '1.0.0' });
    this.transport = new StreamableHTTPClientTransport(new URL(url));
    await this.client.connect(this.transport);
  }

  async call(name, args = {}) {
    const { content: [{ text }] } = await this.client.callTool({ name, arguments: args });
    return text;
  }

  async round(page) {
    if (this.failed) return;
    try {
      if (!this.client) await this.begin();
      const worker = await this.call('write', { page });
      this.worker ??= worker;
      if (worker !== this.worker) throw new Error(`the session has moved from worker ${this.worker} to ${worker}`);
      const read = await this.call('read');
      if (read !== page) throw new Error(`read ${read}, want ${page}`);
    } catch (err) {
      this.failed = err.message;
    }
  }
}

const tally = (values) => values.reduce((n, value) => ({ ...n, [value]: (n[value] ?? 0) + 1 }), {});

const all = Array.from({ length: sessions }, () => new Session());
process.once('SIGTERM', () => process.exit());
for (let round = 1; round <= rounds; round++) {
  await Promise.all(all.map((session, i) => session.round(`page ${i}, round ${round}`)));
  const failed = all.filter((session) => session.failed);
  console.log(JSON.stringify({
    round,
    failed: failed.length,
    why: tally(failed.map((session) => session.failed)),
    workers: tally(all.filter((session) => !session.failed).map((session) => session.worker)),
  }));
  await pause(100);
}
await Promise.all(all.map(async (session) => { await session.transport.terminateSession().catch(() => {}); await session.client.close(); }));
