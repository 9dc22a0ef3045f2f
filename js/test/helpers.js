import fs from "node:fs";
import path from "node:path";
import test from "node:test";

/** Variants that the Python side made: a folder of folders, and a clip with the codes that Python gives for it. */
export const VARIANTS = process.env.MIMI_VARIANTS;
export const options = VARIANTS ? {} : { skip: "MIMI_VARIANTS names no folder of variants; tests/test_js.py makes one" };
export const variant = (name) => path.join(VARIANTS, name);
export const names = VARIANTS ? fs.readdirSync(VARIANTS).filter((name) => fs.existsSync(path.join(VARIANTS, name, "manifest.json"))) : [];
export const expected = (name, clip) => new Uint8Array(fs.readFileSync(path.join(VARIANTS, `${name}.${clip}.safetensors`)));
export const clips = VARIANTS ? fs.readdirSync(VARIANTS).filter((name) => name.endsWith(".wav")).map((name) => name.slice(0, -4)) : [];
export const wav = (clip) => new Uint8Array(fs.readFileSync(path.join(VARIANTS, `${clip}.wav`)));
export { test };
