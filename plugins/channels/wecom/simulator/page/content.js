// What was said, as elements. Nothing of it is ever read as HTML: an app could say anything.

import { texts } from "/page/texts.js";

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function link(url, ...children) {
  if (!/^https?:\/\//i.test(url)) return make("span", {}, ...children);
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

// --- Words ---

const ANCHOR = /<a\s+href=["']([^"']*)["'][^>]*>([^<]*)<\/a>|(https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?，。；：！？)）])/gi;

function plain(text) {
  return pieces(text, ANCHOR, ([, href, label, url]) => (url ? link(url, url) : link(href, label)));
}

function pieces(text, pattern, render) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    found.push(text.slice(end, match.index), render(match));
    end = match.index + match[0].length;
  }
  return [...found, text.slice(end)];
}

const INLINE = /\*\*(.+?)\*\*|\[([^\]]+)\]\(([^)\s]+)\)|`([^`]+)`|<font color=["']?(info|comment|warning)["']?>(.*?)<\/font>/g;

function inline(text) {
  return pieces(text, INLINE, ([, bold, label, url, code, color, colored]) => {
    if (bold) return make("strong", {}, ...inline(bold));
    if (url) return link(url, label);
    if (code) return make("code", {}, code);
    return make("span", { class: color }, ...inline(colored));
  });
}

function markdown(text) {
  return text.split("\n").map((line) => {
    const heading = line.match(/^#{1,6}\s+(.*)$/);
    if (heading) return make("p", { class: "heading" }, ...inline(heading[1]));
    if (line.startsWith(">")) return make("blockquote", {}, ...inline(line.replace(/^>\s*/, "")));
    return make("p", {}, ...inline(line));
  });
}

// A textcard's description may have <div class="gray|highlight|normal">.
function marked(text) {
  const pattern = /<div class=["'](gray|highlight|normal)["']>([\s\S]*?)<\/div>|<br\s*\/?>/gi;
  return pieces(text, pattern, ([, kind, words]) => (kind ? make("div", { class: kind }, words) : make("br")));
}

// --- Kinds ---

function file(kind, mediaId) {
  const url = `/simulator/media/${encodeURIComponent(mediaId)}`;
  if (kind === "image") return [make("img", { class: "picture", src: url, alt: texts.kindNames.image || "image" })];
  return [make("a", { class: "file", href: url, target: "_blank" }, texts.openFile(kind))];
}

function titled({ title, description = "", url = "", picurl = "" }) {
  const picture = /^(https?:\/)?\//.test(picurl) ? [make("img", { class: "picture", src: picurl, alt: "" })] : [];
  return make("div", { class: "titled" }, ...picture, link(url, make("strong", {}, title || url)),
    make("p", {}, ...marked(description)));
}

function location(fields) {
  const x = fields.Location_X ?? fields.Latitude;
  const y = fields.Location_Y ?? fields.Longitude;
  return [make("strong", {}, fields.Label || ""), make("p", { class: "gray" }, `${x}, ${y}`)];
}

function card(fields, press) {
  const title = fields.main_title || {};
  const rows = [].concat(fields.horizontal_content_list || []);
  const buttons = [].concat(fields.button_list || []);
  return [
    make("strong", {}, title.title || ""),
    ...(title.desc ? [make("p", { class: "gray" }, title.desc)] : []),
    ...(fields.sub_title_text ? [make("p", {}, fields.sub_title_text)] : []),
    ...(rows.length ? [make("dl", { class: "rows" }, ...rows.flatMap((row) => [
      make("dt", {}, row.keyname || ""), make("dd", {}, row.url ? link(row.url, row.value || row.url) : row.value || "")]))] : []),
    ...[].concat(fields.jump_list || []).map((jump) => make("p", {}, link(jump.url || "", jump.title || ""))),
    ...(fields.replace_name
      ? [make("p", { class: "pressed" }, `✓ ${fields.replace_name}`)]
      : [make("div", { class: "buttons" }, ...buttons.map((button) =>
        make("button", { type: "button", class: `style-${Number(button.style) || 2}`, onclick: () => press(button) }, button.text)))]),
  ];
}

export function content(entry, press) {
  const { kind, text, fields } = entry;
  if (entry.state === "recalled") return [make("em", {}, texts.recalled)];
  if (kind === "text") return [make("p", { class: "words" }, ...plain(text))];
  if (kind === "markdown") return markdown(text);
  if (kind === "template_card") return card(fields, press);
  if (kind === "textcard") return [titled(fields)];
  if (kind === "news" || kind === "mpnews") return fields.articles.map(titled);
  if (kind === "location") return location(fields);
  if (kind === "link") {
    return [titled({ title: fields.Title, description: fields.Description, url: fields.Url, picurl: fields.PicUrl })];
  }
  const mediaId = fields.media_id || fields.MediaId;
  if (mediaId) return file(kind, mediaId);
  return [make("p", { class: "words" }, text)];
}

const MESSAGES = ["text", "image", "voice", "video", "location", "link"];

export function isEvent(entry) {
  return entry.direction === "inbound" && !MESSAGES.includes(entry.kind);
}

export function eventText(entry) {
  const key = entry.fields.EventKey ? ` · ${entry.fields.EventKey}` : "";
  return `${texts.kindNames[entry.kind] || entry.kind}${key}`;
}
