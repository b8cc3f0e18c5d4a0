'use strict';

const who = require('./who');

const app = require('fastify')();
app.addContentTypeParser('*', { parseAs: 'string' }, (req, body, done) => done(null, body));
app.get('/', async () => who(0));
app.post('/', async (req) => who(req.body.length));
app.listen({ port: process.env.PORT, host: '127.0.0.1' });
