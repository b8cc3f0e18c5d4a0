'use strict';
// A worker written for @socket.io/sticky, as that module's README has it.

const http = require('http');
const { Server } = require('socket.io');
const { setupWorker } = require('@socket.io/sticky');
const { createAdapter } = require('@socket.io/cluster-adapter');

const httpServer = http.createServer();
const io = new Server(httpServer);
io.adapter(createAdapter());
setupWorker(io);

require('./app')(io);
