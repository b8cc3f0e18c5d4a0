// What cmd/handfast/testdata/worker does, as far as clients of a trial ask for it, with Node's own http server.
'use strict';
const fs = require('node:fs');
const http = require('node:http');

if (fs.existsSync(process.argv[3])) process.exit(3);
const [host, port] = process.env.HANDFAST_TEST_LISTEN.split(':');

http.createServer((req, res) => {
	const line = `slot=${process.env.HANDFAST_SLOT} pid=${process.pid} generation=${process.env.HANDFAST_GENERATION} client=${req.socket.remoteAddress}\n`;
	const [, what, long] = req.url.split('/');
	if (what !== 'events') {
		setTimeout(() => res.end(line), parseInt(long) || 0);
		return;
	}
	const each = setInterval(() => res.write('data: ' + line), 10);
	setTimeout(() => { clearInterval(each); res.end('data: end\n\n'); }, parseInt(long));
	res.on('close', () => clearInterval(each));
}).listen(port, host);
