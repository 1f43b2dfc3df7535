'use strict';
/** From LOAD to something that runs calls: environment, directory, import, and whether it is a handler. */

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const v8 = require('node:v8');
const { Function } = require('./event');
const { HandlerApp } = require('./handler');

const SUFFIXES = ['.js', '.mjs', '.cjs']; // looked for in this order
const ROOMY_MB = 512;
const SHOWN = 20; // names in a message
const TAKES_IMPORT = new Set(['ERR_REQUIRE_ESM', 'ERR_REQUIRE_ASYNC_MODULE']);
const MISSING = new Set(['MODULE_NOT_FOUND', 'ERR_MODULE_NOT_FOUND']);
const OTHER_KIND = /^(Unexpected token 'export'|Cannot use import statement outside a module)/;
const EXPLAIN_MS = 5000;

/** The bundle holds no such file, or the file no such export; the message says what it does hold. */
class HandlerMissing extends Error {
  name = 'HandlerMissing';
}

/** Import the handler of the LOAD header `spec` and wrap it. Throws whatever the code throws. */
async function load(spec, code, instance, log) {
  const fn = new Function(spec, instance);
  if (fn.memoryMb >= ROOMY_MB) v8.setFlagsFromString('--heap-growing-percent=60'); // see start.sh
  enter(spec.env, code);
  if (spec.kind === 'asgi') {
    throw new HandlerMissing("kind 'asgi' is Python's: leave `kind` out, and export a handler(event, context).");
  }
  const handler = await resolve(spec.handler, code);
  return new HandlerApp(handler, fn, code, log);
}

/** Apply the environment and go to the code. */
function enter(env, code) {
  for (const [name, value] of Object.entries(env)) process.env[name] = value;
  process.chdir(code);
  process.argv.length = 1; // what comes after is not the code's
}

async function resolve(handler, code) {
  const at = handler.lastIndexOf('.');
  const name = handler.slice(0, at);
  const attribute = handler.slice(at + 1);
  const file = SUFFIXES.map((suffix) => path.join(code, name + suffix)).find((candidate) => fs.existsSync(candidate));
  if (file === undefined) throw new HandlerMissing(noFile(handler, name, code));
  const exported = await imported(file, code);
  const target = exported?.[attribute] ?? exported?.default?.[attribute];
  if (target === undefined) throw new HandlerMissing(noExport(handler, attribute, exported));
  return callable(target, handler);
}

/** What `file` exports, whichever kind of module it is. */
async function imported(file, code) {
  try {
    return file.endsWith('.mjs') ? await import(pathToFileURL(file).href) : await required(file, code);
  } catch (error) {
    if (error instanceof SyntaxError) explainSyntax(error, file);
    else if (MISSING.has(error?.code)) explainMissing(error);
    throw error;
  }
}

async function required(file, code) {
  try {
    return createRequire(path.join(code, 'bundle'))(file);
  } catch (error) {
    if (!TAKES_IMPORT.has(error?.code)) throw error;
    return import(pathToFileURL(file).href);
  }
}

function explainMissing(error) {
  const [said] = error.message.split('\n');
  const message = `${said}. Is it in package.json, or among the files of the bundle?`;
  error.stack = String(error.stack).replace(error.message, () => message);
  error.message = message;
}

/** Say where. Node tells that of a broken ES module only when the error ends a process, so one is ended by it. */
function explainSyntax(error, file) {
  if (OTHER_KIND.test(error.message)) {
    error.message += ". Name the file .mjs, or set \"type\": \"module\" in package.json, to use ES modules.";
    error.stack = `SyntaxError: ${error.message}\n${error.stack}`;
  }
  if (/^(file:|\/|\s+at (?!.*node:internal))/m.test(error.stack)) return; // it says so already
  const script = `import ${JSON.stringify(pathToFileURL(file).href)}`;
  const { stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: EXPLAIN_MS,
  });
  const [place] = (stderr ?? '').split(`\nSyntaxError: ${error.message}`);
  if (place.startsWith('file:')) error.stack = `${place}\n${error.stack}`;
}

function noFile(handler, name, code) {
  const wanted = SUFFIXES.map((suffix) => name + suffix).join(', ');
  const found = fs.readdirSync(code).filter((entry) => !entry.startsWith('.'));
  const files = found.sort().slice(0, SHOWN).join(', ') || 'nothing';
  return `handler '${handler}' needs one of ${wanted}, and the bundle has no such file. It holds: ${files}.`;
}

function noExport(handler, attribute, exported) {
  const scopes = [exported, exported?.default].filter((scope) => scope && /^(object|function)$/.test(typeof scope));
  const names = scopes.flatMap((scope) => Object.keys(scope).filter((name) => typeof scope[name] === 'function'));
  const found = [...new Set(names)].slice(0, SHOWN).join(', ') || 'nothing callable';
  return `handler '${handler}': the module does not export '${attribute}'. It exports: ${found}.`;
}

function callable(target, handler) {
  if (typeof target !== 'function') {
    throw new HandlerMissing(
      `handler '${handler}' is a ${typeof target}, which cannot be called: export a function handler(event, context).`,
    );
  }
  if (target.length > 2 && target.constructor.name !== 'AsyncFunction') {
    throw new HandlerMissing(
      `handler '${handler}' takes a callback, which nothing calls: return the answer, or a promise of it, instead.`,
    );
  }
  return target;
}

module.exports = { load };
