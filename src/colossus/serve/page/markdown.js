// A little Markdown as DOM nodes. Text only ever becomes a text node, so that whatever a model says stays words.

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|\*(?=[^\s*])([^*]*?[^\s*])\*|\[([^\]\n]+)\]\((https?:\/\/[^\s()]+(?:\([^\s()]*\)[^\s()]*)*)\)/g;

export function markdown(text) {
  const made = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) at = block(lines, at, made);
  return made;
}

function block(lines, at, into) {
  const line = lines[at];
  const fence = line.match(/^\s{0,3}(`{3,}|~{3,})/);
  if (fence) return code(lines, at, fence[1], into);
  if (!line.trim()) return at + 1;
  const heading = line.match(/^\s{0,3}#{1,6}\s+(.*?)\s*#*$/);
  if (heading) {
    into.append(inline(element("h3"), heading[1]));
    return at + 1;
  }
  if (item(line)) return list(lines, at, into);
  if (/^\s{0,3}>/.test(line)) return run(lines, at, into, "blockquote", (each) => /^\s{0,3}>/.test(each), (each) => each.replace(/^\s{0,3}>\s?/, ""));
  return run(lines, at, into, "p", (each, first) => first || (each.trim() && !special(each)), (each) => each);
}

function special(line) {
  return /^\s{0,3}(`{3,}|~{3,}|#{1,6}\s|>)/.test(line) || item(line);
}

function item(line) {
  return line.match(/^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/);
}

function code(lines, at, mark, into) {
  const inside = [];
  let next = at + 1;
  while (next < lines.length && !lines[next].trim().startsWith(mark)) inside.push(lines[next++]);
  const pre = element("pre");
  pre.append(element("code", inside.join("\n")));
  into.append(pre);
  return next + 1;
}

function list(lines, at, into) {
  const first = item(lines[at]);
  const made = element(first[2] === undefined ? "ul" : "ol");
  if (first[2] !== undefined && first[2] !== "1") made.start = Number(first[2]);
  let next = at;
  for (let found; next < lines.length && (found = item(lines[next])) && (found[2] === undefined) === (first[2] === undefined); next++) {
    const words = [found[3]];
    while (next + 1 < lines.length && /^\s{2,}\S/.test(lines[next + 1]) && !special(lines[next + 1])) words.push(lines[++next].trim());
    made.append(inline(element("li"), words.join("\n")));
  }
  into.append(made);
  return next;
}

function run(lines, at, into, name, belongs, clean) {
  const words = [];
  let next = at;
  while (next < lines.length && belongs(lines[next], next === at)) words.push(clean(lines[next++]));
  into.append(inline(element(name), words.join("\n")));
  return next;
}

function inline(parent, text) {
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    plain(parent, text.slice(end, found.index));
    const [whole, , quoted, bold, italic, words, address] = found;
    if (quoted !== undefined) parent.append(element("code", quoted));
    else if (bold !== undefined) parent.append(inline(element("strong"), bold));
    else if (italic !== undefined) parent.append(inline(element("em"), italic));
    else parent.append(link(words, address));
    end = found.index + whole.length;
  }
  plain(parent, text.slice(end));
  return parent;
}

function plain(parent, text) {
  text.split("\n").forEach((line, number) => {
    if (number) parent.append(document.createElement("br"));
    if (line) parent.append(line);
  });
}

function link(words, address) {
  const made = element("a", words);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

export function element(name, text, css) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}
