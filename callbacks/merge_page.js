"use strict";
const experts = [...document.querySelectorAll(".legend li")].map((item) => item.textContent);

for (const card of document.querySelectorAll("article")) {
  const tokens = [...card.querySelectorAll(".text b")];
  const [chart, cursor, slider, readout] = ["svg", ".cursor", "input", ".readout"].map((name) => card.querySelector(name));
  const said = document.createElement("p");
  const rows = experts.map((name, i) => {
    const cells = ["name", `bar e${i}`, "figure"].map((kind) => document.createElement("span"));
    cells.forEach((cell, k) => { cell.className = ["name", `bar e${i}`, "figure"][k]; });
    cells[0].textContent = name;
    return cells;
  });
  let shown = -1;

  function show(place) {
    if (place < 0 || place >= tokens.length || place === shown) return;
    if (shown >= 0) tokens[shown].classList.remove("at");
    shown = place;
    const token = tokens[place];
    token.classList.add("at");
    const code = document.createElement("code");
    code.textContent = token.textContent;
    said.replaceChildren(`Token ${place + 1} of ${tokens.length}: `, code);
    const weights = token.dataset.weights.split(" ").map(Number);
    rows.forEach(([name, bar, figure], i) => {
      for (const cell of [name, bar, figure]) cell.hidden = weights[i] === 0;
      bar.style.width = `${100 * weights[i]}%`;
      figure.textContent = weights[i].toFixed(3);
    });
    cursor.setAttribute("x", place);
    cursor.style.visibility = "visible";
    slider.value = place + 1;
    slider.setAttribute("aria-valuetext", experts.map((name, i) => [name, weights[i]]).filter((one) => one[1] > 0)
      .map(([name, weight]) => `${name} ${weight.toFixed(2)}`).join(", "));
  }

  if (!tokens.length) continue;
  readout.append(said, ...rows.flat());
  for (const part of [readout, slider]) part.hidden = false;
  tokens.forEach((token, place) => {
    token.addEventListener("pointerenter", () => show(place));
    token.addEventListener("click", () => show(place));
  });
  const follow = (event) => {
    const box = chart.getBoundingClientRect();
    show(Math.min(tokens.length - 1, Math.floor(((event.clientX - box.left) / box.width) * tokens.length)));
  };
  chart.addEventListener("pointermove", follow);
  chart.addEventListener("click", follow);
  slider.addEventListener("input", () => show(Number(slider.value) - 1));
  show(0);
}
