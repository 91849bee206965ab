// Elements are made by calls, and text is only ever text: much of it comes from clients.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) {
      node.removeAttribute(name);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// An element of HTML; children that are strings become text.
export const html = (name, attributes = {}, ...children) =>
  build(document.createElement(name), attributes, children);

// The same of SVG.
export const svg = (name, attributes = {}, ...children) =>
  build(document.createElementNS(SVG, name), attributes, children);

// Changes attributes of what is there.
export const set = (node, attributes) => build(node, attributes, []);

// Says something else, if it is something else: what has not changed is not read out anew.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Makes the children of `parent` those of `items`, in this order. A child stays the same as long as its key does, and
// with it the focus: `make(item)` makes one, `update(child, item)` brings it up to date.
export function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = old.get(name);
    if (child) {
      old.delete(name);
    } else {
      child = make(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (child === at) {
      at = at.nextElementSibling;
    } else {
      parent.insertBefore(child, at);
    }
  }
  for (const child of old.values()) child.remove();
}

// A bar that is `share` of the whole long.
export function bar(share, kind) {
  const filled = html("span", { class: `fill ${kind}` });
  filled.style.width = `${Math.min(Math.max(share, 0), 1) * 100}%`;
  return html("span", { class: "track", "aria-hidden": "true" }, filled);
}

// The same beside its figure.
export const measure = (text, share, kind) => html("span", { class: "measure" }, html("span", {}, text), bar(share, kind));
