'use strict';
// A deepstream server whose copies are joined by Redis: the cache holds the records,
// the cluster node carries the messages.

const { Deepstream } = require('@deepstream/server');

const { PORT = '6020', REDIS = '127.0.0.1:6379' } = process.env;
const [host, port] = REDIS.split(':');
const redis = () => ({ name: 'redis', options: { host, port: Number(port) } });

const server = new Deepstream({
  showLogo: false,
  logger: { type: 'default', options: { logLevel: 'WARN' } },
  // 'default' is Node's own http server. 'uws' listens by itself, beside Node's cluster.
  httpServer: { type: 'default', options: { host: '0.0.0.0', port: Number(PORT) } },
  connectionEndpoints: [{ type: 'ws-binary', options: { urlPath: '/deepstream' } }],
  auth: [{ path: require.resolve('./auth.js'), options: {} }],
  cache: redis(),
  clusterNode: redis(),
});
// It listens before it can talk to clients.
server.once('started', () => process.send?.({ cmd: 'ready' }));
server.start();

// A worker that was replaced is disconnected when its last client has left. Redis would
// keep it.
process.once('disconnect', () => process.exit());
