/** Where fetched files stay: the Cache API, else the origin private file system, else this page's memory. */
import { line } from "./errors.js";

const NAME = "mimi-onnx";

/** What a file is kept under: its address and its SHA-256, or `"latest"` for a manifest. */
export interface Key {
  url: string;
  version: string;
}

/** One place; `put` may throw where it has no room. */
export interface Store {
  readonly kind: "cache" | "opfs" | "memory";
  get(key: Key): Promise<Blob | undefined>;
  put(key: Key, blob: Blob): Promise<void>;
  delete(key: Key): Promise<void>;
  clear(): Promise<void>;
}

export class CacheApiStore implements Store {
  readonly kind = "cache";

  async get(key: Key): Promise<Blob | undefined> {
    return (await (await caches.open(NAME)).match(this.address(key)))?.blob();
  }

  async put(key: Key, blob: Blob): Promise<void> {
    const cache = await caches.open(NAME);
    for (const old of await cache.keys(key.url, { ignoreSearch: true })) await cache.delete(old); // other versions
    await cache.put(this.address(key), new Response(blob));
  }

  async delete(key: Key): Promise<void> {
    await (await caches.open(NAME)).delete(this.address(key));
  }

  async clear(): Promise<void> {
    await caches.delete(NAME);
  }

  private address({ url, version }: Key): string {
    const address = new URL(url);
    address.search = `mimi-onnx=${version}`;
    return address.href;
  }
}

/** Works in a Worker, where files can be written synchronously. */
export class OpfsStore implements Store {
  readonly kind = "opfs";

  async get(key: Key): Promise<Blob | undefined> {
    const folder = await this.folder();
    try {
      return await (await folder.getFileHandle(this.name(key))).getFile();
    } catch {
      return undefined;
    }
  }

  async put(key: Key, blob: Blob): Promise<void> {
    const folder: any = await this.folder();
    for await (const old of folder.keys()) if (old.startsWith(this.name({ ...key, version: "" }))) await folder.removeEntry(old);
    const access = await (await folder.getFileHandle(this.name(key), { create: true })).createSyncAccessHandle();
    try {
      const bytes = new Uint8Array(await blob.arrayBuffer());
      if (access.write(bytes, { at: 0 }) !== bytes.length) throw new Error("the origin private file system is full");
    } catch (error) {
      access.close();
      await folder.removeEntry(this.name(key));
      throw error;
    }
    access.close();
  }

  async delete(key: Key): Promise<void> {
    await (await this.folder()).removeEntry(this.name(key)).catch(() => undefined);
  }

  async clear(): Promise<void> {
    await (await navigator.storage.getDirectory()).removeEntry(NAME, { recursive: true }).catch(() => undefined);
  }

  private async folder(): Promise<FileSystemDirectoryHandle> {
    return (await navigator.storage.getDirectory()).getDirectoryHandle(NAME, { create: true });
  }

  private name({ url, version }: Key): string {
    return `${encodeURIComponent(url).slice(-150)}-${version}`;
  }
}

export class MemoryStore implements Store {
  readonly kind = "memory";
  private readonly blobs = new Map<string, Map<string, Blob>>();

  async get({ url, version }: Key): Promise<Blob | undefined> {
    return this.blobs.get(url)?.get(version);
  }

  async put({ url, version }: Key, blob: Blob): Promise<void> {
    this.blobs.set(url, new Map([[version, blob]]));
  }

  async delete({ url }: Key): Promise<void> {
    this.blobs.delete(url);
  }

  async clear(): Promise<void> {
    this.blobs.clear();
  }
}

/** The first of `stores` that takes a file keeps it; none is no error. */
export class FileCache {
  /** Why a store did not take a file, in the order in which it happened. */
  readonly refusals: string[] = [];
  /** Where the files of the last `put` calls are. */
  kind: Store["kind"] = "memory";

  constructor(private readonly stores: Store[]) {}

  async get(key: Key): Promise<Blob | undefined> {
    for (const store of this.stores) {
      const blob = await store.get(key).catch(() => undefined);
      if (blob) {
        this.kind = store.kind;
        return blob;
      }
    }
    return undefined;
  }

  async put(key: Key, blob: Blob): Promise<void> {
    for (const store of this.stores) {
      try {
        await store.put(key, blob);
        this.kind = store.kind;
        return;
      } catch (error) {
        this.refusals.push(`${store.kind}: ${line(error)}`);
      }
    }
  }

  async delete(key: Key): Promise<void> {
    for (const store of this.stores) await store.delete(key).catch(() => undefined);
  }

  async clear(): Promise<void> {
    for (const store of this.stores) await store.clear().catch(() => undefined);
  }
}

const memory = new MemoryStore();

/** The stores that there are here, the best first. */
export function openCache(): FileCache {
  const stores: Store[] = [];
  if (typeof caches !== "undefined") stores.push(new CacheApiStore());
  if (typeof navigator !== "undefined" && "getDirectory" in (navigator.storage ?? {})) stores.push(new OpfsStore());
  return new FileCache([...stores, memory]);
}
