'use strict';
/** The code of `test_runtimes.py` for Node: each case is a path. */

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');

async function* pieces() {
  yield 'first\n';
  await new Promise((ready) => setTimeout(ready, 1500));
  yield Buffer.from('second\n');
}

async function* breaksOff() {
  yield 'first\n';
  throw new Error('broke off');
}

function fails() {
  throw new RangeError('no such luck');
}

function hog() {
  for (const hoard = []; ; ) hoard.push(Buffer.alloc(1 << 20, 1));
}

function talk() {
  console.log('said');
  console.error('warned');
  return 'talked';
}

function may(path) {
  try {
    fs.accessSync(path, fs.constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

async function orphans() {
  execFileSync('sh', ['-c', 'for n in 1 2 3; do sleep 0.2 & done'], { stdio: 'ignore' });
  await new Promise((ready) => setTimeout(ready, 800));
  const ids = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const states = ids.map((id) => fs.readFileSync(`/proc/${id}/stat`, 'utf8').split(') ').at(-1)[0]);
  return states.filter((state) => state === 'Z').length;
}

const CASES = {
  '/json': () => ({ a: [1, 2.5, null, true], ü: 'é' }),
  '/text': () => 'grüß dich',
  '/bytes': () => Buffer.from(Array.from({ length: 256 }, (_, n) => n)),
  '/headers': () => ({
    statusCode: 201,
    headers: { 'X-One': '1' },
    multiValueHeaders: { 'x-two': ['a', 'b'] },
    cookies: ['a=1; Path=/', 'b=2'],
    body: 'made',
  }),
  '/empty': () => ({ statusCode: 204 }),
  '/echo': ({ body, isBase64Encoded, rawQueryString }) => ({ body, isBase64Encoded, rawQueryString }),
  '/large': () => 'x'.repeat(3_000_000),
  '/pieces': pieces,
  '/breaks-off': breaksOff,
  '/fails': fails,
  '/unholdable': () => ({ deep: 1n }),
  '/bad-status': () => ({ statusCode: 700 }),
  '/waits': () => new Promise(() => {}),
  '/exits': () => process.exit(3),
  '/hogs': hog,
  '/talks': talk,
  '/environment': () => [process.env.GREETING ?? null, 'HEADRACE_SOCKET' in process.env],
  '/context': (event, context) => {
    const left = context.getRemainingTimeInMillis();
    const { invocationId, functionName, functionVersion, memoryLimitInMB } = context;
    return [invocationId, functionName, functionVersion, memoryLimitInMB, 0 < left && left <= 3000];
  },
  '/orphans': orphans,
  '/place': () => [process.getuid(), may('/'), may('/tmp')],
};

function socket({ requestContext: { eventType }, rawPath, body }, { ws }) {
  if (eventType === 'CONNECT') return { statusCode: rawPath === '/closed' ? 403 : 200 };
  if (body === 'leave') return void ws.close(4000, 'bye');
  return eventType === 'MESSAGE' ? body.toUpperCase() : null;
}

exports.handler = async (event, context) => {
  if (event.requestContext?.eventType) return socket(event, context);
  return 'rawPath' in event ? CASES[event.rawPath](event, context) : event;
};
