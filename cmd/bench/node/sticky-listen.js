'use strict'

// The balancer of sticky-listen with the workers of recluster, as the README of
// sticky-listen has it.

const path = require('path')
const recluster = require('recluster')
const sticky = require('sticky-listen')

const cluster = recluster(path.join(__dirname, 'server.js'), {
  readyWhen: 'ready',
  workers: Number(process.env.BENCH_WORKERS)
})
process.on('SIGUSR2', () => cluster.reload())
cluster.run()

const balancer = sticky.createBalancer({
  behindProxy: false,
  activeWorkers: cluster.activeWorkers,
  maxRetries: 5,
  retryDelay: 100
})
const [host, port] = process.env.BENCH_ADDRESS.split(':')
balancer.listen(port, host)
