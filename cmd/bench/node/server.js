'use strict'

// The Node server behind every peer of the work "node". BENCH_WORKER says how its
// connections arrive.

const http = require('http')

const server = http.createServer((request, response) => {
  response.setHeader('X-Worker', process.pid)
  response.end('ok\n')
})

const [host, port] = process.env.BENCH_ADDRESS.split(':')

switch (process.env.BENCH_WORKER) {
  case 'server':
    server.listen(port, host)
    break
  case 'sticky-listen': // as its README has it
    require('sticky-listen').listen(server)
    process.send({ cmd: 'ready' })
    break
  case 'sticky-session': // as its README has it: the first of these processes is the balancer
    require('sticky-session').listen(server, { host, port }, { workers: Number(process.env.BENCH_WORKERS) })
    break
  default:
    throw new Error(`BENCH_WORKER is ${process.env.BENCH_WORKER}`)
}
