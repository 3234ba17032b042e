// Building elements, and texts for people.

// element("p", {class: "caption"}, "text", child): attributes that are functions are listeners.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

export function percent(share) {
  if (share >= 0.995 && share < 0.9995) return `${(100 * share).toFixed(1)}\u00a0%`;
  if (share >= 0.0995) return `${Math.round(100 * share)}\u00a0%`;
  if (share >= 0.001) return `${(100 * share).toFixed(1)}\u00a0%`;
  return share > 0 ? "<\u00a00.1\u00a0%" : "0\u00a0%";
}

// What a server says, as a sentence.
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.?!…]$/.test(whole) ? whole : `${whole}.`;
}

// What was shown, by the kinds of each: "image" or "video".
export function mediaName(kinds) {
  if (kinds.length > 1) return kinds.includes("video") ? "the pictures and clips" : "the pictures";
  return kinds[0] === "video" ? "the clip" : "the picture";
}

// A token as it can be seen: blanks and line ends have a sign.
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "·") || "∅";

// A radio group of buttons: one is checked, arrow keys move.
export function radios(group, choose) {
  const buttons = () => [...group.querySelectorAll("[role=radio]")];
  group.addEventListener("click", (event) => {
    const button = event.target.closest("[role=radio]");
    if (button) choose(button.dataset.value);
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = buttons();
    const now = all.findIndex((one) => one.getAttribute("aria-checked") === "true");
    choose(all[(now + step + all.length) % all.length].dataset.value);
    buttons().find((one) => one.getAttribute("aria-checked") === "true")?.focus();
  });
}

export function check(group, value) {
  for (const one of group.querySelectorAll("[role=radio]")) {
    const isChecked = one.dataset.value === String(value);
    one.setAttribute("aria-checked", isChecked);
    one.tabIndex = isChecked ? 0 : -1;
  }
}
