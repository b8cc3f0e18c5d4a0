// Says how often each client was here. What it knows of them is in its memory.
const http = require('node:http');

const visits = {};

http.createServer((request, response) => {
  const client = request.socket.remoteAddress.replace('::ffff:', '');
  visits[client] = (visits[client] || 0) + 1;
  response.setHeader('Content-Type', 'text/plain');
  response.end(`worker ${process.env.HANDFAST_SLOT}: visit ${visits[client]} of ${client}\n`);
}).listen(process.env.PORT || 8080);
