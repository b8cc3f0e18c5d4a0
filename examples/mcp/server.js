// An MCP server as the SDK's README has it: one transport for each session, in the memory of the
// worker that has begun it. What is there for several workers is sessionIdGenerator.

import { randomUUID } from 'node:crypto';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { isInitializeRequest } from '@modelcontextprotocol/sdk/types.js';
import { z } from 'zod';

const { HOST = '127.0.0.1', PORT = 3000, HANDFAST_ROUTE } = process.env;

const transports = {}; // by session

// notebook has one page, which a session alone reads and writes.
function notebook() {
  const server = new McpServer({ name: 'notebook', version: '1.0.0' });
  let page = '';
  const text = (text) => ({ content: [{ type: 'text', text }] });
  server.registerTool('write', { inputSchema: { page: z.string() } }, (written) => { page = written.page; return text(String(process.pid)); });
  server.registerTool('read', {}, () => text(page));
  return server;
}

async function begin() {
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => `${randomUUID()}.${HANDFAST_ROUTE}`,
    onsessioninitialized: (id) => { transports[id] = transport; },
  });
  transport.onclose = () => { delete transports[transport.sessionId]; };
  await notebook().connect(transport);
  return transport;
}

const app = createMcpExpressApp({ host: HOST });
app.all('/mcp', async (req, res) => {
  const id = req.headers['mcp-session-id'];
  const transport = transports[id] ?? (!id && isInitializeRequest(req.body) && await begin());
  if (transport) return transport.handleRequest(req, res, req.body);
  res.status(404).json({ jsonrpc: '2.0', error: { code: -32001, message: 'Session not found' }, id: null });
});
app.listen(PORT, HOST);
