// A page that was opened from disk may not read other pages: a search there lists titles, without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What scrolls sideways takes the focus, so that arrow keys scroll it. The theme sees to code, and only when the window changes its size.
const scrollers = () => {
  for (const node of document.querySelectorAll(".bd-content figure, .bd-content div.math mjx-container")) {
    if (node.scrollWidth > node.clientWidth) node.tabIndex = 0;
    else node.removeAttribute("tabindex");
  }
};
addEventListener("resize", scrollers);
addEventListener("load", async () => {
  await window.MathJax?.startup.promise;
  scrollers();
});
addEventListener("toggle", () => dispatchEvent(new Event("resize")), true);

// The theme takes the focus from a button that is pressed. Who pressed it by key gets it back, once what it opened has closed.
addEventListener("click", ({ target, detail }) => {
  const button = target.closest(".theme-switch-button, .primary-toggle, .secondary-toggle");
  if (!button || detail) return; // a mouse counts its clicks, a key none
  setTimeout(() => {
    const opened = document.querySelector("dialog[open]");
    if (opened) opened.addEventListener("close", () => button.focus(), { once: true });
    else button.focus();
  });
}, true);

// Paper is white, and what is folded open on it.
let theme;
addEventListener("beforeprint", () => {
  ({ theme } = document.documentElement.dataset);
  document.documentElement.dataset.theme = "light";
  for (const folded of document.querySelectorAll(".kdlib-folded")) folded.open = true;
});
addEventListener("afterprint", () => { document.documentElement.dataset.theme = theme; });
