// Runs ONNX models in onnxruntime-web, one thread, SIMD. One JSON command for each line of standard input, one JSON
// answer for each line of standard output: {"load": name, "path", "inputs": {name: {type, shape, data (base64)}}}, or
// {"run": name, "count"} -> {"ms": [...]}.
// The first argument is the folder in which `npm install` put it.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const ort = createRequire(process.argv[2] + '/')('onnxruntime-web');

ort.env.wasm.numThreads = 1;
ort.env.wasm.simd = true;
ort.env.logLevel = 'error';

const arrays = {
  float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array,
};
const models = {};

async function load({ load: name, path, inputs }) {
  const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all', intraOpNumThreads: 1 };
  const session = await ort.InferenceSession.create(readFileSync(path), options);
  const feeds = {};
  for (const [input, { type, shape, data }] of Object.entries(inputs)) {
    const bytes = Uint8Array.from(Buffer.from(data, 'base64'));
    feeds[input] = new ort.Tensor(type, new arrays[type](bytes.buffer), shape);
  }
  models[name] = { session, feeds };
  return {};
}

async function run({ run: name, count }) {
  const { session, feeds } = models[name];
  const ms = [];
  for (let n = 0; n < count; n++) {
    const start = performance.now();
    await session.run(feeds);
    ms.push(performance.now() - start);
  }
  return { ms };
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = 'load' in command ? await load(command) : await run(command);
  } catch (error) {
    answer = { error: String(error) };
  }
  console.log(JSON.stringify(answer));
}
