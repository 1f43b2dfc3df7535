'use strict';
/** What a handler's return value means, as an answer: the rules of payload 2.0, and a clear error for the rest. */

const { isAnyArrayBuffer, isArrayBufferView } = require('node:util').types;
const { inspect } = require('node:util');
const wire = require('./wire');

const HEADERS_LIMIT = 128 << 10; // bytes of an answer's headers, as JSON
const CLOSED_STATUSES = new Set([204, 304]); // answers that have no body
// Set by the platform for every connection; what user code says about them would only be wrong.
const PLATFORM_HEADERS = new Set([
  'connection',
  'content-length',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);
const NAMES_KEPT = 512;
const DEEPEST = 20; // levels that are looked at for what JSON refused

const JSON_TYPE = 'application/json';
const TEXT = 'text/plain; charset=utf-8';
const BINARY = 'application/octet-stream';
const WHAT =
  'Return an object with `statusCode` (and `headers`, `body`, `isBase64Encoded`), any JSON value, a string, a Buffer ' +
  'or Uint8Array, or a stream or generator of strings or bytes.';

const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const FORBIDDEN = /[^\t\x20-\x7e\x80-\xff]/;
const NO_BASE64 = /[^A-Za-z0-9+/]/g;

/** The handler returned something that is no answer; the message says what, and what to return. */
class BadResponse extends Error {
  name = 'BadResponse';
}

const JSON_OK = encodeHead(200, [['content-type', JSON_TYPE]]);
const TEXT_OK = encodeHead(200, [['content-type', TEXT]]);
const BINARY_OK = encodeHead(200, [['content-type', BINARY]]);

/**
 * The answer that `value` stands for, as `[head, body]`: the encoded header of REPLY or HEAD, and a Buffer or something
 * that can be streamed. An empty head belongs to a stream: its first piece decides (`streamHead`), and whether there
 * is one at all. `http` is false for calls that carry a plain JSON payload.
 */
function answer(value, http) {
  if (typeof value === 'string') return http ? [TEXT_OK, Buffer.from(value)] : [JSON_OK, toJson(value)];
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return [JSON_OK, toJson(value)];
  if (http && 'statusCode' in value) return explicit(value);
  const bytes = asBytes(value);
  if (bytes) return [BINARY_OK, bytes];
  return isStream(value) ? ['', value] : [JSON_OK, toJson(value)];
}

/** The head of a streamed answer that is a bare stream and starts with the piece `first`. */
function streamHead(first) {
  return typeof first === 'string' ? TEXT_OK : BINARY_OK;
}

/** One piece of a streamed body as bytes; throws `BadResponse` for anything but a string or bytes. */
function piece(item) {
  if (typeof item === 'string') return Buffer.from(item);
  const bytes = asBytes(item);
  if (bytes) return bytes;
  throw new BadResponse(`the streamed body yielded ${described(item)}: yield strings or bytes.`);
}

function explicit(value) {
  const status = checkedStatus(value.statusCode);
  const headers = headersOf(value);
  if (CLOSED_STATUSES.has(status)) return [encodeHead(status, headers), wire.EMPTY];
  const [body, media] = bodyOf(value);
  if (media && !headers.some(([name]) => name === 'content-type')) headers.push(['content-type', media]);
  return [encodeHead(status, headers), body];
}

function encodeHead(status, headers) {
  const head = wire.dumps({ s: status, h: headers });
  const size = Buffer.byteLength(head);
  if (size > HEADERS_LIMIT) {
    throw new BadResponse(`the headers of the answer take ${size} bytes; the limit is ${HEADERS_LIMIT}.`);
  }
  return head;
}

/** `given` as a number; throws `BadResponse` for what is no status. */
function checkedStatus(given) {
  const status = typeof given === 'string' && /^\d+$/.test(given) ? Number(given) : given;
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    throw new BadResponse(`\`statusCode\` is ${brief(given)}: return a whole number from 200 to 599.`);
  }
  return status;
}

function headersOf(value) {
  const single = value.headers || {};
  const many = value.multiValueHeaders || {};
  const cookies = value.cookies || [];
  if (!isPlain(single) || !isPlain(many)) {
    throw new BadResponse('`headers` and `multiValueHeaders` have to be objects from header names to values.');
  }
  const headers = [];
  for (const name of Object.keys(single)) {
    if (!Object.hasOwn(many, name)) headers.push([headerName(name), headerValue(name, single[name])]);
  }
  for (const name of Object.keys(many)) {
    if (!Array.isArray(many[name])) {
      throw new BadResponse(`\`multiValueHeaders\` maps each name to a list of values; ${brief(name)} does not.`);
    }
    for (const item of many[name]) headers.push([headerName(name), headerValue(name, item)]);
  }
  if (!Array.isArray(cookies)) {
    throw new BadResponse("`cookies` has to be a list of strings such as 'name=value; Path=/'.");
  }
  for (const item of cookies) headers.push(['set-cookie', headerValue('set-cookie', item)]);
  return headers.filter(([name]) => !PLATFORM_HEADERS.has(name));
}

