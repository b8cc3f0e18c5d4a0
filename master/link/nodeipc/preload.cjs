'use strict';
// handfast loads this into its Node workers (NODE_OPTIONS=--require). A proxy that pools its
// connections sends requests of several clients over one of them, so after each response the connection
// goes back to the master, which looks at the next request and chooses the worker anew.
//
// Nothing of the next request has been read then: reading stops with a request's last byte. What cannot be
// handed back (a WebSocket, a request that was sent before the last one was answered, TLS) stays here.

const word = 'NODE_HANDFAST_HAND_BACK'; // Node keeps messages with this prefix from programs

function main() {
  if (!process.send || !process.channel) return; // in a child of a worker, say
  // The master answers, and no other parent does: so a worker's own children are left alone.
  process.on('internalMessage', function listen(message) {
    if (message && message.cmd === word) {
      process.removeListener('internalMessage', listen);
      begin();
    }
  });
  process.send({ cmd: word });
}

const state = new WeakMap(); // by socket

function begin() {
  const { channel } = require('diagnostics_channel');
  channel('http.server.request.start').subscribe(({ request, response, socket }) => starts(request, response, socket));
  channel('http.server.response.finish').subscribe(({ request, response, socket }) => finishes(request, response, socket));
}

const proxies = networks(process.env.HANDFAST_TRUSTED_PROXIES);
const slots = networks(process.env.HANDFAST_SLOT_ADDRESS); // addresses of their own
// The headers that tell clients apart.
const names = [process.env.HANDFAST_PROXY_HEADER, (process.env.HANDFAST_KEY || '').replace(/^header:|^address$/, '')]
  .filter(Boolean).map((name) => name.toLowerCase());

function networks(list) {
  const { BlockList, isIPv6 } = require('net');
  const all = BlockList && new BlockList();
  for (const range of (list || '').split(',').filter(Boolean)) {
    const [address, bits] = range.split('/');
    if (all) all.addSubnet(address, Number(bits), isIPv6(address) ? 'ipv6' : 'ipv4');
  }
  return all;
}

function isIn(all, address) {
  if (!all || !address) return false;
  address = address.replace(/^::ffff:(?=\d+\.)/, '').replace(/%.*/, '');
  return all.check(address, address.includes(':') ? 'ipv6' : 'ipv4');
}

// isShared tells whether requests on a connection may belong to several slots: its peer is a proxy, and it has not come
// to a slot's own address.
function isShared({ remoteAddress, localAddress }) {
  return isIn(proxies, remoteAddress) && !isIn(slots, localAddress);
}

// isSecond tells whether a request is another client's than the one before it on its connection.
function isSecond(s, request) {
  const client = names.map((name) => request.headers[name]).join('\n');
  const second = s.client !== undefined && s.client !== client;
  s.client = client;
  return second;
}

function starts(request, response, socket) {
  let s = state.get(socket);
  if (!s) state.set(socket, (s = { open: 0, shared: isShared(socket), client: undefined }));
  if (!s.shared) return;
  s.open++;
  if (!process.connected || (!canGo(socket) && isSecond(s, request))) {
    response.shouldKeepAlive = false; // the proxy opens another connection, which is placed by its first request
    return;
  }
  // The proxy may send the next request when it has all of the answer, and not before: by the length that the head says, or
  // else when the answer ends. Until then reading goes on, or nobody would see that a client has gone which waits for long.
  let may = false;
  const stop = () => { if (may && s.open === 1 && isBetween(request, socket)) socket._handle.readStop(); };
  const now = () => { may = true; stop(); };
  const { writeHead } = response;
  response.writeHead = function (...args) {
    const result = writeHead.apply(this, args);
    if (!this.chunkedEncoding) now();
    return result;
  };
  response.once('prefinish', now);
  // A request without a body is complete after this turn. The last byte of another one is there when its body
  // has been read.
  process.nextTick(stop);
  request.once('end', stop);
}

function finishes(request, response, socket) {
  const s = state.get(socket);
  if (!s || !s.shared) return;
  s.open--;
  const go = () => {
    if (s.open === 0 && response.shouldKeepAlive && isBetween(request, socket)) handBack(socket);
  };
  if (request.complete) process.nextTick(go);
  else request.once('end', () => process.nextTick(go)); // Node reads the rest and throws it away
}

// isBetween tells whether all of a request was read, and nothing of the next one.
function isBetween(request, socket) {
  return request.complete && canGo(socket) && !socket.destroyed && socket.parser && socket.parser.duration() === 0;
}

function canGo(socket) {
  return socket._handle && typeof socket._handle.readStop === 'function' && !socket.encrypted &&
    socket.parser && typeof socket.parser.duration === 'function';
}

function handBack(socket) {
  if (!process.connected || socket.writableLength > 0 || !socket.writable) {
    socket._handle.readStart(); // the next request is served here
    return;
  }
  socket._handle.readStop();
  socket.setTimeout(0); // Node's for idle connections
  socket.server = null; // or Node keeps account with the master of what became of it
  // It may wait until the master has the one before it. The server, which closes idle connections when it
  // is closed itself, is to leave it alone meanwhile.
  if (socket.parser.remove) socket.parser.remove();
  process.send({ cmd: word }, socket, {}, () => socket.destroy()); // for us it is closed
}

main();
