// What the theme leaves undone for keyboards and screen readers. No feature of the course depends on this file.

const all = (selector) => [...document.querySelectorAll(selector)];

/** A box that scrolls sideways can be reached and scrolled with the keyboard, and says what it is. */
const SCROLLERS = {
  "div.math > mjx-container[display]": "Equation",
  "div.highlight pre": "Code",
  ".cell_output pre": "Output",
  ".pst-scrollable-table-container": "Table",
  "dt.sig": "Signature",
};

function reachScrollers() {
  for (const box of all(".bd-article span.math > mjx-container")) {
    const room = box.closest("p, li, dd, td, th, figcaption, h2, h3")?.clientWidth ?? Infinity;
    if (box.firstElementChild.getBoundingClientRect().width > room) box.classList.add("wide");
  }
  for (const [selector, name] of [...Object.entries(SCROLLERS), ["mjx-container.wide", "Formula"]]) {
    for (const box of all(`.bd-article ${selector}`)) {
      if (box.scrollWidth <= box.clientWidth + 1) continue;
      box.tabIndex = 0;
      if (box.localName === "dt" || box.hasAttribute("role")) continue;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", name);
    }
  }
}

/** Names and roles that the theme gives wrongly, or not at all. */
function mendTheme() {
  for (const button of all(".search-button-field")) button.removeAttribute("aria-label"); // its text is its name
  for (const summary of all("details.hide > summary")) summary.removeAttribute("aria-label");
  for (const summary of all(".bd-sidebar-primary details > summary")) {
    const link = summary.closest("li").querySelector("a");
    summary.setAttribute("aria-label", `Pages of ${link.textContent.trim()}`);
  }
  for (const box of all(".sidebar-primary-items__start")) {
    box.setAttribute("role", "navigation");
    box.setAttribute("aria-label", "Course");
  }
  for (const list of all(".citation-list")) list.removeAttribute("role");
  for (const entry of all("[role='doc-biblioentry']")) entry.removeAttribute("role");
  for (const list of all("dt.sig > dl")) { // parameters one a line: a list of definitions without terms
    for (const item of [...list.children]) item.replaceWith(renamed(item, "div"));
    list.replaceWith(renamed(list, "div"));
  }
}

function renamed(element, name) {
  const made = document.createElement(name);
  made.className = "sig-parameters";
  made.append(...element.childNodes);
  return made;
}

/** The icons of the theme switch carry titles that contradict its name. */
function hushIcons() {
  for (const icon of all(".theme-switch-button :is(i, svg)")) {
    icon.querySelector("title")?.remove();
    icon.removeAttribute("title");
    icon.removeAttribute("aria-labelledby");
    icon.setAttribute("aria-hidden", "true");
  }
}

function whenTypeset(run) {
  const typeset = globalThis.MathJax?.startup?.promise;
  if (typeset) typeset.then(run);
  else if (document.querySelector("script[src*='mathjax']")) setTimeout(() => whenTypeset(run), 100);
}

document.addEventListener("DOMContentLoaded", () => {
  mendTheme();
  hushIcons();
  for (const button of all(".theme-switch-button")) new MutationObserver(hushIcons).observe(button, { childList: true });
  reachScrollers();
  whenTypeset(reachScrollers);
});
addEventListener("resize", reachScrollers);
