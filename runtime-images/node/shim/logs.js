'use strict';
/**
 * What user code prints, as LOG frames of the call that it belongs to.
 *
 * `current` names that call: whatever the call has started, timers, promises, sockets, inherits it. Output without a
 * call, or of a call that has been answered, goes to stream 0. Without a connection it goes to the
 * container's own log, as does everything written to the file descriptors 1 and 2 directly.
 *
 * Lines are kept whole: a piece without a line break waits for its end, until its call is answered.
 */

const { AsyncLocalStorage } = require('node:async_hooks');
const fs = require('node:fs');
const { Writable } = require('node:stream');
const { FRAME_LIMIT } = require('./link');

const LINE_LIMIT = 8 << 10; // characters of a line that wait for its end
const LEVELS = { stdout: 'INFO', stderr: 'ERROR' };
const METHODS = { debug: 'DEBUG', trace: 'DEBUG', warn: 'WARNING' }; // of console, where the stream says less
const CUT = Buffer.from('\n[headrace: this call has logged 256 KiB; the rest of its output is dropped]');

const current = new AsyncLocalStorage();

/** Sends lines over the link that `link()` names at that moment, null while there is none. */
class Log {
  #link;
  #partial = {};

  constructor(link) {
    this.#link = link;
  }

  /** What was written to `source` (stdout, stderr), cut anywhere. */
  text(source, text, level = LEVELS[source]) {
    let call = current.getStore();
    if (call?.answered) call = undefined;
    if (call !== undefined && call.logLeft <= 0) return;
    const partial = call === undefined ? this.#partial : (call.partial ??= {});
    const whole = (partial[source] ?? '') + text;
    const at = whole.lastIndexOf('\n');
    let rest = whole.slice(at + 1);
    if (rest.includes('\r')) rest = rest.slice(rest.lastIndexOf('\r') + 1); // a progress bar paints over its own line
    partial[source] = rest.length > LINE_LIMIT ? '' : rest;
    if (rest.length > LINE_LIMIT) this.#emit(call, source, level, whole);
    else if (at >= 0) this.#emit(call, source, level, whole.slice(0, at));
  }

  /** A complete text that was not written to a stream. */
  record(level, text) {
    this.#emit(current.getStore(), 'log', level, text);
  }

  /** A stack that user code left behind. */
  stack(text) {
    this.record('ERROR', text);
  }

  /** Send the unfinished lines of `call`, or of no call, before its answer. */
  finish(call) {
    const partial = call === null ? this.#partial : call.partial;
    for (const source in partial) {
      const text = partial[source];
      partial[source] = '';
      if (text) this.#emit(call ?? undefined, source, LEVELS[source], text);
    }
  }

  #emit(call, source, level, text) {
    let data = Buffer.from(text);
    let link = this.#link();
    let stream = 0;
    if (call !== undefined && !call.answered) {
      ({ link, stream } = call);
      if (call.logLeft <= 0) return;
      data = withinLimit(call, data);
    }
    if (link === null || link.closed) {
      writeOut(data);
      return;
    }
    const head = `"s":"${source}","l":"${level}"`;
    if (link.lostLines) {
      const lost = link.lostLines;
      link.lostLines = 0;
      const note = `[headrace: ${lost} writes to the log were dropped, faster than the node could take them]`;
      link.log(0, head, Buffer.from(note));
    }
    for (const piece of pieces(data)) link.log(stream, head, piece);
  }
}

/** What `call` may still log of `data`, and that it was cut. */
function withinLimit(call, data) {
  const left = call.logLeft;
  call.logLeft = Math.max(1, left - data.length - 1); // at 0 nothing is said any more, not even that
  if (data.length < left) return data;
  call.logLeft = 0;
  return Buffer.concat([data.subarray(0, boundary(data, left)), CUT]);
}

/** `data` in frames of at most FRAME_LIMIT, cut after a line where there is one. */
function* pieces(data) {
  while (data.length > FRAME_LIMIT) {
    const newline = data.subarray(0, FRAME_LIMIT).lastIndexOf(10);
    const at = newline < 0 ? boundary(data, FRAME_LIMIT) : newline;
    yield data.subarray(0, at);
    data = data.subarray(newline < 0 ? at : at + 1);
  }
  yield data;
}

/** The last position, at most `at`, that is not inside a character. */
function boundary(data, at) {
  let found = at;
  while (found > at - 4 && (data[found] & 0xc0) === 0x80) found -= 1;
  return found;
}

function writeOut(data) {
  try {
    fs.writeSync(2, Buffer.concat([data, Buffer.from('\n')]));
  } catch {
    // nobody reads the container's log, or not fast enough: there is no other place for it
  }
}

/** `process.stdout` or `process.stderr` of user code. Never full, never closed. */
class Output extends Writable {
  level; // while a method of console writes
  #log;
  #source;

  constructor(log, source, fd) {
    super({ decodeStrings: false });
    this.#log = log;
    this.#source = source;
    this.fd = fd;
    this.isTTY = false;
  }

  write(chunk, encoding, callback) {
    const done = typeof encoding === 'function' ? encoding : callback;
    if (typeof chunk === 'string') {
      this.#log.text(this.#source, chunk, this.level);
    } else if (ArrayBuffer.isView(chunk)) {
      this.#log.text(this.#source, Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength).toString(), this.level);
    } else {
      throw new TypeError(`write() takes a string, a Buffer or a Uint8Array, not ${chunk === null ? null : typeof chunk}`);
    }
    if (typeof done === 'function') process.nextTick(done, null);
    return true;
  }

  end(chunk, encoding, callback) {
    if (chunk !== undefined && chunk !== null && typeof chunk !== 'function') this.write(chunk, encoding);
    const done = [chunk, encoding, callback].find((argument) => typeof argument === 'function');
    if (done) process.nextTick(done);
    return this;
  }

  destroy() {
    return this;
  }
}

/** Point process.stdout, process.stderr, console and warnings of this process to `log`. */
function install(log) {
  const streams = { stdout: new Output(log, 'stdout', 1), stderr: new Output(log, 'stderr', 2) };
  for (const name of ['stdout', 'stderr']) {
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => streams[name] });
  }
  for (const [method, level] of Object.entries(METHODS)) giveLevel(method, level, streams);
  process.removeAllListeners('warning'); // Node's own writes to the file descriptor
  process.on('warning', (warning) => log.record('WARNING', `${warning.name}: ${warning.message}`));
}

/** Lines that `console[method]` writes are of `level`. */
function giveLevel(method, level, { stdout, stderr }) {
  const original = console[method];
  console[method] = function (...parts) {
    stdout.level = stderr.level = level;
    try {
      original.apply(this, parts);
    } finally {
      stdout.level = stderr.level = undefined;
    }
  };
}

module.exports = { Log, current, install };
