"use strict";
// The choice of a person holds on all pages of the station. Without a choice the system's colours are taken.
(() => {
  const root = document.documentElement;
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
    new MutationObserver(() => localStorage.setItem("theme", root.dataset.theme ?? ""))
      .observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  } catch { /* A browser may refuse to store anything. */ }
  root.classList.add("script");
})();
