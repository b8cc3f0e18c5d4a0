'use strict';
// What the server does for its clients. Nothing here depends on how its workers are joined.

const address = ({ headers, address }) => headers['x-forwarded-for'] ?? address.replace(/^::ffff:/, '');

module.exports = function app(io) {
  io.engine.on('connection_error', (err) => console.error(`connection error: ${err.message}`));

  io.on('who is there', (reply) => reply(process.pid)); // another worker asks

  io.on('connection', (socket) => {
    socket.on('who are you', (reply) => reply({ pid: process.pid, client: address(socket.handshake) }));
    socket.on('join', (room, reply) => { socket.join(room); reply(); });
    socket.on('tell all', (text, reply) => { io.emit('news', text); reply(); });
    socket.on('tell room', (room, text, reply) => { io.to(room).emit('news', text); reply(); });
    socket.on('who is in', (room, reply) => answer(reply, io.in(room).fetchSockets().then((found) => found.map(({ id }) => id))));
    socket.on('which workers', (reply) => answer(reply, io.serverSideEmitWithAck('who is there').then((others) => [process.pid, ...others])));
  });
};

// Other workers may fail to answer in time.
const answer = (reply, promise) => promise.catch((err) => ({ error: err.message })).then(reply);
