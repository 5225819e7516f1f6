// The canvas: 512 px, white on black as the conditions of the assignment are. What is on it is props.value, a PNG as a
// data URL, "" while it is empty. Files are read and made small here, in the browser: none is uploaded.
const canvas = element.querySelector("canvas");
const hint = element.querySelector(".hint");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const SIDE = 512, LINE = 5, RUBBER = 40, MOST_UNDONE = 20;
let tool = "circle", start = null, last = null, before = [], sent = "", waits = Promise.resolve();

function clear() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, SIDE, SIDE);
}

function remember() {
  before.push(pen.getImageData(0, 0, SIDE, SIDE));
  if (before.length > MOST_UNDONE) before.shift();
}

function send() {
  const pixels = new Uint32Array(pen.getImageData(0, 0, SIDE, SIDE).data.buffer);
  const isEmpty = pixels.every((pixel) => pixel === pixels[0]);
  hint.classList.toggle("gone", !isEmpty || start !== null);
  sent = isEmpty ? "" : canvas.toDataURL("image/png");
  props.value = sent;
}

function choose(name) {
  tool = name;
  element.querySelectorAll("[data-tool]").forEach((b) => b.classList.toggle("chosen", b.dataset.tool === name));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
}

function stroke(draw) {
  pen.strokeStyle = tool === "eraser" ? "black" : "white";
  pen.lineWidth = tool === "eraser" ? RUBBER : LINE;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  draw();
  pen.stroke();
}

// Shows a picture's centre square. Pictures come one after the other, however long each takes to read.
function show(source, then) {
  waits = waits.then(() => new Promise((done) => {
    const image = new Image();
    image.onload = () => {
      const side = Math.min(image.width, image.height);
      remember();
      clear();
      pen.imageSmoothingQuality = "high";
      pen.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
      send();
      if (then) then();
      done();
    };
    image.onerror = () => { hint.textContent = "That file is no picture"; hint.classList.remove("gone"); done(); };
    image.src = source;
  }));
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  hint.classList.add("gone");
  start = last = place(event);
  if (tool !== "circle") stroke(() => { pen.moveTo(...start); pen.lineTo(...start); });
});
canvas.addEventListener("pointermove", (event) => {
  if (start === null) return;
  const to = place(event);
  if (tool === "circle") {
    pen.putImageData(before[before.length - 1], 0, 0);
    stroke(() => pen.arc(...start, Math.hypot(to[0] - start[0], to[1] - start[1]), 0, 2 * Math.PI));
  } else {
    stroke(() => { pen.moveTo(...last); pen.lineTo(...to); });
  }
  last = to;
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (start === null) return;
    start = null;
    send();
  });
}

element.querySelectorAll("[data-tool]").forEach((b) => b.addEventListener("click", () => choose(b.dataset.tool)));
element.querySelector("[data-do=undo]").addEventListener("click", () => {
  if (before.length) pen.putImageData(before.pop(), 0, 0);
  send();
});
element.querySelector("[data-do=clear]").addEventListener("click", () => { remember(); clear(); send(); });
element.querySelectorAll("[data-test]").forEach((image) => image.addEventListener("click", () => {
  show(image.src, () => trigger("taken", { number: Number(image.dataset.test) }));
}));
element.querySelectorAll("[data-file]").forEach((input) => input.addEventListener("change", () => {
  if (!input.files.length) return;
  const url = URL.createObjectURL(input.files[0]);
  const isPicture = input.dataset.file === "picture";
  input.value = "";
  show(url, () => { URL.revokeObjectURL(url); if (isPicture) trigger("picture"); });
}));
// What the server sends, such as a picture's edges.
watch("value", () => { if (props.value && props.value !== sent) show(props.value); });

clear();
choose(tool);
if (props.value) show(props.value);
