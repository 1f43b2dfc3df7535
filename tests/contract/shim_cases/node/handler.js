'use strict';
/** The code of `cases.json` for Node: `handler` plain, `asyncHandler` a promise. */

function* failFirst() {
  throw new Error('before any piece');
}

function* failLater() {
  yield 'one';
  throw new Error('after a piece');
}

function* wrongPiece() {
  yield 'one';
  yield 2;
}

function raises() {
  throw new RangeError('no such luck');
}

function circular() {
  const value = [];
  value.push(value);
  return value;
}

const pieces = (...items) => items.values();
const ok = (fields) => ({ statusCode: 200, ...fields });

const CASES = {
  object: () => ({ a: [1, 2.5, null, true], ü: 'é' }),
  list: () => [1, 'two'],
  number: () => 7,
  nothing: () => undefined,
  text: () => 'grüß dich',
  bytes: () => Buffer.from([0, 1, 255]),
  'plain-object': () => ({ body: 'x', headers: {} }),
  explicit: () => ({ statusCode: 201, headers: { 'Content-Type': 'text/html', 'X-One': '1' }, body: '<p>hi</p>' }),
  'explicit-untyped': () => ok({ body: 'hi' }),
  'only-status': () => ({ statusCode: 404 }),
  'status-text': () => ({ statusCode: '202' }),
  base64: () => ok({ headers: { 'content-type': 'image/png' }, body: 'iVBORw==', isBase64Encoded: true }),
  'object-body': () => ok({ body: { ok: true } }),
  'loose-headers': () => ok({ headers: { 'x-number': 7, 'x-yes': true } }),
  multi: () => ok({ headers: { 'x-a': 'lost' }, multiValueHeaders: { 'x-a': ['1', '2'] }, body: 'm' }),
  cookies: () => ok({ cookies: ['a=1; Path=/', 'b=2'], body: 'c' }),
  'hop-headers': () =>
    ok({
      headers: { Connection: 'close', 'Transfer-Encoding': 'chunked', 'Content-Length': '99', 'x-own': '1' },
      body: 'h',
    }),
  'no-content': () => ({ statusCode: 204, body: 'dropped' }),
  'untidy-headers': () => ok({ headers: { 'X-Mixed-Case': '  v ' } }),
  'status-600': () => ({ statusCode: 600 }),
  'status-zero': () => ({ statusCode: 0 }),
  'status-words': () => ({ statusCode: 'fine' }),
  'status-true': () => ({ statusCode: true }),
  crlf: () => ok({ headers: { 'x-bad': 'a\r\nset-cookie: stolen=1' } }),
  'crlf-name': () => ok({ headers: { 'x-bad\r\nx': 'a' } }),
  'wide-header': () => ok({ headers: { 'x-wide': '日本' } }),
  'crlf-cookie': () => ok({ cookies: ['a=1\n'] }),
  'odd-header': () => ok({ headers: { 'x-odd': ['a'] } }),
  'header-array': () => ok({ headers: [['a', 'b']] }),
  'not-base64': () => ok({ body: 'a', isBase64Encoded: true }),
  unholdable: () => ({ deep: 1n }),
  nan: () => ({ value: NaN }),
  circular,
  'huge-headers': () =>
    ok({ headers: Object.fromEntries(Array.from({ length: 200 }, (_, n) => [`x-${n}`, 'v'.repeat(1000)])) }),
  raise: raises,
  sized: (event) => Buffer.alloc(Number(event.queryStringParameters.n), 'x'),
  pieces: () => pieces('one', '', 'two', 'three'),
  'byte-pieces': () => pieces(Buffer.from([0]), new Uint8Array([1, 255])),
  'explicit-pieces': () => ({
    statusCode: 206,
    headers: { 'content-type': 'text/event-stream' },
    body: pieces('data: 1\n\n', Buffer.from('data: 2\n\n')),
  }),
  'no-pieces': () => pieces(),
  'fails-first': failFirst,
  'fails-later': failLater,
  'wrong-piece': wrongPiece,
  event: (event) => event,
  length: (event) => String(Buffer.from(event.body, 'base64').length),
  echo: (event) => event,
};

function describe(context) {
  const remaining = context.getRemainingTimeInMillis();
  return {
    invocation_id: context.invocation_id,
    aws_request_id: context.awsRequestId,
    function_name: context.functionName,
    function_version: context.functionVersion,
    memory_limit_in_mb: context.memoryLimitInMB,
    remaining_at_least_25_s: remaining > 25_000,
    remaining_at_most_30_s: remaining <= 30_000,
  };
}

exports.handler = (event, context) => {
  const name = 'rawPath' in event ? event.rawPath.split('/')[1] : (event.case ?? 'echo');
  if (name === 'context') return describe(context);
  if (name === 'remaining') return String(context.getRemainingTimeInMillis());
  return CASES[name](event);
};

exports.asyncHandler = async (event, context) => exports.handler(event, context);
