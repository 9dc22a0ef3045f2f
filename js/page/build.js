// Bundle the page into the Python package, which ships it: node page/build.js [OUT]
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? path.join(here, "..", "..", "mimi_export", "web", "page");
await build({
  entryPoints: ["app", "sound", "worklet", "sw"].map((name) => path.join(here, `${name}.ts`)).concat(path.join(here, "..", "src", "worker.ts")),
  entryNames: "[name]",
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  external: ["onnxruntime-web/*"],
  legalComments: "none",
});
for (const name of ["index.html", "style.css"]) fs.copyFileSync(path.join(here, name), path.join(out, name));
