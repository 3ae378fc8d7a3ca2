// Makes the component. `build` runs a copy of this file beside `node_modules`.
// usage: node build.mjs SOURCE WIT OUTPUT

import { writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const [sourcePath, witPath, output] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath,
  witPath,
  worldName: 'proxy',
  enableFeatures: ['http', 'fetch-event'],
});
await writeFile(output, component);
