// Runs the script of an explain page without a browser: node page.js PAGE.html HASH KEY KEY ...
// Prints JSON: for the start and after each key, the text of the sections and the cursor.
"use strict";
const html = require("fs").readFileSync(process.argv[2], "utf8");
const part = (open, close) => { const at = html.indexOf(open); return html.slice(at + open.length, html.indexOf(close, at)); };

class Node {
  constructor(tag, text = "") { Object.assign(this, { tag, own: text, children: [], attributes: {}, style: {}, dataset: {}, listeners: {} }); }
  set textContent(text) { this.own = String(text); this.children = []; }
  get textContent() { return this.own + this.children.map(child => child.textContent).join(this.tag === "tr" ? "|" : ""); }
  get rows() { return this.children; }
  appendChild(child) { this.children.push(child); child.parent = this; return child; }
  replaceChildren(...nodes) { this.own = ""; this.children = []; nodes.forEach(node => this.appendChild(node)); }
  get classList() { return { toggle: (name, on) => { this.marked = on ? name : ""; } }; }
  remove() { this.parent.children = this.parent.children.filter(child => child !== this); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, call) { this.listeners[name] = call; }
  querySelector(tag) { return this.children.find(child => child.tag === tag) || null; }
  getBoundingClientRect() { return { left: 0, top: 0, width: 100, height: 100 }; }
  getContext() { this.cells = 0; return { fillRect: () => { this.cells++; }, set fillStyle(_) {} }; }
  scrollIntoView() {}
}

const places = { "#content": new Node("script", part('id="content">', "</script>")), "#data": new Node("script", part('id="data">', "</script>")) };
for (const query of ["#say", "#words", "#story", "#s2 .note", ...[1, 2, 3, 4, 5, 6, 7, 8, 9].flatMap(n => [`#s${n} > div`, `#s${n}`])]) places[query] = new Node("div");
const root = new Node("html"), listeners = {};
global.Node = Node;
global.document = { documentElement: root, createElement: tag => new Node(tag), addEventListener: (name, call) => { listeners[name] = call; },
  querySelector: query => { if (!(query in places)) throw Error("no element " + query); return places[query]; } };
global.matchMedia = () => ({ matches: false });
global.getComputedStyle = () => ({ getPropertyValue: () => "0, 0, 0" });
global.location = { hash: process.argv[3] };
global.history = { replaceState: (_, __, hash) => { global.location.hash = hash; } };
const canvases = node => (node.tag === "canvas" ? [node] : []).concat(...node.children.map(canvases));
const look = () => ({ hash: global.location.hash, say: places["#say"].textContent, words: places["#words"].textContent, story: places["#story"].textContent,
  sections: [1, 2, 3, 4, 5, 6, 7, 8, 9].map(n => places[`#s${n} > div`].children.map(child => child.tag === "table" || child.tag === "div"
    ? (child.tag === "div" ? child.children[0] : child).children.map(row => row.textContent).join("\n") : child.textContent).join("\n")),
  canvases: [3, 4, 5].map(n => canvases(places[`#s${n} > div`]).map(node => node.cells)) });
const script = part('<script>\n"use strict";', "</script>").replace(/\nstart\(\);\s*$/, "\nreturn start();");
(async () => {
  await new Function(script)();
  const seen = [look()];
  for (const key of process.argv.slice(4)) { listeners.keydown({ key, preventDefault() {} }); seen.push(look()); }
  console.log(JSON.stringify(seen));
})();
