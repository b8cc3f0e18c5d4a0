// A server that knows nothing of handfast.
const http = require('http');
const { PORT, HOST, HANDFAST_SLOT: slot, HANDFAST_GENERATION: generation } = process.env;

http.createServer((req, res) => {
  res.end(`slot=${slot} pid=${process.pid} generation=${generation} client=${req.socket.remoteAddress}\n`);
}).listen(PORT, HOST);
