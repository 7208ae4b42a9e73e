// A canvas to draw on, and bars that show what the model reads.
import { loadModel } from "./model.mjs";

const SIDE = 32;
const canvas = document.querySelector("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const small = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
const rows = [..."0123456789"].map((digit) => {
  const row = document.createElement("li");
  row.innerHTML = `<b>${digit}</b><meter max="1" value="0"></meter>`;
  return document.querySelector("ol").appendChild(row);
});

/** Returns the drawing as 32 by 32 bytes of ink, as large as it can be, in the middle; null when there is none. */
function drawing() {
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let [left, top, right, bottom] = [canvas.width, canvas.height, -1, -1];
  for (let y = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++) {
    if (data[(y * canvas.width + x) * 4 + 3] < 64) continue;
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
  }
  if (right < 0) return null;
  const [width, height] = [right - left + 1, bottom - top + 1];
  const scale = SIDE / Math.max(width, height);
  small.clearRect(0, 0, SIDE, SIDE);
  small.imageSmoothingQuality = "high";
  small.drawImage(canvas, left, top, width, height,
    (SIDE - width * scale) / 2, (SIDE - height * scale) / 2, width * scale, height * scale);
  return small.getImageData(0, 0, SIDE, SIDE).data.filter((_, index) => index % 4 === 3);
}

function show(model) {
  const ink = drawing();
  const start = performance.now();
  const shares = ink ? model.infer({ drawing: ink }).digit : new Float32Array(rows.length);
  const took = performance.now() - start;
  const best = shares.indexOf(Math.max(...shares));
  rows.forEach((row, digit) => {
    row.lastChild.value = shares[digit];
    row.classList.toggle("best", ink !== null && digit === best);
  });
  document.querySelector("output").textContent = ink ? model.spec.labels.digit[best] : "";
  if (ink) document.querySelector("footer span").textContent = `, the last answer took ${took.toFixed(2)} ms`;
}

const bytes = await (await fetch("build/digit.wasm")).arrayBuffer();
const model = await loadModel(bytes);
pen.lineWidth = 30;
pen.lineCap = pen.lineJoin = "round";
pen.strokeStyle = getComputedStyle(canvas).color;
canvas.addEventListener("pointerdown", ({ offsetX, offsetY, pointerId }) => {
  canvas.setPointerCapture(pointerId);
  pen.beginPath();
  pen.moveTo(offsetX, offsetY);
});
canvas.addEventListener("pointermove", ({ offsetX, offsetY, buttons }) => {
  if (!buttons) return;
  pen.lineTo(offsetX, offsetY);
  pen.stroke();
  show(model);
});
document.querySelector("button").addEventListener("click", () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  show(model);
});
document.querySelector("footer").prepend(`${model.spec.name}: ${(bytes.byteLength / 1024).toFixed(0)} KiB of WebAssembly`);
document.body.dataset.state = "ready";
