'use strict';
// who is what each server answers: which worker it is, and how long a body it got.
module.exports = (length) => `slot=${process.env.HANDFAST_SLOT} pid=${process.pid} length=${length}\n`;
