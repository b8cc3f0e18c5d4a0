'use strict'

// Node's own cluster. NODE_CLUSTER_SCHED_POLICY, which Node reads, says whether the
// primary hands connections out (rr) or the workers accept from one listener (none).

const cluster = require('cluster')
const path = require('path')

cluster.setupPrimary({ exec: path.join(__dirname, 'server.js') })
for (let i = 0; i < Number(process.env.BENCH_WORKERS); i++) {
  cluster.fork()
}
