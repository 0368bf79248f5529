import { existsSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, brotliDecompressSync, constants, gunzipSync, gzipSync } from 'node:zlib';
import react from '@vitejs/plugin-react';
import { defineConfig, type Plugin } from 'vite';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const out = here('../app/page');

function* filesOf(directory: string): Generator<string> {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name);
    if (statSync(path).isDirectory()) yield* filesOf(path);
    else yield path;
  }
}

/** Whether `path` unpacks to `content` already: other versions of zlib pack it to other bytes. */
function holds(path: string, unpack: (packed: Buffer) => Buffer, content: Buffer): boolean {
  try {
    return unpack(readFileSync(path)).equals(content);
  } catch {
    return false;
  }
}

/** Empties the output but for the compressed files, and writes those anew that do not fit. */
function compress(): Plugin {
  return {
    name: 'compress',
    apply: 'build',
    buildStart() {
      if (!existsSync(out)) return;
      for (const path of filesOf(out)) if (!/\.(br|gz)$/.test(path)) rmSync(path);
    },
    closeBundle() {
      for (const path of filesOf(out)) {
        if (/\.(br|gz)$/.test(path)) {
          if (!existsSync(path.slice(0, -3))) rmSync(path);
          continue;
        }
        const content = readFileSync(path);
        if (!holds(`${path}.br`, brotliDecompressSync, content)) {
          const params = { [constants.BROTLI_PARAM_SIZE_HINT]: content.length };
          writeFileSync(`${path}.br`, brotliCompressSync(content, { params }));
        }
        if (!holds(`${path}.gz`, gunzipSync, content)) {
          writeFileSync(`${path}.gz`, gzipSync(content, { level: 9 }));
        }
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), compress()],
  resolve: { alias: { '@yujian/realtime': here('../clients/js/src/index.ts') } },
  build: {
    outDir: out,
    emptyOutDir: false,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2022',
  },
  server: {
    proxy: {
      '/ws': { target: 'http://127.0.0.1:3001', ws: true },
      '/status': 'http://127.0.0.1:3001',
      '/stats': 'http://127.0.0.1:3001',
      '/history': 'http://127.0.0.1:3001',
      '/config.json': 'http://127.0.0.1:3001',
    },
  },
});
