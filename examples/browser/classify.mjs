// Reads a digit in Node: node classify.mjs MODEL.wasm DRAWING.txt, where # is ink in 32 rows of 32 characters.
import { readFile } from "node:fs/promises";
import { loadModel } from "./model.mjs";

const [path, text] = process.argv.slice(2);
const model = await loadModel(await readFile(path));
const rows = (await readFile(text, "utf8")).split("\n").slice(0, 32);
const ink = Uint8Array.from(rows.flatMap((row) => [...row.padEnd(32)]), (dot) => (dot === "#" ? 255 : 0));
const shares = model.infer({ drawing: ink }).digit;
const best = shares.indexOf(Math.max(...shares));
console.log(`${model.spec.labels.digit[best]} (${(100 * shares[best]).toFixed(0)} %)`);
