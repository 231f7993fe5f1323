/** ZIP archives of files that are compressed already: stored, with UTF-8 names. (APPNOTE 6.3.10, without ZIP64.) */

const LARGEST_BYTES = 0xffff0000;
const MOST_FILES = 0xfffe;

/**
 * Divide files into archives that a ZIP without its 64-bit extension can hold.
 *
 * @template {{blob: Blob}} F
 * @param {F[]} files
 * @returns {F[][]}
 */
export function divide(files) {
  const groups = [];
  let room = 0;
  for (const file of files) {
    const cost = file.blob.size + 1024; // headers and twice the name
    if (!groups.length || cost > room || groups.at(-1).length === MOST_FILES) {
      groups.push([]);
      room = LARGEST_BYTES;
    }
    groups.at(-1).push(file);
    room -= cost;
  }
  return groups;
}

/**
 * One archive. Files of the same name get a number.
 *
 * @param {{name: string, blob: Blob}[]} files
 * @returns {Promise<Blob>}
 */
export async function zip(files) {
  const names = unique(files.map((file) => file.name));
  const pieces = [];
  const directory = [];
  let offset = 0;
  for (const [index, { blob }] of files.entries()) {
    const name = new TextEncoder().encode(names[index]);
    const entry = { name, size: blob.size, crc: await crc32(blob), offset, ...dosTime(new Date()) };
    const header = localHeader(entry);
    pieces.push(header, blob);
    directory.push(entry);
    offset += header.length + blob.size;
  }
  const central = directory.map(centralHeader);
  const length = central.reduce((sum, each) => sum + each.length, 0);
  return new Blob([...pieces, ...central, endOfDirectory(directory.length, length, offset)], { type: "application/zip" });
}

/** @param {string[]} names */
function unique(names) {
  const taken = new Set();
  return names.map((name) => {
    const dot = name.lastIndexOf(".") > 0 ? name.lastIndexOf(".") : name.length;
    let candidate = name;
    for (let count = 2; taken.has(candidate); count += 1) candidate = `${name.slice(0, dot)}-${count}${name.slice(dot)}`;
    taken.add(candidate);
    return candidate;
  });
}

/** Little-endian fields of two and four bytes: `[2, value]`, `[4, value]`, or bytes as they are. */
function record(...fields) {
  const length = fields.reduce((sum, field) => sum + (field instanceof Uint8Array ? field.length : field[0]), 0);
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const field of fields) {
    if (field instanceof Uint8Array) bytes.set(field, at);
    else if (field[0] === 2) view.setUint16(at, field[1], true);
    else view.setUint32(at, field[1], true);
    at += field instanceof Uint8Array ? field.length : field[0];
  }
  return bytes;
}

const VERSION = 20;
const UTF8_NAMES = 0x0800;
const STORED = 0;

function localHeader({ name, size, crc, time, date }) {
  return record([4, 0x04034b50], [2, VERSION], [2, UTF8_NAMES], [2, STORED], [2, time], [2, date], [4, crc], [4, size], [4, size],
    [2, name.length], [2, 0], name);
}

function centralHeader({ name, size, crc, offset, time, date }) {
  return record([4, 0x02014b50], [2, VERSION], [2, VERSION], [2, UTF8_NAMES], [2, STORED], [2, time], [2, date], [4, crc], [4, size],
    [4, size], [2, name.length], [2, 0], [2, 0], [2, 0], [2, 0], [4, 0], [4, offset], name);
}

function endOfDirectory(count, length, offset) {
  return record([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, length], [4, offset], [2, 0]);
}

function dosTime(now) {
  return {
    time: (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1),
    date: ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate(),
  };
}

function crcTable() {
  return Uint32Array.from({ length: 256 }, (_none, index) => {
    let value = index;
    for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
    return value;
  });
}

/** @param {Blob} blob */
async function crc32(blob) {
  const table = crcTable();
  let crc = 0xffffffff;
  const reader = blob.stream().getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    for (const byte of value) crc = table[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
