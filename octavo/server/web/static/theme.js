// The chosen colours, before the first paint. Loaded in the head, before any module.
"use strict";

(() => {
  let chosen = null;
  try {
    chosen = JSON.parse(localStorage.getItem("octavo.theme.name"));
  } catch {
    // storage is closed to us: the system's colours
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
