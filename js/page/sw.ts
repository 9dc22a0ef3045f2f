/** Without a connection the page is there, and it is isolated from other origins where the server sets no headers. */
declare const self: any;
const { version, files } = self.SHELL as { version: string; files: string[] }; // written before this by `mimi-export web`
const NAME = `mimi-page-${version}`;
const scope = self.registration.scope as string;

self.addEventListener("install", (event: any) => {
  const fill = async () => {
    const cache = await caches.open(NAME);
    await cache.addAll(files.map((file) => new Request(scope + file, { cache: "no-cache" })));
    await self.skipWaiting();
  };
  event.waitUntil(fill());
});

self.addEventListener("activate", (event: any) => {
  const take = async () => {
    for (const name of await caches.keys()) if (name.startsWith("mimi-page-") && name !== NAME) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(take());
});

function isolated(response: Response): Response {
  if (response.type === "opaque" || response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

self.addEventListener("fetch", (event: any) => {
  const { url, method } = event.request as Request;
  // models have a cache of their own, which knows their hashes
  if (method !== "GET" || !url.startsWith(scope) || url.startsWith(`${scope}models/`)) return;
  const answer = async () => {
    const cache = await caches.open(NAME);
    const kept = await cache.match(url === scope ? `${scope}index.html` : url, { ignoreSearch: true });
    if (kept) return isolated(kept);
    const response = await fetch(event.request);
    if (response.ok && url.startsWith(`${scope}runtime/`)) await cache.put(url, response.clone());
    return isolated(response);
  };
  event.respondWith(answer());
});
