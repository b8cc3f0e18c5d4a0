// The same in TypeScript.
import http from 'http';

const { PORT, HOST, HANDFAST_SLOT: slot, HANDFAST_GENERATION: generation }: Record<string, string | undefined> = process.env;

http.createServer((req: http.IncomingMessage, res: http.ServerResponse) => {
  res.end(`slot=${slot} pid=${process.pid} generation=${generation} client=${req.socket.remoteAddress}\n`);
}).listen(Number(PORT), HOST);
