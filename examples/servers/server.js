// A Node server. Under systemd, or --worker-link activation, it takes the listener that it is passed.
const http = require('http');

const server = http.createServer((request, response) => {
  const { HANDFAST_SLOT, HANDFAST_GENERATION } = process.env;
  response.end(`slot=${HANDFAST_SLOT} pid=${process.pid} generation=${HANDFAST_GENERATION} client=${request.socket.remoteAddress}\n`);
});
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : 8080);
process.on('SIGTERM', () => server.close());
