/** What went wrong, for programs; the message says what was got, what was wanted and what to do. */
export type Fault =
  | "missing" // there is no such file
  | "network" // the server cannot be reached
  | "manifest" // no variant, or one that this package does not run
  | "hash" // a file is not what the manifest says
  | "backend" // nothing here computes what the golden clip says
  | "audio" // samples or a WAV file that cannot be taken
  | "codes" // codes, or a file of them, that cannot be taken
  | "stream"; // the stream has ended

/** Every error that this package raises on purpose. */
export class MimiError extends Error {
  override name = "MimiError";

  constructor(readonly fault: Fault, message: string) {
    super(message);
  }
}

/** The first line of whatever was thrown. */
export function line(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text.trim().split("\n")[0] ?? "";
}
