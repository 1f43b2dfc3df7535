'use strict';
/** The first function in JavaScript: greets, in the caller's language. */

const GREETINGS = { cs: 'Ahoj', de: 'Hallo', en: 'Hello', es: 'Hola', fr: 'Bonjour', ja: 'こんにちは', uk: 'Привіт' };

exports.handler = async (event, context) => {
  const languages = event.headers?.['accept-language'] ?? 'en';
  const greeting = GREETINGS[languages.slice(0, 2).toLowerCase()] ?? 'Hello';
  const { name } = event.queryStringParameters ?? event;
  if (name) console.log(`greeting ${name}`); // lands in the log of this invocation
  return `${greeting}, ${name ?? 'world'}! ${context.functionName} is running.\n`;
};
