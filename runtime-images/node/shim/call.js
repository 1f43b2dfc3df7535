'use strict';
/** One call, from its CALL frame to its answer, and the flow of its streamed answer. */

const wire = require('./wire');

const LOG_LIMIT = 256 << 10; // bytes of log text of one call
const GRANT = 64 << 10; // consumed bytes worth a WINDOW frame

/** Nobody takes this answer any more: the caller left, the time is up, or the connection ended. */
class Gone extends Error {
  constructor() {
    super('the caller is gone');
    this.name = 'Gone';
  }
}

/** What is known about a running call. `opened`, `answered` and `gone` only ever turn true. */
class Call {
  gone = false; // nobody waits for the answer
  opened = false; // HEAD was sent
  answered = false;
  logLeft = LOG_LIMIT;
  partial = null; // unfinished lines by source
  pieces = null; // of a request body that is still arriving
  flow = null;
  source = null; // of a streamed answer, while it is read
  sockets = null; // `context.ws`, once the handler has asked for it
  #consumed = 0; // request bytes not granted yet
  #controller = null;

  /** Throws `ProtocolError` for a CALL that lacks what every call has. */
  constructor(link, stream, head) {
    if (typeof head.id !== 'string' || typeof head.d !== 'number') throw new wire.ProtocolError('CALL without id or d');
    this.link = link;
    this.stream = stream;
    this.head = head;
    this.deadline = performance.now() + head.d;
  }

  /** Aborted when the node cancels the call. Made when it is first asked for. */
  get signal() {
    return this.#abort().signal;
  }

  /** The node has cancelled the call: whoever holds `signal` learns `why`. */
  abort(why) {
    const late = why === 'timeout';
    const message = late ? 'the time limit of the call has passed' : 'the caller has left';
    this.#abort().abort(new DOMException(message, late ? 'TimeoutError' : 'AbortError'));
  }

  /** `size` bytes of the request were taken; lets the node send as many more, in worthwhile steps. */
  grant(size) {
    this.#consumed += size;
    if (this.#consumed >= GRANT) {
      this.link.send(wire.encode(wire.WINDOW, this.stream, `{"n":${this.#consumed}}`));
      this.#consumed = 0;
    }
  }

  /** Send the head of a streamed answer; throws `Gone`. */
  open(head) {
    if (this.gone) throw new Gone();
    this.opened = true;
    this.link.send(wire.encode(wire.HEAD, this.stream, head));
  }

  /** What sends under the window of this call, its answer and its messages to WebSockets. */
  outflow() {
    return this.flow ?? new Outflow(this);
  }

  /** Send the last frame of the answer, unless nobody waits for it. */
  finish(type, head, body) {
    if (this.answered) return;
    this.answered = true;
    if (!this.gone) this.link.send(wire.encode(type, this.stream, head, body));
  }

  /** Finish with a failure, in the way that the state of the answer allows. */
  fail(error) {
    this.finish(this.opened ? wire.END : wire.REPLY, wire.dumps({ e: error }));
  }

  /** Nobody waits any more; who sends an answer gets `Gone`, and a stream that is being read is let go. */
  leave() {
    this.gone = true;
    this.flow?.stop();
    this.source?.cancel();
  }

  #abort() {
    return (this.#controller ??= new AbortController());
  }
}

/** Sends a streamed body, and messages to WebSockets, under the window of its call. */
class Outflow {
  #call;
  #window = wire.WINDOW_SIZE;
  #wakes = [];

  constructor(call) {
    this.#call = call;
    call.flow = this;
  }

  grant(size) {
    this.#window += size;
    this.stop();
  }

  /** Let the sender look again: there is room, or nobody is there any more. */
  stop() {
    for (const wake of this.#wakes.splice(0)) wake();
  }

  /** Send `data` as one frame if the window allows. */
  sendAtOnce(data, frame) {
    if (this.#window <= 0 || data.length > wire.CHUNK) return false;
    this.#window -= data.length;
    this.#call.link.send(frame(data, false));
    return true;
  }

  /** Send `data` as the window allows, in frames made by `frame(piece, more)`; throws `Gone`. */
  async send(data, frame = (piece) => wire.encode(wire.BODY, this.#call.stream, '', piece)) {
    for (let at = 0; at < data.length; ) {
      if (this.#call.gone) throw new Gone();
      if (this.#window <= 0) {
        await new Promise((resolve) => this.#wakes.push(resolve));
      } else {
        const size = Math.min(this.#window, wire.CHUNK, data.length - at);
        this.#window -= size;
        this.#call.link.send(frame(data.subarray(at, at + size), at + size < data.length));
        at += size;
      }
    }
  }
}

module.exports = { Call, Gone, Outflow };
