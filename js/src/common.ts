/** What both entry points export. */
export type { Attempt, Backend, Codec, DecoderStream, EncoderStream, Half, LoadOptions } from "./api.js";
export type { SelfCheck } from "./check.js";
export { MimiError, type Fault } from "./errors.js";
export type { Progress } from "./files.js";
export { bitrate, type Manifest } from "./manifest.js";
export { firstCodebooks, joinCodes, readCodes, readWav, writeCodes, writeWav, type Codes } from "./media.js";
export { cut, type Snapshot, type Timing } from "./stream.js";
