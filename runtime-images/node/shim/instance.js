'use strict';
/**
 * The life of an instance: dial, say HELLO, wait for LOAD, import, serve, drain, exit.
 *
 * One process, one function version. `link` is the current connection, null while there is none.
 */

const wire = require('./wire');
const { describe } = require('./errors');
const { Link } = require('./link');
const { load } = require('./load');
const logs = require('./logs');

const DIAL_EVERY_MS = 200;
const LOST_AFTER_MS = 60_000; // without a node, an instance exits
const FAILED_STAYS_MS = 10_000; // after LOAD_FAILED the node ends the connection, and the instance; no longer than this
const MOST_EARLY = 1000; // frames
const FLUSH_MS = 5_000; // longest wait, at the end, for the node to take the last bytes

const exit = process.exit.bind(process); // user code may put its own in place

class Instance {
  link = null;
  #path;
  #id;
  #code;
  #log = new logs.Log(() => this.link);
  #app = null;
  #loading = false;
  #early = []; // frames that came while the code was loaded
  #links = []; // with calls that still run, lost ones too
  #dialledAt = 0;
  #lostAt = performance.now();
  #draining = false;
  #finished = false;

  constructor({ path, id, code }) {
    this.#path = path;
    this.#id = id;
    this.#code = code;
  }

  /** Live until the end of the process. */
  start() {
    logs.install(this.#log);
    for (const name of ['SIGTERM', 'SIGINT']) process.on(name, () => this.drain());
    process.on('uncaughtException', (error) => this.#stray('uncaughtException', error));
    process.on('unhandledRejection', (reason) => this.#stray('unhandledRejection', reason));
    process.on('exit', (code) => this.#exiting(code));
    this.#dial();
  }

  /** Finish the running calls, then shut down. */
  drain() {
    if (this.#app === null) {
      this.#loading = false;
      exit(0); // nothing runs yet
    }
    if (this.#draining) return;
    this.#draining = true;
    for (const link of this.#links) link.watchIdle(() => this.#checkIdle());
    this.#checkIdle();
  }

  #hello() {
    const header = { protocol: wire.PROTOCOL, runtime: 'node', runtime_version: process.versions.node };
    Object.assign(header, { pid: process.pid, instance: this.#id, loaded: this.#app !== null });
    if (this.#app !== null) header.kind = this.#app.kind;
    return wire.encode(wire.HELLO, 0, wire.dumps(header));
  }

  #dial() {
    this.#dialledAt = performance.now();
    new Link(this.#path, {
      onOpen: (link) => this.#adopt(link),
      onFrame: (link, frame) => this.#onFrame(link, frame),
      onLost: (link) => this.#onLost(link),
    });
  }

  #adopt(link) {
    this.link = link;
    this.#links = this.#links.filter((old) => old.calls.size);
    this.#links.push(link);
    if (this.#draining) link.watchIdle(() => this.#checkIdle());
    link.send(this.#hello());
  }

  /** The connection has ended, or there was nobody to connect to. */
  #onLost(link) {
    if (this.link === link) {
      this.link = null;
      this.#lostAt = performance.now();
      for (const call of [...link.calls.values()]) this.#app.lost(call);
    } else if (performance.now() - this.#lostAt > LOST_AFTER_MS) {
      exit(1);
    }
    if (!this.#loading) this.#dialLater(); // who loads says HELLO when it is loaded
  }

  #dialLater() {
    setTimeout(() => this.#dial(), Math.max(0, this.#dialledAt + DIAL_EVERY_MS - performance.now()));
  }

  #onFrame(link, frame) {
    const type = frame.type;
    if (type === wire.PING) link.send(wire.encode(wire.PONG, 0));
    else if (type === wire.DRAIN) this.drain();
    else if (this.#app !== null) this.#onCall(link, frame);
    else if (this.#loading) this.#keep(frame);
    else if (type === wire.LOAD) this.#load(link, wire.loads(frame.header));
  }

  /** Calls may be sent with LOAD; they are served after it. */
  #keep(frame) {
    if (this.#early.length >= MOST_EARLY) throw new wire.ProtocolError('too many frames before LOADED');
    this.#early.push(frame);
  }

  #onCall(link, frame) {
    if (frame.type === wire.CALL) {
      this.#app.call(link, frame);
      return;
    }
    const call = link.calls.get(frame.stream);
    if (call === undefined || call.answered) return;
    switch (frame.type) {
      case wire.BODY:
        return this.#app.body(call, frame.body);
      case wire.END:
        return this.#app.end(call, 'e' in wire.loads(frame.header));
      case wire.WINDOW:
        return call.flow?.grant(granted(frame));
      case wire.CANCEL:
        return this.#app.cancel(call, wire.loads(frame.header).why ?? 'client');
    }
  }

  async #load(link, spec) {
    this.#loading = true;
    const started = performance.now();
    try {
      const app = await load(spec, this.#code, this.#id, this.#log);
      this.#loading = false;
      this.#app = app;
    } catch (error) {
      this.#loading = false;
      this.#giveUp(link, describe(error, this.#code));
      return;
    }
    this.#log.finish(null);
    const ms = Math.round((performance.now() - started) * 1000) / 1000;
    link.send(wire.encode(wire.LOADED, 0, wire.dumps({ kind: this.#app.kind, ms })));
    const early = this.#early.splice(0);
    if (link.closed) this.#dialLater();
    else for (const frame of early) link.handle(frame);
  }

  #giveUp(link, failure) {
    this.#log.finish(null);
    link.send(wire.encode(wire.LOAD_FAILED, 0, wire.dumps(failure)));
    if (link.closed) exit(1);
    link.whenLost(() => exit(1));
    setTimeout(() => exit(1), FAILED_STAYS_MS);
  }

  #stray(event, error) {
    if (process.listenerCount(event) > 1) return; // the code has a listener of its own, which decides
    if (this.#app !== null) this.#app.stray(error);
    else this.#log.stack(describe(error, this.#code).stack);
  }

  #exiting(code) {
    this.link?.hurry();
    if (!this.#loading) return;
    this.#log.finish(null);
    const message = `the code called process.exit(${code}) while it was loaded`;
    this.link?.send(wire.encode(wire.LOAD_FAILED, 0, wire.dumps({ type: 'Exit', message, stack: message })));
  }

  #checkIdle() {
    if (this.#finished || this.#links.some((link) => link.calls.size)) return;
    this.#finished = true;
    this.#log.finish(null);
    setTimeout(() => exit(0), FLUSH_MS);
    if (this.link === null) exit(0);
    else this.link.drained().then(() => exit(0));
  }
}

function granted(frame) {
  const { n } = wire.loads(frame.header);
  if (!Number.isInteger(n)) throw new wire.ProtocolError('WINDOW without a number');
  return n;
}

module.exports = { Instance };
