/** The page: what is pressed, and what is said. */
import { bitrate, clear, load, type Codec } from "../src/browser.js";
import { Lanes } from "./lanes.js";
import { Stage } from "./stage.js";
import { BACKENDS, plain, size } from "./words.js";

interface Variant {
  path: string;
  name: string;
  precision: string;
  codebooks: number;
  bytes: number;
  caution: string | null;
}

const element = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const button = (id: string) => element<HTMLButtonElement>(id);
const input = (id: string) => element<HTMLInputElement>(id);
const select = (id: string) => element<HTMLSelectElement>(id);
const text = (id: string, value: string) => {
  if (element(id).textContent !== value) element(id).textContent = value;
};
const worker = () => new Worker("worker.js", { type: "module" });

let variants: Variant[] = [];
let dirty = true;
const change = () => {
  dirty = true;
};
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const stage = new Stage(change, (error) => problem(typeof error === "string" ? error : plain(error, "sound")));
const lanes = new Lanes(stage, calm, change);

function problem(words: string | null): void {
  element("problem").hidden = !words;
  text("problem", words ?? "");
}

async function guarded(what: "microphone" | "sound" | "model", work: () => Promise<void>): Promise<void> {
  problem(null);
  try {
    await work();
  } catch (error) {
    problem(plain(error, what));
  }
  showControls();
}

// The model

async function showVariants(): Promise<void> {
  const response = await fetch("variants.json");
  if (!response.ok) throw new Error("the list of models, variants.json, is not there");
  variants = await response.json();
  const option = ({ name, precision, codebooks, bytes }: Variant, i: number) =>
    new Option(`${name}: ${precision}, ${codebooks} codebooks, ${size(bytes)}`, String(i));
  select("variant").replaceChildren(...variants.map(option));
  showChosen();
}

const chosen = () => variants[Number(select("variant").value)]!;

function showChosen(): void {
  const { caution, bytes } = chosen();
  text("load", `Load ${size(bytes)}`);
  text("caution", caution ? `Its weights: ${caution}.` : "");
}

async function loadModel(): Promise<void> {
  const bar = element<HTMLProgressElement>("loading");
  button("load").disabled = true;
  bar.hidden = false;
  await guarded("model", async () => {
    const variant = chosen();
    let codec;
    try {
      codec = await load(`models/${variant.path}`, {
        backend: select("backend").value as "auto",
        runtime: "runtime",
        worker,
        onProgress: ({ loaded, cached, total }) => {
          bar.value = loaded / total;
          const from = cached === loaded ? "from this browser's store" : "fetched";
          text("state", loaded < total ? `${size(loaded)} of ${size(total)} ${from}` : "Checking it against its golden clip …");
        },
      });
    } finally {
      bar.hidden = true;
      button("load").disabled = false;
    }
    showCodec(codec, variant);
    await stage.use(codec);
  });
  if (!stage.codec) text("state", "No model is loaded.");
}

function showCodec({ backend, threads, check, attempts, cache, manifest }: Codec, variant: Variant): void {
  const words = `${BACKENDS[backend]}${threads > 1 ? ` (${threads})` : ""}`;
  text("m-backend", words);
  text("m-check", `${check.text}, ${manifest.precision}`);
  const kept = cache.kind === "memory" ? " The browser has no room to keep it, so it will be fetched again." : "";
  text("state", `${variant.name} runs on ${words}: ${check.text}.${kept}`);
  const item = (words: string) => Object.assign(document.createElement("li"), { textContent: words });
  const tried = attempts.map(({ backend, chosen, reason }) => `${BACKENDS[backend]}: ${chosen ? "taken, " : "not taken, "}${reason}`);
  element("attempts").replaceChildren(...[...tried, ...cache.refusals.map((reason) => `not kept in ${reason}`)].map(item));
}

// What is pressed, and what can be

function showControls(): void {
  const { codec, track, codebooks, hearing, recording } = stage;
  showBusy();
  for (const id of ["sample", "mic"]) button(id).disabled = !codec;
  input("open").disabled = !codec;
  for (const id of ["play", "switch", "save-wav", "save-codes"]) button(id).disabled = !track;
  input("position").disabled = !track;
  text("switch", `Hearing: ${hearing ? "reconstruction" : "original"}`);
  button("switch").setAttribute("aria-pressed", String(hearing === 1));
  text("mic", recording ? "Stop recording" : "Microphone");
  button("mic").setAttribute("aria-pressed", String(!!recording));
  if (!codec) return;
  const most = codec.manifest.num_codebooks;
  Object.assign(input("codebooks"), { max: String(most), value: String(codebooks), disabled: most < 2 });
  text("bitrate", `${codebooks} of ${most}, ${(bitrate(codec.manifest, codebooks) / 1000).toFixed(2)} kbit/s`);
}

function choose(codebooks: number): void {
  stage.choose(Math.max(1, Math.min(stage.codec!.manifest.num_codebooks, codebooks)));
  showControls();
}

