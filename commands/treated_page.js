"use strict";
const main = document.querySelector("main");
const cards = [...document.querySelectorAll("article")];
const boxes = [...document.querySelectorAll("input[name=rule]")];
const [low, high, order, all, shown, none] = ["low", "high", "order", "all", "shown", "none"].map((id) =>
  document.getElementById(id),
);
const number = (text, otherwise) => (text === "" || Number.isNaN(Number(text)) ? otherwise : Number(text));
const orders = {
  drawn: (card) => Number(card.dataset.drawn),
  up: (card) => number(card.dataset.strength, Infinity),
  down: (card) => -number(card.dataset.strength, -Infinity),
  std: (card) => -number(card.dataset.std, -Infinity),
};

function filter() {
  const rules = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const least = number(low.value, -Infinity);
  const greatest = number(high.value, Infinity);
  const bounded = least > -Infinity || greatest < Infinity;
  let count = 0;
  for (const card of cards) {
    const strength = number(card.dataset.strength, NaN);
    const inside = Number.isNaN(strength) ? !bounded : least <= strength && strength <= greatest;
    card.hidden = !(inside && rules.has(card.dataset.rule));
    count += !card.hidden;
  }
  shown.textContent = `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
  none.hidden = count > 0;
}

function sort() {
  const key = orders[order.value];
  const sorted = [...cards].sort((one, other) => {
    const [first, second] = [key(one), key(other)];
    return first < second ? -1 : first > second ? 1 : orders.drawn(one) - orders.drawn(other);
  });
  main.prepend(...sorted);
}

for (const box of boxes) box.addEventListener("change", filter);
for (const bound of [low, high]) bound.addEventListener("input", filter);
order.addEventListener("change", sort);
all.addEventListener("click", () => {
  for (const box of boxes) box.checked = !box.disabled;
  low.value = high.value = "";
  order.value = "drawn";
  sort();
  filter();
});
filter();
