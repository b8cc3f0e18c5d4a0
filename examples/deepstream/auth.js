'use strict';
// Lets everybody in, and tells each client which worker it has.

const { HANDFAST_SLOT, HANDFAST_GENERATION } = process.env;

module.exports = class {
  description = 'whoever comes';
  init() {}
  async whenReady() {}
  async close() {}
  async isValidUser({ remoteAddress }, { username }) {
    return {
      isValid: true,
      id: username,
      clientData: { slot: Number(HANDFAST_SLOT), generation: Number(HANDFAST_GENERATION), address: remoteAddress },
    };
  }
};
