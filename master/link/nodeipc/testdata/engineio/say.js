'use strict';
// Has a server, says the id that it gives to a session, and returns what begin() has returned.

const http = require('http');

module.exports = async function say(name, begin, EIO = 4) {
  const server = http.createServer();
  const begun = begin(server);
  await new Promise((listens) => server.listen({ port: 0, host: '127.0.0.1', exclusive: true }, listens));
  const get = (query) => new Promise((resolve, reject) => {
    http.get({ port: server.address().port, path: `/socket.io/?transport=polling&EIO=${EIO}${query}` }, (res) => {
      let text = '';
      res.on('data', (data) => text += data).on('end', () => resolve(text));
    }).on('error', reject);
  });
  const [, id] = /"sid":"([^"]*)"/.exec(await get(''));
  console.log(`${name}: ${id}`);
  server.close();
  return begun;
};
