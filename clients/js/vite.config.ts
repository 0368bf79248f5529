import { defineConfig } from 'vite';

/** One file a build, `--mode react` for the hooks: names of properties are shortened in a single file only. */
export default defineConfig(({ mode }) => {
  const entry = mode === 'react' ? 'react' : 'index';
  return {
    build: {
      lib: { entry: { [entry]: `src/${entry}.ts` }, formats: ['es'] },
      target: 'es2022',
      emptyOutDir: entry === 'index',
      rolldownOptions: {
        external: ['react'],
        // Private members: `_name` in the source.
        output: {
          minify: { compress: true, mangle: true, codegen: true, mangleProps: { include: /^_[a-z]/i } },
          comments: false,
        },
      },
    },
  };
});
