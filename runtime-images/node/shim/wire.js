'use strict';
/**
 * The frames of PROTOCOL.md: a codec without I/O.
 *
 * A frame is a 13-byte prefix in network order (payload length u32, type u8, stream u32, header length u32) and the
 * payload: a header (JSON object, UTF-8, may be empty) followed by a body (raw bytes, the rest).
 */

const { isUtf8 } = require('node:buffer');

const PROTOCOL = 1;

/** Frame types. The value is on the wire and never changes its meaning. */
const TYPES = Object.freeze({
  HELLO: 1,
  LOAD: 2,
  LOADED: 3,
  LOAD_FAILED: 4,
  CALL: 5,
  REPLY: 6,
  HEAD: 7,
  BODY: 8,
  END: 9,
  WINDOW: 10,
  LOG: 11,
  CANCEL: 12,
  PING: 13,
  PONG: 14,
  DRAIN: 15,
  WS_ACCEPT: 16,
  WS_MESSAGE: 17,
  WS_CLOSE: 18,
  WS_GROUP: 19,
});

const PREFIX_SIZE = 13;
const MAX_PAYLOAD = 1 << 20; // bytes of header and body together; more is a protocol error
const INLINE = 64 << 10; // a body up to this many bytes travels inside CALL or REPLY
const CHUNK = 256 << 10; // longest body of one BODY frame
const WINDOW_SIZE = 1 << 20; // body bytes in flight on a stream before the first WINDOW
const EMPTY = Buffer.alloc(0);

/** The peer does not speak this protocol; the connection is of no use any more. */
class ProtocolError extends Error {}

/**
 * One frame as bytes.
 * @param {number} type
 * @param {number} stream
 * @param {string} header JSON already encoded (see `dumps`), or empty
 * @param {Uint8Array} body
 */
function encode(type, stream, header = '', body = EMPTY) {
  const size = Buffer.byteLength(header);
  const frame = Buffer.allocUnsafe(PREFIX_SIZE + size + body.length);
  frame.writeUInt32BE(size + body.length, 0);
  frame[4] = type;
  frame.writeUInt32BE(stream, 5);
  frame.writeUInt32BE(size, 9);
  if (size) frame.write(header, PREFIX_SIZE);
  if (body.length) frame.set(body, PREFIX_SIZE + size);
  return frame;
}

/** A header as text. Lone surrogates, which UTF-8 cannot carry, become escapes. */
const dumps = JSON.stringify;

/** The header of a received frame. Throws `ProtocolError` for anything but a JSON object. */
function loads(header) {
  if (!header) return {};
  let value;
  try {
    value = JSON.parse(header);
  } catch (error) {
    throw new ProtocolError(`frame header is not JSON: ${error.message}`);
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new ProtocolError('frame header is not a JSON object');
  }
  return value;
}

/**
 * Turns received bytes, cut anywhere, into frames `{type, stream, header, body}` with the header as text.
 *
 * Holds at most one incomplete frame; a frame over `MAX_PAYLOAD` is refused from its prefix alone. Nothing it
 * returns or keeps refers to the memory it was fed from, which may be used again at once.
 */
class Decoder {
  #parts = [];
  #missing = 0; // bytes without which no further frame can be complete

  /** The frames that `data` completes, in order. Throws `ProtocolError`. */
  feed(data) {
    if (this.#parts.length) {
      this.#parts.push(Buffer.from(data));
      this.#missing -= data.length;
      if (this.#missing > 0) return [];
      data = Buffer.concat(this.#parts);
      this.#parts = [];
    }
    const frames = [];
    const end = data.length;
    let offset = 0;
    let missing = 0;
    for (;;) {
      const headerAt = offset + PREFIX_SIZE;
      missing = headerAt - end;
      if (missing > 0) break;
      const size = data.readUInt32BE(offset);
      const headerSize = data.readUInt32BE(offset + 9);
      if (size > MAX_PAYLOAD || headerSize > size) {
        throw new ProtocolError(`frame of type ${data[offset + 4]} announces ${size} bytes, header ${headerSize}`);
      }
      const next = headerAt + size;
      missing = next - end;
      if (missing > 0) break;
      frames.push(frame(data, offset, headerAt + headerSize, next));
      offset = next;
    }
    if (offset < end) {
      this.#parts.push(Buffer.from(data.subarray(offset)));
      this.#missing = missing;
    }
    return frames;
  }

  /** True between frames: the stream may end here without having cut one. */
  get empty() {
    return !this.#parts.length;
  }
}

function frame(data, offset, bodyAt, next) {
  return {
    type: data[offset + 4],
    stream: data.readUInt32BE(offset + 5),
    header: text(data, offset + PREFIX_SIZE, bodyAt),
    body: bodyAt < next ? Buffer.from(data.subarray(bodyAt, next)) : EMPTY,
  };
}

function text(data, from, to) {
  if (from === to) return '';
  const found = data.toString('utf8', from, to);
  if (found.includes('\ufffd') && !isUtf8(data.subarray(from, to))) {
    throw new ProtocolError('frame header is not UTF-8');
  }
  return found;
}

module.exports = {
  ...TYPES,
  PROTOCOL,
  PREFIX_SIZE,
  MAX_PAYLOAD,
  INLINE,
  CHUNK,
  WINDOW_SIZE,
  EMPTY,
  ProtocolError,
  Decoder,
  encode,
  dumps,
  loads,
};
