"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);

// Everything that people or models wrote goes in as text, never as markup.
function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function picture(src, alt) {
  if (!src) return make("div", "lost", "no readable image");
  const img = make("img");
  img.src = src;
  img.alt = alt;
  img.loading = "lazy";
  img.onload = () => img.classList.toggle("tiny", img.naturalWidth < 128);
  return img;
}

// A key that stands alone and is not being typed into a field.
const pressed = event => event.ctrlKey || event.metaKey || event.altKey ||
  /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) ? "" : event.key;
