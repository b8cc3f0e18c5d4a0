'use strict';

const express = require('express');
const who = require('./who');

const app = express();
app.use(express.text({ type: '*/*', limit: '1mb' }));
app.get('/', (req, res) => res.send(who(0)));
app.post('/', (req, res) => res.send(who(req.body.length)));
app.listen(process.env.PORT, '127.0.0.1');
