'use strict';
/** Reads the files that are named, and the first that is no JavaScript is shown: as JSON, with where and why. */

const { spawnSync } = require('node:child_process');

const OTHER_KIND = /^SyntaxError: (Unexpected token 'export'|Cannot use import statement outside a module)/m;

function problem(path) {
  const { status, stderr } = spawnSync(process.execPath, ['--check', path], { encoding: 'utf8' });
  if (status === 0 || OTHER_KIND.test(stderr)) return null; // a newer Node may see what kind of module it is
  const place = /:(\d+)\n(.*)\n/.exec(stderr);
  const message = /^SyntaxError: (.*)$/m.exec(stderr);
  if (message === null) return null;
  return { path, line: place && Number(place[1]), message: message[1], text: place && place[2] };
}

for (const path of process.argv.slice(2)) {
  const found = problem(path);
  if (found !== null) {
    console.log(JSON.stringify({ ...found, as: `Node.js ${process.versions.node}` }));
    break;
  }
}
