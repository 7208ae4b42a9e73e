// Runs a module as devices do, in a browser or in Node: nothing but the engine's own WebAssembly is needed.

const ARRAYS = {
  BOOL: Uint8Array, UINT8: Uint8Array, INT8: Int8Array, INT32: Int32Array, INT64: BigInt64Array,
  FP32: Float32Array, FP64: Float64Array,
};

/** Returns {spec, infer, reset} for the bytes of a module; `spec` is what the module says of itself. */
export async function loadModel(bytes) {
  const module = await WebAssembly.compile(bytes);
  const [section] = WebAssembly.Module.customSections(module, "fleet.model");
  if (!section) throw new Error("not a model: it has no fleet.model section");
  const spec = JSON.parse(new TextDecoder().decode(section));
  const { exports } = await WebAssembly.instantiate(module);
  // Addresses and memory stay as they are for the life of the instance.
  const views = (tensors, locate) => tensors.map(({ datatype, shape }, index) => {
    const count = shape.reduce((product, length) => product * length, 1);
    return new ARRAYS[datatype](exports.memory.buffer, locate(index), count);
  });
  const inputs = views(spec.inputs, exports.fleet_input);
  const outputs = views(spec.outputs, exports.fleet_output);

  function infer(values) {
    spec.inputs.forEach(({ name }, index) => inputs[index].set(values[name]));
    const status = exports.fleet_infer();
    if (status !== 0) throw new Error(`the model failed with status ${status}`);
    return Object.fromEntries(spec.outputs.map(({ name }, index) => [name, outputs[index].slice()]));
  }
  return { spec, infer, reset: () => exports.fleet_reset?.() };
}