const names = new Map(); // as the code writes them -> as they are sent

function headerName(name) {
  const known = names.get(name);
  if (known !== undefined) return known;
  if (!NAME.test(name)) throw new BadResponse(`${brief(name)} is no header name: use letters, digits and '-'.`);
  if (names.size >= NAMES_KEPT) names.clear();
  const lower = name.toLowerCase();
  names.set(name, lower);
  return lower;
}

function headerValue(name, value) {
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  if (typeof value !== 'string') {
    throw new BadResponse(`header ${brief(name)} has ${described(value)} as its value: return a string.`);
  }
  const found = FORBIDDEN.exec(value);
  if (found) {
    throw new BadResponse(
      `header ${brief(name)} contains ${brief(found[0])}: line breaks, control characters and characters beyond ` +
        'Latin-1 are not allowed in a header; encode the value, for example with encodeURIComponent.',
    );
  }
  return value.trim();
}

/** The body of an explicit answer and its default media type. */
function bodyOf({ body, isBase64Encoded }) {
  if (body === undefined || body === null) return [wire.EMPTY, ''];
  if (typeof body === 'string') return isBase64Encoded ? [decoded(body), BINARY] : [Buffer.from(body), TEXT];
  const bytes = asBytes(body);
  if (bytes) return [isBase64Encoded ? decoded(bytes.toString('latin1')) : bytes, BINARY];
  return isStream(body) ? [body, TEXT] : [toJson(body), JSON_TYPE];
}

/** Base64 as bytes. Characters that are none are skipped, a wrong length is an error. */
function decoded(text) {
  const bytes = Buffer.from(text, 'base64');
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  if (text.length % 4 || bytes.length !== (text.length / 4) * 3 - padding) {
    const data = text.split('=', 1)[0].replace(NO_BASE64, '');
    const closed = text.split('=').length - 1 >= (4 - (data.length % 4)) % 4;
    if (data.length % 4 === 1 || !closed) {
      throw new BadResponse('`isBase64Encoded` is true but `body` is not base64: its length is wrong.');
    }
    return Buffer.from(data, 'base64');
  }
  return bytes;
}

/** `value` as JSON, by the rules of `JSON.stringify`; throws `BadResponse` naming the part that it refuses. */
function toJson(value) {
  if (value === undefined) return Buffer.from('null');
  let text;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    const said = String(error?.message ?? error).split('\n', 1)[0];
    const what = culprit(value, '', []) || `a value that JSON cannot hold (${said})`;
    throw new BadResponse(`the handler returned ${what}. ${WHAT}`);
  }
  if (text === undefined) throw new BadResponse(`the handler returned ${described(value)}. ${WHAT}`);
  return Buffer.from(text);
}

/** Which part of `value` JSON refuses, in words; empty for what it takes. `above` are the objects it is in. */
function culprit(value, path, above) {
  const where = path && ` at ${path}`;
  if (typeof value === 'bigint') return `a value of type bigint${where}, which JSON cannot hold`;
  if (typeof value !== 'object' || value === null || typeof value.toJSON === 'function') return '';
  if (above.includes(value) || above.length > DEEPEST) {
    return `a structure that contains itself or is nested too deeply for JSON${where}`;
  }
  for (const key of Object.keys(value)) {
    const step = Array.isArray(value) ? key : `'${key}'`;
    const found = culprit(value[key], `${path}[${step}]`, [...above, value]);
    if (found) return found;
  }
  return '';
}

/** Bytes of any kind as a Buffer, null for what is none. */
function asBytes(value) {
  if (Buffer.isBuffer(value)) return value;
  if (isArrayBufferView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return isAnyArrayBuffer(value) ? Buffer.from(value) : null;
}

/** True for what is read piece by piece: a ReadableStream, a Node stream, an iterator or generator of either kind. */
function isStream(value) {
  return (
    typeof value.getReader === 'function' ||
    typeof value[Symbol.asyncIterator] === 'function' ||
    (typeof value.next === 'function' && typeof value[Symbol.iterator] === 'function')
  );
}

function isPlain(value) {
  return typeof value === 'object' && !Array.isArray(value);
}

function described(value) {
  if (value === null || value === undefined) return String(value);
  const kind = typeof value === 'object' ? (value.constructor?.name ?? 'object') : typeof value;
  return `a value of type ${kind}`;
}

function brief(value) {
  return inspect(value, { depth: 0, maxStringLength: 80 }).slice(0, 84);
}

module.exports = { BadResponse, answer, asBytes, checkedStatus, decoded, isStream, piece, streamHead, toJson };
