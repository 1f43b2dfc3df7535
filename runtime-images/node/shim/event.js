'use strict';
/**
 * What a handler is called with: the event, in the shape of API Gateway's HTTP payload 2.0, and the context.
 *
 * Keys that API Gateway leaves out when they are empty are always there: `cookies` [], `queryStringParameters` {},
 * `body` "". So `event.body` never fails, and code that tests them sees the same falsy or empty value.
 */

const { isUtf8 } = require('node:buffer');
const querystring = require('node:querystring');
const { Connections } = require('./sockets');

const TEXT_TYPES = new Set([
  'application/json',
  'application/xml',
  'application/javascript',
  'application/x-www-form-urlencoded',
]);
const CONNECT_KEYS = ['headers', 'queryStringParameters', 'rawPath', 'rawQueryString']; // of the request
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** The payload of a call is not JSON. */
class BadPayload extends Error {
  name = 'BadPayload';
}

/** Which function this instance runs: the part of LOAD that events and contexts show. */
class Function {
  constructor(spec, instance) {
    this.namespace = String(spec.namespace);
    this.name = String(spec.function);
    this.version = String(spec.version);
    this.memoryMb = Number(spec.memory_mb);
    this.instance = instance;
    this.arn = `arn:headrace:function:${this.namespace}:${this.name}:${this.version}`;
    this.logGroup = `/headrace/${this.namespace}/${this.name}`;
  }
}

/** The second argument of a handler: who runs, for whom, for how long yet. */
class Context {
  #call;
  #function;

  constructor(call, fn) {
    this.#call = call;
    this.#function = fn;
  }

  /** Milliseconds until the platform answers 504 in the function's place; never below 0. */
  getRemainingTimeInMillis() {
    return Math.max(0, Math.trunc(this.#call.deadline - performance.now()));
  }

  /** An AbortSignal: aborted when the time is up or the caller has left, so that nobody waits for the answer. */
  get signal() {
    return this.#call.signal;
  }

  /** The WebSockets of this function: answer, close, send to others and to groups. */
  get ws() {
    return (this.#call.sockets ??= new Connections(this.#call));
  }

  get invocationId() {
    return this.#call.head.id;
  }

  get invocation_id() {
    return this.#call.head.id;
  }

  get awsRequestId() {
    return this.#call.head.id;
  }

  get namespace() {
    return this.#function.namespace;
  }

  get functionName() {
    return this.#function.name;
  }

  get functionVersion() {
    return this.#function.version;
  }

  get memoryLimitInMB() {
    return this.#function.memoryMb;
  }

  get invokedFunctionArn() {
    return this.#function.arn;
  }

  get logGroupName() {
    return this.#function.logGroup;
  }

  get logStreamName() {
    return this.#function.instance;
  }
}

/** Makes events. Keeps the time of day as text for the second it is true in. */
class Events {
  #name;
  #second = 0;
  #text = '';

  constructor(fn) {
    this.#name = fn.name;
  }

  /** The event of a call; throws `BadPayload` for a payload that is not JSON. */
  event(head, body) {
    if ('c' in head) return this.#socket(head, body);
    if ('m' in head) return this.#http(head, body);
    if (!body.length) return {};
    if (!isUtf8(body)) throw new BadPayload('the payload of this call is not JSON: it is not UTF-8');
    try {
      return JSON.parse(body.toString());
    } catch (error) {
      throw new BadPayload(`the payload of this call is not JSON: ${error.message}`);
    }
  }

  /** In the shape of API Gateway's WebSocket events. */
  #socket(head, body) {
    const kind = head.ev ?? 'connect';
    const request = kind === 'connect' ? this.#http(head, body) : null;
    const now = Date.now();
    const event = {
      requestContext: {
        apiId: this.#name,
        connectedAt: head.at,
        connectionId: head.c,
        domainName: request ? request.requestContext.domainName : head.host.replace(/:\d+$/, ''),
        eventType: kind.toUpperCase(),
        extendedRequestId: head.id,
        identity: { sourceIp: head.ip },
        messageDirection: 'IN',
        requestId: head.id,
        requestTime: this.#time(now),
        requestTimeEpoch: now,
        routeKey: kind === 'message' ? '$default' : `$${kind}`,
        stage: '$default',
      },
      body: '',
      isBase64Encoded: false,
    };
    if (request) {
      event.requestContext.identity.userAgent = request.requestContext.http.userAgent;
      for (const key of CONNECT_KEYS) event[key] = request[key];
    } else if (kind === 'message') {
      event.requestContext.messageId = head.id;
      event.body = body.toString(head.t ? 'utf8' : 'base64');
      event.isBase64Encoded = !head.t;
    } else {
      event.requestContext.disconnectStatusCode = head.code;
      event.requestContext.disconnectReason = head.r;
    }
    return event;
  }

  #http(head, body) {
    const headers = joined(head.h);
    const { cookie, host = '' } = headers;
    const domain = host.includes(':') ? host.replace(/:\d+$/, '') : host;
    const now = Date.now();
    const isText = body.length === 0 || ((headers['content-type'] === undefined || hasText(headers)) && isUtf8(body));
    return {
      version: '2.0',
      routeKey: '$default',
      rawPath: head.p,
      rawQueryString: head.q,
      cookies: cookie ? cookie.split(';').map((item) => item.trim()) : [],
      headers,
      queryStringParameters: head.q ? parameters(head.q) : {},
      requestContext: {
        accountId: 'anonymous',
        apiId: this.#name,
        domainName: domain,
        domainPrefix: domain.split('.', 1)[0],
        http: {
          method: head.m,
          path: head.p,
          protocol: `HTTP/${head.v}`,
          sourceIp: head.ip,
          userAgent: headers['user-agent'] ?? '',
        },
        requestId: head.id,
        routeKey: '$default',
        stage: '$default',
        time: this.#time(now),
        timeEpoch: now,
      },
      body: isText ? body.toString() : body.toString('base64'),
      isBase64Encoded: !isText,
    };
  }

  #time(now) {
    const second = Math.trunc(now / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#text = clfTime(new Date(now));
    }
    return this.#text;
  }
}

function joined(pairs) {
  const headers = {};
  for (const [name, value] of pairs) {
    if (Object.hasOwn(headers, name)) headers[name] += (name === 'cookie' ? '; ' : ',') + value;
    else headers[name] = value;
  }
  return headers;
}

function clfTime(at) {
  const two = (number) => String(number).padStart(2, '0');
  const date = `${two(at.getUTCDate())}/${MONTHS[at.getUTCMonth()]}/${at.getUTCFullYear()}`;
  return `${date}:${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())} +0000`;
}

function parameters(query) {
  const found = {};
  for (const part of query.split('&')) {
    if (!part) continue;
    const at = part.indexOf('=');
    const name = unquoted(at < 0 ? part : part.slice(0, at));
    const value = at < 0 ? '' : unquoted(part.slice(at + 1));
    found[name] = Object.hasOwn(found, name) ? `${found[name]},${value}` : value;
  }
  return found;
}

/** As forms encode: '+' is a space, and what is no valid escape stays as it is. */
function unquoted(text) {
  const spaced = text.includes('+') ? text.replaceAll('+', ' ') : text;
  return spaced.includes('%') ? querystring.unescape(spaced) : spaced;
}

function hasText(headers) {
  const media = headers['content-type'].split(';', 1)[0].trim().toLowerCase();
  return media.startsWith('text/') || TEXT_TYPES.has(media) || media.endsWith('+json') || media.endsWith('+xml');
}

module.exports = { Context, Events, Function };
