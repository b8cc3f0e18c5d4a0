var sticky = require('sticky-listen');

var server = require('http').createServer(function(req, res) {
  res.end('worker: ' + process.env.NODE_WORKER_ID);
});

sticky.listen(server)

process.send({cmd: 'ready'})
