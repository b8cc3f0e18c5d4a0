'use strict';

// express-session with its store in memory: a session is known to the worker that has begun it. Its own cookie ends in a
// signature, so another one names the worker.

const express = require('express');
const session = require('express-session');

const { HANDFAST_ROUTE, HANDFAST_SLOT, HANDFAST_GENERATION, HOST, PORT } = process.env;

const app = express();
app.use((req, res, next) => { res.cookie('route', HANDFAST_ROUTE, { httpOnly: true, sameSite: 'lax' }); next(); });
app.use(session({ secret: 'secret', resave: false, saveUninitialized: true, cookie: { sameSite: 'lax' } }));
app.get('/', (req, res) => {
  req.session.visits = (req.session.visits || 0) + 1;
  res.send(`slot=${HANDFAST_SLOT} generation=${HANDFAST_GENERATION} visits=${req.session.visits}\n`);
});
app.listen(PORT, HOST);
