'use strict';
/**
 * `context.ws`, and what a handler's return value means to a WebSocket.
 *
 * The node holds the sockets. What is asked for here travels as frames on the stream of the call, in order and before
 * its answer; nothing comes back, so a connection that has gone is no error. Messages count under the window of the
 * call: who wants to go at the speed of the client awaits what `send` returns.
 */

const wire = require('./wire');
const { BadResponse, answer, asBytes, checkedStatus, decoded, isStream, toJson } = require('./response');

const MESSAGE_LIMIT = 1 << 20; // bytes of one message
const GROUP_LIMIT = 128; // characters of a group's name
const REASON_LIMIT = 123; // bytes of a close reason
const NO_CODES = new Set([1004, 1005, 1006]);
const SENT = Promise.resolve();

/** The WebSockets of this function, for a handler: to answer, close, and send to others or to groups. */
class Connections {
  #call;
  #last = null; // settles when all that waits for the window has left

  constructor(call) {
    this.#call = call;
  }

  /** The connection that this event is about; null in a call that is no event of a WebSocket. */
  get connectionId() {
    return this.#call.head.c ?? null;
  }

  /** Send a string as text, bytes as binary, any other value as JSON: to this connection, to another, or to a group. */
  send(data, { to, group } = {}) {
    const bytes = asBytes(data);
    const body = bytes ?? (typeof data === 'string' ? Buffer.from(data) : toJson(data));
    if (body.length > MESSAGE_LIMIT) {
      throw new RangeError(`the message has ${body.length} bytes; the limit is ${MESSAGE_LIMIT}: send it in parts`);
    }
    if (to !== undefined && group !== undefined) throw new TypeError('give `to` or `group`, not both');
    const where = group === undefined ? { to: this.#named(to) } : { g: checkedGroup(group) };
    const head = { t: bytes ? 0 : 1, ...where };
    const whole = wire.dumps(head);
    const part = wire.dumps({ ...head, more: true });
    return this.#send(body, (piece, more) =>
      wire.encode(wire.WS_MESSAGE, this.#call.stream, more ? part : whole, piece),
    );
  }

  /** Close this connection, or another, after what was sent to it. */
  close(code = 1000, reason = '', { to } = {}) {
    const known = (code >= 1000 && code <= 1014) || (code >= 3000 && code <= 4999);
    if (!Number.isInteger(code) || !known || NO_CODES.has(code)) {
      throw new RangeError(`${String(code)} is no code to close with: use 1000 or one from 3000 to 4999`);
    }
    if (Buffer.byteLength(reason) > REASON_LIMIT) throw new RangeError(`a close reason may have ${REASON_LIMIT} bytes`);
    this.#tell(wire.WS_CLOSE, { c: code, r: reason, to: this.#named(to) });
  }

  /** Put this connection, or another, into a group. */
  join(group, { to } = {}) {
    this.#tell(wire.WS_GROUP, { g: checkedGroup(group), to: this.#named(to), in: true });
  }

  /** Take this connection, or another, out of a group. */
  leave(group, { to } = {}) {
    this.#tell(wire.WS_GROUP, { g: checkedGroup(group), to: this.#named(to) });
  }

  /** True while something waits for the window. */
  get waiting() {
    return this.#last !== null;
  }

  /** Resolves when everything is sent. */
  settled() {
    return this.#last ?? SENT;
  }

  #named(to) {
    const name = to ?? this.connectionId;
    if (name === null) {
      throw new TypeError('this call has no connection of its own: name one with `to`, or a `group`');
    }
    if (typeof name !== 'string' || !name.length || name.length > 64) {
      throw new TypeError(`${String(name)} is no connection id`);
    }
    return name;
  }

  #tell(type, head) {
    this.#send(wire.EMPTY, () => wire.encode(type, this.#call.stream, wire.dumps(head)));
  }

  #send(data, frame) {
    const call = this.#call;
    if (call.gone || call.answered) return SENT;
    if (this.#last === null && call.outflow().sendAtOnce(data, frame)) return SENT;
    const turn = this.settled().then(() => this.#sendInTurn(data, frame));
    this.#last = turn;
    turn.then(() => {
      if (this.#last === turn) this.#last = null;
    });
    return turn;
  }

  async #sendInTurn(data, frame) {
    const call = this.#call;
    try {
      if (data.length) await call.outflow().send(data, frame);
      else if (!call.gone) call.link.send(frame(data, false));
    } catch (error) {
      if (error.name !== 'Gone') throw error; // nobody takes it any more
    }
  }
}

/** The answer to `connect`: an object whose `statusCode` is not 2xx refuses the socket, anything else accepts it. */
function connectOutcome(value) {
  const accepted = { ev: true };
  if (isExplicit(value)) {
    const [head, body] = answer(value, true);
    const { s, h } = wire.loads(head);
    if (s < 200 || s > 299) {
      if (!Buffer.isBuffer(body) || body.length > wire.INLINE) {
        throw new BadResponse(`the body of a refused WebSocket may have ${wire.INLINE} bytes.`);
      }
      return { type: wire.REPLY, head, body };
    }
    const chosen = h.find(([name]) => name === 'sec-websocket-protocol');
    if (chosen) accepted.sp = chosen[1];
  }
  return { type: wire.WS_ACCEPT, head: wire.dumps(accepted), body: wire.EMPTY };
}

/** The answer to `message` and `disconnect`: what is returned goes back as a message, null or undefined sends nothing. */
function eventOutcome(value) {
  let status = 200;
  let message = value;
  if (isExplicit(value)) {
    status = checkedStatus(value.statusCode);
    message = typeof value.body === 'string' && value.isBase64Encoded ? decoded(value.body) : value.body;
    if (message === '') message = undefined;
  }
  if (typeof message === 'object' && message !== null && !asBytes(message) && isStream(message)) {
    throw new BadResponse('an event of a WebSocket is not answered with a stream: send each piece by context.ws.send.');
  }
  return { type: wire.REPLY, head: `{"s":${status}}`, body: wire.EMPTY, message: message ?? undefined };
}

function isExplicit(value) {
  return typeof value === 'object' && value !== null && 'statusCode' in value;
}

function checkedGroup(name) {
  if (typeof name !== 'string' || !name.length || name.length > GROUP_LIMIT) {
    throw new TypeError(`${String(name)} is no group: use a string of 1 to ${GROUP_LIMIT} characters`);
  }
  return name;
}

module.exports = { Connections, connectOutcome, eventOutcome };
