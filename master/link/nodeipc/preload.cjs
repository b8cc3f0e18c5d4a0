'use strict';
// handfast loads this into its Node workers (NODE_OPTIONS=--require), before the program, which knows nothing of it.
// It has two parts: sessions of Engine.IO name their worker, and connections are handed back between two requests.

function main() {
  // Processes and threads that a worker starts load this too, and are none of ours.
  if (!process.send || !process.channel || !require('cluster').isWorker) return;
  if (token && split(process.env.HANDFAST_SESSION).includes('engine.io')) nameSessions();
  askToHandBack();
}

const split = (list) => (list || '').split(',').filter(Boolean);

// ---- Sessions of Engine.IO, and so of Socket.IO, name their worker.
//
// An Engine.IO server makes the id of a session in handshake(), by generateId(), which a program may set on its
// server at any time. Whatever that returns ends in the worker's token then, by which the master knows the worker.

const token = process.env.HANDFAST_ROUTE;

const named = new WeakSet(); // prototypes that have our handshake(), and our generateId()s

function nameSessions() {
  const Module = require('module');
  const { _load } = Module; // which both module systems call for a CommonJS module
  Module._load = function (request) {
    const exports = _load.apply(this, arguments);
    // It is asked for by its name, or by its path if by an ES module. Its main module has the class.
    if (/(^|[\\/])engine\.io($|[\\/])/.test(request)) nameSessionsOf(exports && exports.Server);
    return exports;
  };
  warnOfOthers();
}

function nameSessionsOf(Server) {
  let owner = Server && Server.prototype; // since version 6 a prototype of that has it
  while (owner && !Object.prototype.hasOwnProperty.call(owner, 'handshake')) owner = Object.getPrototypeOf(owner);
  if (!owner || named.has(owner)) return;
  const { handshake } = owner;
  owner.handshake = function () {
    if (!named.has(this.generateId)) this.generateId = naming(this.generateId);
    return handshake.apply(this, arguments);
  };
  named.add(owner);
  found = true;
}

// naming returns a generateId() whose ids end in the token, once.
function naming(generateId) {
  const name = (id) => (String(id).endsWith(`.${token}`) ? id : `${id}.${token}`);
  function generate() {
    const id = generateId.apply(this, arguments);
    return id && typeof id.then === 'function' ? id.then(name) : name(id);
  }
  named.add(generate);
  return generate;
}

let found = false; // an Engine.IO server whose sessions we name

// warnOfOthers says once that there are sessions of a server that was not found, such as one in a bundle.
function warnOfOthers() {
  let over = false; // Node 18 does not survive that the last subscriber leaves while it is told
  require('diagnostics_channel').channel('http.server.request.start').subscribe(({ request: { url } }) => {
    if (over || found || !/[?&]EIO=/.test(url) || !/[?&]sid=(?![^&]*\.[a-z2-7]{26}(&|$))/.test(url)) return;
    over = true;
    console.error('handfast: sessions of Engine.IO do not name their worker, since the module engine.io was not loaded as one (is it part of a bundle?): ' +
      "keep it out of the bundle, or have generateId of io.engine return an id that ends in '.' + process.env.HANDFAST_ROUTE");
  });
}

// ---- Connections are handed back.
//
// Requests of several clients, or of several sessions, may follow each other on one connection: a proxy's pool, a browser
// or an agent that keeps it. So after each response it goes back to the master, which looks at the next request
// and chooses the worker anew.
//
// Nothing of the next request has been read then: reading stops with a request's last byte. What cannot be
// handed back (a WebSocket, a request that was sent before the last one was answered, TLS) stays here.

const word = 'NODE_HANDFAST_HAND_BACK'; // Node keeps messages with this prefix from programs

function askToHandBack() {
  process.on('internalMessage', function listen(message) {
    if (message && message.cmd === word) {
      process.removeListener('internalMessage', listen);
      begin(message.everybody === true, message.idle);
    }
  });
  process.send({ cmd: word });
}

const state = new WeakMap(); // by socket
let everybody = false; // connections of every peer are handed back; false: of the trusted proxies
let idle = 0; // milliseconds for which the master keeps one that has nothing of another request

function begin(ofEverybody, timeout) {
  everybody = ofEverybody;
  idle = timeout;
  const { channel } = require('diagnostics_channel');
  channel('http.server.request.start').subscribe(({ request, response, socket }) => starts(request, response, socket));
  channel('http.server.response.finish').subscribe(({ request, response, socket }) => finishes(request, response, socket));
}

const proxies = networks(process.env.HANDFAST_TRUSTED_PROXIES);
const slots = networks(process.env.HANDFAST_SLOT_ADDRESS); // addresses of their own

function networks(list) {
  const { BlockList, isIPv6 } = require('net');
  const all = BlockList && new BlockList();
  for (const range of split(list)) {
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

// isShared tells whether requests on a connection may belong to several slots: its peer is a proxy, or any peer's requests
// may, and it has not come to a slot's own address. Under TLS the master sees none of that.
function isShared({ remoteAddress, localAddress, encrypted }) {
  return (everybody && !encrypted || isIn(proxies, remoteAddress)) && !isIn(slots, localAddress);
}

function starts(request, response, socket) {
  let s = state.get(socket);
  if (!s) state.set(socket, (s = { open: 0, shared: isShared(socket), next: false }));
  if (!s.shared) return;
  s.open++;
  if (!process.connected) response.shouldKeepAlive = false; // the client opens another connection, which is placed anew
  if (!response.shouldKeepAlive || !canGo(socket)) return;
  // What the client is told (Keep-Alive: timeout=) is the server's keepAliveTimeout, no longer than is true.
  if (response._keepAliveTimeout > idle) response._keepAliveTimeout = idle;
  s.next = false;
  socket.parser[socket.parser.constructor.kOnMessageBegin] = () => { s.next = true; };
  // The proxy may send the next request when it has all of the answer, and not before: by the length that the head says, or
  // else when the answer ends. Until then reading goes on, or nobody would see that a client has gone which waits for long.
  let may = false;
  const stop = () => { if (may && s.open === 1 && isBetween(s, request, socket)) socket._handle.readStop(); };
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
    if (s.open === 0 && response.shouldKeepAlive && isBetween(s, request, socket)) handBack(socket);
  };
  if (request.complete) process.nextTick(go);
  else request.once('end', () => process.nextTick(go)); // Node reads the rest and throws it away
}

// isBetween tells whether all of a request was read, and nothing of the next one.
function isBetween(s, request, socket) {
  return request.complete && !s.next && canGo(socket) && !socket.destroyed;
}

function canGo(socket) {
  return socket._handle && typeof socket._handle.readStop === 'function' && !socket.encrypted &&
    socket.parser && socket.parser.constructor.kOnMessageBegin !== undefined;
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
