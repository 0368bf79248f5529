import { defineConfig } from 'vite';

export default defineConfig({
  build: {
    lib: { entry: { index: 'src/index.ts', react: 'src/react.ts' }, formats: ['es'] },
    target: 'es2022',
    minify: true,
    rolldownOptions: { external: ['react'], output: { minify: true, comments: false } },
  },
});
