"use strict";
const search = document.querySelector("search");
const cards = [...document.querySelectorAll("article")];
const [model, data, words, shown, none] = ["model", "data", "words", "shown", "none"].map((id) => document.getElementById(id));

function filter() {
  const wanted = words.value.trim().toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = (model.value === "" || card.dataset.model === model.value) && (data.value === "" || card.dataset.set === data.value);
    card.hidden = !(fits && (wanted === "" || card.textContent.toLowerCase().includes(wanted)));
    count += !card.hidden;
  }
  shown.textContent = `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
  none.hidden = count > 0;
}

if (search) {
  search.hidden = false;
  for (const choice of [model, data]) choice.addEventListener("change", filter);
  words.addEventListener("input", filter);
  filter();
}
