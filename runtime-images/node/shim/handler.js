'use strict';
/**
 * Runs calls: `handler(event, context)`, plain or async, with a whole or a streamed answer.
 *
 * Everything runs in the one thread that JavaScript has. A handler that has answered synchronously is answered in the
 * same turn; a promise is followed, a stream is read piece by piece as the window of the call allows.
 */

const wire = require('./wire');
const { Call, Gone } = require('./call');
const { describe } = require('./errors');
const { Context, Events } = require('./event');
const { current } = require('./logs');
const { answer, piece, streamHead } = require('./response');
const { connectOutcome, eventOutcome } = require('./sockets');
const { Source } = require('./source');

const DEPARTURES = new Set(['Gone', 'AbortError', 'TimeoutError']); // names of errors
const CUT_OFF = 'ERR_STREAM_PREMATURE_CLOSE';

/** Runs the calls of one handler, which lives below the directory `root`. */
class HandlerApp {
  kind = 'handler';
  #handler;
  #function;
  #events;
  #root;
  #log;

  constructor(handler, fn, root, log) {
    this.#handler = handler;
    this.#function = fn;
    this.#events = new Events(fn);
    this.#root = root;
    this.#log = log;
  }

  /** A CALL frame. */
  call(link, frame) {
    const call = new Call(link, frame.stream, wire.loads(frame.header));
    link.calls.set(frame.stream, call);
    if (call.head.more) call.pieces = [frame.body];
    else this.#begin(call, frame.body);
  }

  /** A piece of the request. Handlers get it whole, so it is taken at once. */
  body(call, data) {
    if (call.pieces !== null) {
      call.pieces.push(data);
      call.grant(data.length);
    }
  }

  /** The request is complete; or its caller stopped halfway, and there is nothing to run. */
  end(call, broken) {
    const pieces = call.pieces;
    call.pieces = null;
    if (pieces === null) return;
    if (broken) call.link.done(call.stream);
    else this.#begin(call, Buffer.concat(pieces));
  }

  /** Nobody waits any more. Nothing can stop the handler but its own look at `context.signal`; its answer is dropped. */
  cancel(call, why) {
    this.lost(call);
    current.run(call, () => call.abort(why));
  }

  /** The connection ended: a handler runs to its end, a stream breaks off. */
  lost(call) {
    call.leave();
    if (call.pieces !== null) {
      call.pieces = null;
      call.link.done(call.stream);
    }
  }

  /** An error that nobody caught: it fails the call that it belongs to, if that has no answer yet. */
  stray(error) {
    const call = current.getStore();
    if (call === undefined || call.answered) this.#log.stack(describe(error, this.#root).stack);
    else this.#fail(call, error);
  }

  #begin(call, body) {
    current.run(call, () => this.#run(call, body));
  }

  #run(call, body) {
    let value;
    try {
      value = this.#handler(this.#events.event(call.head, body), new Context(call, this.#function));
      if ('c' in call.head) value = this.#conclude(call, value);
      else if (call.sockets?.waiting) value = Promise.resolve(value); // what it sent goes first
      if (typeof value?.then !== 'function') {
        this.#answer(call, value);
        return;
      }
    } catch (error) {
      this.#fail(call, error);
      return;
    }
    this.#follow(call, value);
  }

  async #follow(call, promise) {
    try {
      const value = await promise;
      if ('c' in call.head) return;
      await call.sockets?.settled();
      this.#answer(call, value);
    } catch (error) {
      this.#fail(call, error);
    }
  }

  /** Answer an event of a WebSocket; what it returns goes back to the client as a message. */
  async #conclude(call, promise) {
    const value = await promise;
    const { type, head, body, message } = call.head.ws ? connectOutcome(value) : eventOutcome(value);
    const { ws } = new Context(call, this.#function);
    if (message !== undefined) ws.send(message);
    await ws.settled();
    this.#close(call, type, head, body);
  }

  #answer(call, value) {
    const [head, content] = answer(value, 'm' in call.head);
    if (!Buffer.isBuffer(content)) this.#stream(call, head, content);
    else if (content.length <= wire.INLINE) this.#close(call, wire.REPLY, head, content);
    else this.#sendLong(call, head, content);
  }

  async #sendLong(call, head, content) {
    try {
      call.open(head);
      await call.outflow().send(content);
      this.#close(call, wire.END);
    } catch (error) {
      this.#fail(call, error);
    }
  }

  async #stream(call, head, items) {
    try {
      if (head) call.open(head);
      call.source = new Source(items, (error) => this.#complain(call, error));
      await this.#send(call);
    } catch (error) {
      call.source?.cancel();
      this.#fail(call, error);
    }
  }

  /** Read `call.source` to its end. An answer without any piece is an empty one. */
  async #send(call) {
    const flow = call.outflow();
    for (;;) {
      if (call.gone) throw new Gone();
      const { done, value } = await call.source.next();
      if (done) break;
      const data = piece(value);
      if (!call.opened) call.open(streamHead(value));
      await flow.send(data);
    }
    if (call.opened) this.#close(call, wire.END);
    else this.#close(call, wire.REPLY, streamHead(''), wire.EMPTY);
  }

  #close(call, type, head = '', content = wire.EMPTY) {
    this.#log.finish(call);
    call.finish(type, head, content);
    call.link.done(call.stream);
  }

  #fail(call, error) {
    if (!(call.gone && isDeparture(error))) {
      const failure = describe(error, this.#root);
      this.#log.stack(failure.stack);
      this.#log.finish(call);
      call.fail(failure);
    }
    call.link.done(call.stream);
  }

  /** Something went wrong while a source was let go. */
  #complain(call, error) {
    if (!isDeparture(error)) this.#log.stack(describe(error, this.#root).stack);
  }
}

/** True for how work ends when its caller has left: `Gone`, the reason of an aborted signal, a stream cut short. */
function isDeparture(error) {
  return DEPARTURES.has(error?.name) || error?.code === CUT_OFF;
}

module.exports = { HandlerApp };
