/** Splits the server's multipart answer as it comes: every part has its Content-Length, so nothing is searched for. */

/**
 * Yields {headers, body} for each part, as soon as it is complete.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @throws {TypeError} if the stream ends inside a part, as fetch does for a lost connection
 */
export async function* parts(stream) {
  const source = new Source(stream.getReader());
  for (;;) {
    const delimiter = await source.line();
    if (delimiter.endsWith("--")) return;
    if (!delimiter) continue; // the line end behind a part
    const headers = new Headers();
    for (let line = await source.line(); line; line = await source.line()) {
      const colon = line.indexOf(":");
      headers.append(line.slice(0, colon), line.slice(colon + 1).trim());
    }
    yield { headers, body: await source.take(Number(headers.get("Content-Length"))) };
  }
}

class Source {
  constructor(reader) {
    this.reader = reader;
    this.rest = new Uint8Array(0);
  }

  async more() {
    const { done, value } = await this.reader.read();
    if (done) throw new TypeError("the answer ended early");
    return value;
  }

  /** What stands before the next line end. */
  async line() {
    const bytes = [];
    for (;;) {
      if (!this.rest.length) this.rest = await this.more();
      const end = this.rest.indexOf(10);
      bytes.push(...this.rest.subarray(0, end < 0 ? undefined : end));
      this.rest = end < 0 ? new Uint8Array(0) : this.rest.subarray(end + 1);
      if (end >= 0) return new TextDecoder().decode(new Uint8Array(bytes)).replace(/\r$/, "");
    }
  }

  /** Exactly so many bytes, as a Blob. */
  async take(length) {
    const pieces = [];
    let missing = length;
    while (missing > 0) {
      if (!this.rest.length) this.rest = await this.more();
      const piece = this.rest.subarray(0, missing);
      pieces.push(piece);
      missing -= piece.length;
      this.rest = this.rest.subarray(piece.length);
    }
    return new Blob(pieces);
  }
}
