// As ids.js, as an ES module.

import { Server } from 'socket.io';
import say from './say.js';

await say('import', (server) => new Server(server));
process.exit();
