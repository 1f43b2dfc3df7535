'use strict';
/**
 * The connection to the node: one socket, written by one thread.
 *
 * What is sent in one turn leaves in one system call: while received frames are worked on, at the end of that; else
 * when all promises that are settled have been followed up; log lines at once. What can pile up unsent is bounded by the windows of the
 * streams and, for log lines, by `LOG_BACKLOG`: JavaScript cannot wait for room, so a line beyond it is dropped, and the
 * next one that finds room says how many were.
 */

const net = require('node:net');
const wire = require('./wire');

const RECEIVE = 128 << 10; // bytes asked of the socket at once
const EAGER = 64 << 10; // bytes gathered in one turn that are worth a system call before its end
const LOG_BACKLOG = 1 << 20; // unsent bytes beyond which log lines are dropped
const FRAME_LIMIT = 32 << 10; // bytes of text in one LOG frame
const NEWLINE = Buffer.from('\n');

/** Log lines that wait for the socket. */
class Lines {
  #stream;
  #head;
  #texts;
  #at = Date.now() / 1000;
  length; // bytes, nearly

  constructor(stream, head, text) {
    this.#stream = stream;
    this.#head = head;
    this.#texts = [text];
    this.length = text.length;
  }

  /** Take more lines of the same origin; false when they need a frame of their own. */
  take(stream, head, text) {
    if (stream !== this.#stream || head !== this.#head || this.length + text.length > FRAME_LIMIT) return false;
    this.#texts.push(NEWLINE, text);
    this.length += text.length + 1;
    return true;
  }

  frame() {
    const text = this.#texts.length === 1 ? this.#texts[0] : Buffer.concat(this.#texts);
    return wire.encode(wire.LOG, this.#stream, `{"t":${this.#at.toFixed(3)},${this.#head}}`, text);
  }
}

/** One connection, from dialled to lost; the calls that arrived on it stay with it, by their stream. */
class Link {
  calls = new Map();
  closed = false;
  lostLines = 0;

  #socket;
  #decoder = new wire.Decoder();
  #onFrame;
  #onLost;
  #onIdle = null;
  #out = [];
  #size = 0;
  #reading = false;
  #flushing = false;
  #hurried = false;

  /** Dials. `onOpen(link)` once the node answers, `onFrame(link, frame)`, `onLost(link)` once, if it ends or never is. */
  constructor(path, { onOpen, onFrame, onLost }) {
    this.#onFrame = onFrame;
    this.#onLost = onLost;
    const callback = (size, buffer) => this.#received(buffer.subarray(0, size));
    this.#socket = net.connect({ path, onread: { buffer: Buffer.allocUnsafe(RECEIVE), callback } });
    this.#socket.once('connect', () => onOpen(this));
    this.#socket.on('error', () => {}); // the close that follows says enough
    this.#socket.once('close', () => this.#lose());
  }

  /** Send a frame, without waiting. */
  send(frame) {
    if (this.closed) return;
    this.#out.push(frame);
    this.#size += frame.length;
    if (this.#size > EAGER || this.#hurried) {
      this.flush();
    } else if (!this.#reading && !this.#flushing) {
      this.#flushing = true;
      process.nextTick(flush, this);
    }
  }

  /**
   * Send log lines, in the order of everything else; or count them as lost when there is no room for them. `head` is
   * the header of LOG without its time; `text` is at most FRAME_LIMIT bytes long.
   *
   * They leave at once: code that blocks, crashes or is killed next has said its last words. Only when the socket is full
   * do lines wait, and those of one origin in one frame.
   */
  log(stream, head, text) {
    const waiting = this.#socket.writableLength;
    if (this.#size + waiting > LOG_BACKLOG) {
      this.lostLines += 1;
      return;
    }
    const last = this.#out.at(-1);
    if (last instanceof Lines && last.take(stream, head, text)) this.#size += text.length;
    else this.send(new Lines(stream, head, text));
    if (waiting === 0) this.flush();
  }

  /** The call on `stream` has ended. */
  done(stream) {
    this.calls.delete(stream);
    if (this.#onIdle !== null && this.calls.size === 0) process.nextTick(this.#onIdle);
  }

  /** Call `callback` each time that the last running call has ended. */
  watchIdle(callback) {
    this.#onIdle = callback;
  }

  /** Give the socket what waits. As much as it takes at once is sent when this returns. */
  flush() {
    this.#flushing = false;
    if (!this.#out.length || this.closed) return;
    const frames = this.#out.map((item) => (item instanceof Lines ? item.frame() : item));
    const data = frames.length === 1 ? frames[0] : Buffer.concat(frames);
    this.#out = [];
    this.#size = 0;
    this.#socket.write(data);
  }

  /** Call `callback` instead of `onLost`. */
  whenLost(callback) {
    this.#onLost = callback;
  }

  /** The process exits: nothing waits for the end of a turn any more. */
  hurry() {
    this.#hurried = true;
    this.flush();
  }

  /** Resolves when the node has taken all that was sent, or is gone. */
  drained() {
    this.flush();
    return new Promise((resolve) => this.#socket.write(wire.EMPTY, resolve));
  }

  /** End the connection; what is unsent is dropped. */
  close() {
    this.closed = true;
    this.#out = [];
    this.#size = 0;
    this.#socket.destroy();
  }

  /** Work on a received frame. Whoever sends what the protocol does not know is no node: the connection ends. */
  handle(frame) {
    if (this.closed) return;
    try {
      this.#onFrame(this, frame);
    } catch (error) {
      if (!(error instanceof wire.ProtocolError)) throw error;
      this.#lose();
    }
  }

  #received(data) {
    this.#reading = true;
    try {
      for (const frame of this.#decoder.feed(data)) this.handle(frame);
    } catch (error) {
      if (!(error instanceof wire.ProtocolError)) throw error;
      this.#lose();
    } finally {
      this.#reading = false;
      this.flush();
    }
    return true;
  }

  #lose() {
    if (this.closed) return;
    this.close();
    this.#onLost(this);
  }
}

function flush(link) {
  link.flush();
}

module.exports = { FRAME_LIMIT, Link };