function switchSides(): void {
  stage.switchSides();
  showControls();
}

async function save(name: string, file: Promise<Blob>): Promise<void> {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const openFile = (file: File | undefined) =>
  guarded("sound", async () => {
    if (!file) return;
    if (!stage.codec) throw new Error("load a model first");
    await stage.open(file);
  });

select("variant").onchange = showChosen;
button("load").onclick = loadModel;
button("clear").onclick = () =>
  guarded("model", async () => {
    await clear({ worker });
    text("state", "Stored models are forgotten; what is loaded goes on.");
  });
button("sample").onclick = async () => {
  const response = await fetch("speech.ogg").catch(() => undefined);
  if (response?.ok) await openFile(new File([await response.blob()], "speech.ogg"));
  else problem("The built-in sample is not there.");
};
button("mic").onclick = () => guarded("microphone", () => (stage.recording ? stage.stopRecording() : stage.record(() => input("monitor").checked)));
input("open").onchange = async () => {
  await openFile(input("open").files?.[0]);
  input("open").value = "";
};
button("save-wav").onclick = () => guarded("sound", () => save(stage.hearing ? "decoded.wav" : "original.wav", stage.soundFile()));
button("save-codes").onclick = () => guarded("sound", () => save("codes.safetensors", stage.codesFile()));
button("play").onclick = () => stage.play();
button("switch").onclick = switchSides;
input("codebooks").oninput = () => choose(Number(input("codebooks").value));
input("position").oninput = () => stage.seek(Number(input("position").value));

addEventListener("keydown", (event) => {
  const { tagName, type } = event.target as HTMLInputElement;
  if (event.ctrlKey || event.metaKey || event.altKey || tagName === "SELECT" || !stage.track) return;
  const slides = tagName === "INPUT" && type === "range";
  const presses = tagName === "BUTTON" || tagName === "SUMMARY" || (tagName === "INPUT" && !slides);
  const keys: Record<string, (() => void) | undefined> = {
    " ": presses ? undefined : () => void stage.play(),
    x: switchSides,
    "[": () => choose(stage.codebooks - 1),
    "]": () => choose(stage.codebooks + 1),
    ArrowLeft: slides ? undefined : () => stage.seek(stage.cursor - 1),
    ArrowRight: slides ? undefined : () => stage.seek(stage.cursor + 1),
  };
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  void openFile(event.dataTransfer?.files[0]);
});
document.onvisibilitychange = () => {
  const { player, recording } = stage;
  if (!document.hidden && player?.underruns && (player.playing || recording)) {
    problem(`While this tab was in the background the browser may have slowed it down: ${player.underruns} gaps so far.`);
  }
  change();
};

// What is shown while it runs

function showBusy(): void {
  element("lanes").setAttribute("aria-busy", String(stage.working));
}

function showNumbers(): void {
  const { encodeTimes, decodeTimes, realTimeFactor, player } = stage;
  text("m-encode", encodeTimes.text());
  text("m-decode", decodeTimes.text());
  if (realTimeFactor) text("m-factor", `${realTimeFactor.toFixed(3)} (both)`);
  text("m-underruns", String(player?.underruns ?? 0));
  showBusy();
  text("play", player?.playing ? "Pause" : "Play");
}

function showPosition(): void {
  const { track, cursor, player } = stage;
  showBusy();
  if (!track) return;
  const position = input("position");
  if (position.disabled) showControls(); // while it is encoded it can be heard
  position.max = track.seconds.toFixed(2);
  if (document.activeElement !== position || player?.playing) position.value = String(cursor);
  const words = `${cursor.toFixed(1)} of ${track.seconds.toFixed(1)}`;
  position.setAttribute("aria-valuetext", `${words} seconds`);
  text("time", `${words} s`);
}

let drawn = 0;
function animate(now: number): void {
  if (dirty && now - drawn > (calm.matches ? 250 : 0)) {
    dirty = false;
    drawn = now;
    text("code", lanes.draw() ?? "No codes yet.");
    showPosition();
  }
  requestAnimationFrame(animate);
}

async function registerServiceWorker(): Promise<void> {
  if (!("serviceWorker" in navigator)) return;
  await navigator.serviceWorker.register("sw.js");
  if (crossOriginIsolated) return;
  // the server sets no headers: the service worker does, from the next load on; once is enough
  await navigator.serviceWorker.ready;
  if (sessionStorage.getItem("isolated")) return;
  sessionStorage.setItem("isolated", "tried");
  location.reload();
}

new ResizeObserver(change).observe(element("lanes"));
for (const query of [calm, matchMedia("(prefers-color-scheme: dark)")]) query.onchange = change;
void registerServiceWorker().catch(() => undefined); // without one the page works, but for offline use and threads
void guarded("model", showVariants);
setInterval(showNumbers, 250);
requestAnimationFrame(animate);
