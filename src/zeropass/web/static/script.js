"use strict";
// All that a page needs beyond HTML: keys, parts that come when they are looked at, and search where no server answers.

const typing = (element) => element.matches("input:not([type=radio]), textarea, select");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (event.key === "/") {
    const search = document.getElementById("q");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  }
  const rel = { "[": "prev", "]": "next" }[event.key];
  const link = rel && document.querySelector(`a[rel=${rel}]`);
  if (link) link.click();
});

// A section that names a page shows that page's part once it is near the screen; without script it is a link.
async function load(section) {
  section.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(section.dataset.load);
    if (!answer.ok) throw new Error(answer.status);
    const other = new DOMParser().parseFromString(await answer.text(), "text/html");
    const part = other.querySelector("[data-part]");
    if (part) section.replaceChildren(section.firstElementChild, document.adoptNode(part));
  } catch {
    // The link stays.
  }
  section.removeAttribute("aria-busy");
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { watcher.unobserve(entry.target); load(entry.target); }
  }
}, { rootMargin: "200px" });
document.querySelectorAll("[data-load]").forEach((section) => watcher.observe(section));

// In a static site the list of tokens is a file: the first token of that text, with or without a space before it.
document.querySelectorAll("form[data-tokens]").forEach((form) => form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = form.querySelector("output");
  const text = form.elements.q.value;
  try {
    const tokens = await (await fetch(form.dataset.tokens)).json();
    const found = [` ${text}`, text, text.trim()].map((one) => tokens[one]).find((id) => id !== undefined);
    const page = (token) => `${form.dataset.token}${tokens[token]}.html`;
    if (found === undefined) {
      said.textContent = "not a token of this site";
      const plain = (one) => one.trim().toLowerCase();
      const like = Object.keys(tokens).find((one) => plain(one) === plain(text));
      if (like !== undefined) {
        const link = Object.assign(document.createElement("a"), { href: page(like), textContent: like.trim() });
        said.append("; did you mean ", link, "?");
      }
    } else location.href = `${form.dataset.token}${found}.html`;
  } catch {
    said.textContent = "search needs a file server";
  }
}));
