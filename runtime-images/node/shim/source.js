'use strict';
/** A streamed answer as it is read: the web's streams, Node's, iterators and generators behind one face. */

/**
 * `next()` gives `{done, value}` or a promise of it. `cancel()` lets the source go, any number of times: streams are
 * closed at once; a generator ends at its next `yield`, because nothing can interrupt what it waits for.
 */
class Source {
  next;
  #release;
  #complain;

  /** `complain(error)` gets what goes wrong while the source is let go. */
  constructor(value, complain) {
    this.#complain = complain;
    if (typeof value.getReader === 'function') {
      const reader = value.getReader();
      this.next = () => reader.read();
      this.#release = () => reader.cancel();
      return;
    }
    const items = (value[Symbol.asyncIterator] ?? value[Symbol.iterator]).call(value);
    this.next = () => items.next();
    this.#release = () => (typeof value.destroy === 'function' ? value.destroy() : items.return?.());
  }

  cancel() {
    const release = this.#release;
    this.#release = () => {};
    try {
      Promise.resolve(release()).catch(this.#complain);
    } catch (error) {
      this.#complain(error);
    }
  }
}

module.exports = { Source };
