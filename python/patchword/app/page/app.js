// SPDX-License-Identifier: Apache-2.0
// The page's behaviour: choosing or drawing a picture, asking the server, showing its answer.
"use strict";

const $ = (id) => document.getElementById(id);

// --- tabs -------------------------------------------------------------------------------------

for (const name of ["words", "match"]) {
  $(`tab-${name}`).addEventListener("click", () => {
    for (const other of ["words", "match"]) {
      $(`tab-${other}`).setAttribute("aria-selected", String(other === name));
      $(`${other}-panel`).hidden = other !== name;
    }
  });
}

// --- pictures ---------------------------------------------------------------------------------

const chosen = { picture: null, picture0: null, picture1: null };

function choose(name, file) {
  if (!file) return;
  chosen[name] = file;
  const preview = $(name.replace("picture", "preview"));
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
}

for (const name of Object.keys(chosen)) {
  const drop = $(name.replace("picture", "drop"));
  $(name).addEventListener("change", (event) => choose(name, event.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") choose(name, event.dataTransfer.files[0]);
    });
  }
}

// --- drawing board ----------------------------------------------------------------------------

const canvas = $("canvas");
const pen = canvas.getContext("2d");
let strokes = [];
let drawing = null;

function redraw() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "#000";
  pen.lineWidth = 3;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.beginPath();
    stroke.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    if (stroke.length === 1) pen.lineTo(stroke[0][0], stroke[0][1]);
    pen.stroke();
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drawing = [place(event)];
  strokes.push(drawing);
  // A new drawing replaces a file that was chosen before.
  chosen.picture = null;
  $("preview").hidden = true;
  redraw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!drawing) return;
  drawing.push(place(event));
  redraw();
});
for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, () => (drawing = null));
}
$("undo").addEventListener("click", () => { strokes.pop(); redraw(); });
$("clear").addEventListener("click", () => { strokes = []; redraw(); });
redraw();

const kind = () => document.querySelector("input[name=kind]:checked").value;
for (const radio of document.querySelectorAll("input[name=kind]")) {
  radio.addEventListener("change", () => {
    const sketch = kind() === "sketch";
    $("board").hidden = !sketch;
    // Of a sketch all ink takes its best word at first, of a photograph only what is sure.
    $("threshold").value = sketch ? 0 : 0.5;
    $("threshold-value").textContent = (+$("threshold").value).toFixed(2);
  });
}

async function picture() {
  if (chosen.picture) return chosen.picture;
  if (kind() === "sketch" && strokes.length) {
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
  return null;
}

// --- asking the server ------------------------------------------------------------------------

function say(id, text, bad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", bad);
}

async function ask(path, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  let response;
  try {
    response = await fetch(path, { method: "POST", body: form });
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the server failed (${response.status})` }));
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

async function working(button, state, work) {
  button.disabled = true;
  say(state, "working…");
  try {
    await work();
  } catch (error) {
    say(state, error.message, true);
  } finally {
    button.disabled = false;
  }
}

// --- words ------------------------------------------------------------------------------------

let shown = null;

function show(answer) {
  shown = answer;
  $("overlay").src = $("save-overlay").href = answer.overlay;
  $("save-labels").href = answer.labels;
  $("overlay").hidden = $("save-labels").hidden = $("save-overlay").hidden = false;
  $("legend").replaceChildren(
    ...answer.legend.map((row) => {
      const item = document.createElement("li");
      // A drawn swatch: the page's policy forbids inline styles.
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      swatch.setAttribute("viewBox", "0 0 1 1");
      const fill = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      fill.setAttribute("width", "1");
      fill.setAttribute("height", "1");
      fill.setAttribute("fill", row.color);
      swatch.append(fill);
      const share = (100 * row.share).toFixed(1);
      item.append(swatch, `${row.text} – score ${row.score.toFixed(2)}, ${share} %`);
      return item;
    }),
  );
  say("words-state", "done");
}

async function find() {
  const file = await picture();
  if (!file) throw new Error("choose a picture or draw a sketch first.");
  const words = $("words").value;
  if (!words.trim()) throw new Error("type at least one word.");
  show(await ask("/api/locate", { picture: file, words, kind: kind(), threshold: $("threshold").value }));
}

$("go").addEventListener("click", () => working($("go"), "words-state", find));

$("threshold").addEventListener("input", () => ($("threshold-value").textContent = (+$("threshold").value).toFixed(2)));
$("threshold").addEventListener("change", () => {
  if (!shown) return;
  working($("go"), "words-state", async () => {
    try {
      show(await ask("/api/relabel", { key: shown.key, threshold: $("threshold").value }));
    } catch (error) {
      // 410: other pictures came in between and this one is no longer kept.
      if (error.status !== 410) throw error;
      await find();
    }
  });
});

// --- two pictures -----------------------------------------------------------------------------

$("go-match").addEventListener("click", () =>
  working($("go-match"), "match-state", async () => {
    if (!chosen.picture0 || !chosen.picture1) throw new Error("choose two pictures first.");
    const answer = await ask("/api/match", { picture0: chosen.picture0, picture1: chosen.picture1 });
    $("match-overlay").src = answer.overlay;
    $("match-overlay").hidden = false;
    const share = answer.share.map((part) => `${(100 * part).toFixed(0)} %`).join(" and ");
    say("match-state", `score ${answer.score.toFixed(2)}, ${answer.matches} matches, shared region ${share}`);
  }),
);
