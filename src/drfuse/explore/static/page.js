// What every page has: a choice that is taken at once.
"use strict";
for (const choice of document.querySelectorAll("[data-submits]")) {
  choice.addEventListener("change", () => choice.form.submit());
}
