'use strict';
/** Failures of user code as the `e` of a frame: type, message and a stack without the shim's own frames. */

const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { inspect } = require('node:util');

const MESSAGE_LIMIT = 4 << 10; // characters
const STACK_LIMIT = 16 << 10; // characters; the middle is left out
const TYPE_LIMIT = 200;

const HIDDEN = new Set(['name', 'message', 'stack', 'cause', 'errors']);
const SHIM = __dirname + path.sep;

/** `error`, whatever was thrown, for the wire. File names below the directory `root` are given relative to it. */
function describe(error, root = '') {
  try {
    return {
      type: typeOf(error).slice(0, TYPE_LIMIT),
      message: relative(messageOf(error), root).slice(0, MESSAGE_LIMIT),
      stack: shortened(relative(stackOf(error), root)),
    };
  } catch (second) {
    return { type: 'Error', message: 'what the code threw cannot be shown', stack: String(second) };
  }
}

function isError(error) {
  return error instanceof Error || Object.prototype.toString.call(error) === '[object Error]';
}

function typeOf(error) {
  if (!isError(error)) return 'Error';
  return typeof error.name === 'string' && error.name ? error.name : 'Error';
}

function messageOf(error) {
  if (isError(error)) return String(error.message);
  return typeof error === 'string' ? error : `the code threw ${inspect(error, { depth: 1 })}`;
}

function stackOf(error) {
  return isError(error) ? story(error, new Set()) : messageOf(error);
}

/** The stack of `error`, the codes that it carries, and what caused it. */
function story(error, seen) {
  if (!isError(error)) return inspect(error, { depth: 1 });
  if (seen.has(error)) return '[circular]';
  seen.add(error);
  const told = [frames(error) + codes(error)];
  if (error.cause !== undefined) told.push(`[cause]: ${story(error.cause, seen)}`);
  for (const one of Array.isArray(error.errors) ? error.errors : []) told.push(`[error]: ${story(one, seen)}`);
  return told.join('\n');
}

function frames(error) {
  const lines = String(error.stack ?? error).split('\n');
  return lines.filter((line) => !isInternal(line)).join('\n');
}

function isInternal(line) {
  return /^\s+at .*(node:internal\/|AsyncLocalStorage\.run)/.test(line) || (/^\s+at /.test(line) && line.includes(SHIM));
}

/** Such as the `code` of a system error; what Node itself shows behind a stack. */
function codes(error) {
  const own = Object.entries(error).filter(([name, value]) => !HIDDEN.has(name) && Object(value) !== value);
  return own.length ? ` ${inspect(Object.fromEntries(own), { maxStringLength: 200 })}` : '';
}

function relative(stack, root) {
  if (!root) return stack;
  return stack.replaceAll(pathToFileURL(root).href + '/', '').replaceAll(root + path.sep, '');
}

function shortened(stack) {
  if (stack.length <= STACK_LIMIT) return stack;
  const half = STACK_LIMIT / 2;
  return `${stack.slice(0, half)}\n[... ${stack.length - 2 * half} characters left out ...]\n${stack.slice(-half)}`;
}

module.exports = { describe };
