/** A few plain tensors after a header of JSON that says where they lie. */
export interface Tensors {
  tensors: Record<string, { dtype: string; shape: number[]; bytes: Uint8Array }>;
  metadata: Record<string, string>;
}

/** Read a safetensors file; throws a plain `Error` that says what is damaged. */
export function parse(file: Uint8Array): Tensors {
  if (file.length < 8) throw new Error("is too short for a safetensors file");
  const start = 8 + Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  if (start > file.length) throw new Error("ends in its header");
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(new TextDecoder().decode(file.subarray(8, start)));
  const tensors: Tensors["tensors"] = {};
  for (const [name, entry] of Object.entries(entries) as [string, any][]) {
    const [first, last] = entry.data_offsets;
    if (!(first >= 0 && last >= first && start + last <= file.length)) throw new Error(`ends in ${name}`);
    const bytes = file.slice(start + first, start + last); // a copy begins at an even address
    tensors[name] = { dtype: entry.dtype, shape: entry.shape, bytes };
  }
  return { tensors, metadata };
}

/** The file of one tensor, byte for byte as the Python package writes it: keys sorted, the header a multiple of 8. */
export function serialize(name: string, dtype: string, shape: number[], bytes: Uint8Array, metadata: Record<string, string>): Uint8Array {
  const sorted = Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1)));
  const header = { __metadata__: sorted, [name]: { data_offsets: [0, bytes.length], dtype, shape } };
  const text = JSON.stringify(header).replace(/[\u0080-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const padded = new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 8) * 8));
  const file = new Uint8Array(8 + padded.length + bytes.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(padded.length), true);
  file.set(padded, 8);
  file.set(bytes, 8 + padded.length);
  return file;
}
