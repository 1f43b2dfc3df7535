/** A QR code of the text in the query (`?text=`) or the body, as a PNG, or as SVG with `?as=svg`. */

import QRCode from 'qrcode';

const LONGEST = 2000; // characters

export async function handler(event) {
  const { text: asked, as = 'png' } = event.queryStringParameters;
  const text = asked || Buffer.from(event.body, event.isBase64Encoded ? 'base64' : 'utf8').toString();
  if (!text || text.length > LONGEST) {
    return { statusCode: 400, body: `Give up to ${LONGEST} characters as ?text= or as the body.\n` };
  }
  if (as === 'svg') {
    const body = await QRCode.toString(text, { type: 'svg' });
    return { statusCode: 200, headers: { 'content-type': 'image/svg+xml' }, body };
  }
  const body = await QRCode.toBuffer(text, { width: 320 });
  return { statusCode: 200, headers: { 'content-type': 'image/png' }, body };
}
