'use strict';
/**
 * The Node shim: runs one function inside its instance and speaks frames with the node.
 *
 * CommonJS without dependencies, for Node 18 and later. The map: `instance` starts and stops, `link` is the
 * connection, `load` turns LOAD into an application, `handler` runs calls, `logs` captures what user code prints.
 */

const { Instance } = require('./instance');

/** The environment that the platform gave, taken out of the code's sight. */
function taken(name) {
  const value = process.env[name];
  delete process.env[name];
  return value;
}

const path = taken('HEADRACE_SOCKET');
const id = taken('HEADRACE_INSTANCE');
const code = taken('HEADRACE_CODE');
taken('HEADRACE_LAYER'); // it appears beside the code as `node_modules`, where Node looks for it

new Instance({ path, id, code }).start();
