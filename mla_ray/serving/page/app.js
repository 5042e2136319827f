// The search page. What is shown is a function of the address: the query string holds the search,
// the fragment one of its results. Texts reach the page as text alone, never as markup.

const K = 24; // results a page
const MAX_TEXT = 1000; // characters of a query
const MAX_IMAGE = 8 * 2 ** 20; // bytes
const MAX_WAIT = 30; // seconds that a busy server may ask for before we leave it to the reader
const KEPT = 30; // searches that Back shows at once
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"];
const TOKEN = "mla-ray token";
const HOME = new URL("..", import.meta.url).pathname; // where a proxy has it, with a slash at the end
const EXAMPLES = {
  ar: "قطة سوداء", bg: "червена ябълка", cs: "medvěd", da: "cykel", de: "Regenschirm",
  el: "ήλιος", en: "birthday cake", es: "perro", fa: "پروانه", fi: "joulukuusi",
  fr: "papillon", he: "תפוח אדום", hi: "हाथी", hr: "riba", hu: "vonat", id: "gunung api",
  it: "gelato", ja: "富士山", ko: "고래", lt: "medis", nl: "fiets", no: "hval", pl: "jednorożec",
  pt: "abacaxi", ro: "fluture", ru: "снеговик", sk: "motýľ", sl: "čebela", sr: "пчела",
  sv: "älg", sw: "tembo", ta: "யானை", th: "ช้าง", tr: "kelebek", uk: "соняшник", ur: "تتلی",
  vi: "con mèo", zh: "雪人",
};

const $ = (id) => document.getElementById(id);
const form = $("form");
const box = $("q");
const results = $("results");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const touch = matchMedia("(pointer: coarse)");

// ---- a search, and its address ---------------------------------------------------------------

const START = {
  q: "", language: "auto", find: "images", in_language: "", source: "", offset: 0,
  like: "", like_source: "", // an image's id and source: search with that picture
  upload: null, // key of a picture of the reader's own; it has no address
};

function readSearch(href, upload = null) {
  const given = new URL(href).searchParams;
  const like = given.get("like") ?? "";
  const offset = Number.parseInt(given.get("offset") ?? "0", 10);
  return {
    q: like || upload ? "" : (given.get("q") ?? "").trim(),
    language: given.get("language") || "auto",
    find: given.get("find") === "captions" ? "captions" : "images",
    in_language: given.get("in_language") ?? "",
    source: given.get("source") ?? "",
    offset: offset > 0 ? offset : 0,
    like,
    like_source: like ? (given.get("like_source") ?? "") : "",
    upload,
  };
}

function address(search, hit = "") {
  const query = new URLSearchParams();
  for (const name of ["q", "like", "like_source", "language", "find", "in_language", "source", "offset"]) {
    if (search[name] !== START[name]) query.set(name, search[name]);
  }
  const text = query.toString().replaceAll("%2F", "/");
  return `${HOME}${text && `?${text}`}${hit && `#hit-${encodeURIComponent(hit)}`}`;
}

const withPicture = (search) => Boolean(search.like || search.upload);
const isStart = (search) => !search.q && !withPicture(search);

// ---- the server ------------------------------------------------------------------------------

/** What the server said instead of an answer; status 0 if it said nothing. */
class Failure extends Error {
  constructor(status, detail, wait = 0) {
    super(detail);
    this.status = status;
    this.wait = wait; // seconds
  }

  static async of(response) {
    let detail = "";
    try {
      const problem = await response.json();
      detail = typeof problem.detail === "string" ? problem.detail : "";
    } catch {
      // not a problem document: something between us and the server answered
    }
    const after = response.headers.get("Retry-After") ?? "";
    const wait = /^\d+$/.test(after) ? Number(after) : (Date.parse(after) - Date.now()) / 1000;
    return new Failure(response.status, detail || response.statusText, Math.max(0, wait || 0));
  }
}

/** Fetch with the token; a server that is busy is asked a second time. */
async function ask(url, { signal, quiet = false, headers = {}, ...rest } = {}) {
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(url, { ...rest, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "There was no answer. Check that the server runs and is in reach.");
    }
    if (response.ok) return response;
    const failure = await Failure.of(response);
    const busy = failure.status === 429 || failure.status === 503;
    if (!busy || attempt > 1 || failure.wait > MAX_WAIT) throw failure;
    const seconds = Math.max(1, Math.ceil(failure.wait));
    if (!quiet) say(`The server is busy. Trying again in ${seconds} s`);
    await pause(seconds * 1000, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

async function find(view, offset, signal) {
  const { search } = view;
  const query = new URLSearchParams({ find: search.find, k: K, offset });
  if (search.find === "captions" && search.in_language) {
    query.set("in_language", search.in_language);
  }
  if (search.source) query.set("source", search.source);
  if (!withPicture(search)) {
    query.set("q", search.q);
    query.set("language", search.language);
    return (await ask(`${HOME}v1/search?${query}`, { signal })).json();
  }
  const image = await pictureOf(view, signal);
  showAsked(view); // now that there is something to show
  const headers = { "Content-Type": image.type };
  const url = `${HOME}v1/search/image?${query}`;
  return (await ask(url, { method: "POST", body: image, headers, signal })).json();
}

/** The bytes that are searched with. */
async function pictureOf(view, signal) {
  if (view.search.upload) {
    view.image = uploads.get(view.search.upload)?.file;
    if (!view.image) {
      throw new Failure(410, "A picture of your own has no address and is not kept over a reload.");
    }
  }
  view.image ??= await (await ask(imageUrl(view.search), { signal })).blob();
  return view.image;
}

function imageUrl({ like, like_source }) {
  const source = like_source && `?source=${encodeURIComponent(like_source)}`;
  return `${HOME}v1/images/${encodeURIComponent(like)}${source}`;
}

// ---- languages -------------------------------------------------------------------------------

let languages = []; // as the server lists them

async function loadLanguages() {
  let answer;
  try {
    answer = await (await ask(`${HOME}v1/languages`)).json();
  } catch (failure) {
    if (failure.status === 401) askForToken();
    return; // detection still works, and a search will say what is wrong
  }
  const order = new Intl.Collator();
  languages = answer.languages.toSorted((a, b) => order.compare(a.autonym, b.autonym));
  fillLanguages($("language"), languages);
  fillLanguages($("in-language"), languages.filter((each) => each.captions));
  chooseLanguages(view.search);
  summarise();

  const count = languages.reduce((sum, each) => sum + each.captions, 0);
  const names = languages.map((each) => each.autonym);
  const listed = names.length > 12 ? `${names.length} languages` : new Intl.ListFormat("en").format(names);
  $("served").textContent = `Captions: ${count.toLocaleString("en")}. Languages: ${listed}.`;
  $("about").textContent = `${answer.native} · ${plural(languages.length, "language")}`;
  if (answer.broken.length) {
    $("about").textContent += ` · ${plural(answer.broken.length, "pack")} cannot be served`;
    $("about").title = answer.broken.map((each) => `${each.name}: ${each.error}`).join("\n");
  }
  const tried = languages.filter((each) => Object.hasOwn(EXAMPLES, each.language)).slice(0, 10);
  $("examples").replaceChildren(...tried.map(({ language, autonym }) => {
    const link = make("a", { href: address({ ...START, q: EXAMPLES[language], language }) });
    link.append(
      make("span", { textContent: EXAMPLES[language], lang: language, dir: "auto" }),
      make("span", { textContent: autonym, lang: language, className: "tongue" }),
    );
    const item = make("li");
    item.append(link);
    return item;
  }));
}

function fillLanguages(select, listed) {
  select.replaceChildren(select.options[0], ...listed.map(({ language, autonym, name }) => {
    return make("option", { value: language, textContent: autonym, title: name, lang: language });
  }));
}

function languageName(code) {
  const known = languages.find((each) => each.language === code);
  if (known) return known.autonym;
  try {
    return new Intl.DisplayNames([code], { type: "language" }).of(code) ?? code;
  } catch {
    return code; // not a language code at all: the server will say so
  }
}

/** Select a language even if it is not listed: an address may name one that is not served. */
function choose(select, code) {
  if (![...select.options].some((option) => option.value === code)) {
    select.append(make("option", { value: code, textContent: languageName(code) }));
  }
  select.value = code;
}

function chooseLanguages(search) {
  choose($("language"), search.language);
  choose($("in-language"), search.in_language);
}

// ---- what is on the page ---------------------------------------------------------------------

let view = { key: "", search: START, pages: [], image: null, scroll: 0, focus: "" };
let controller = new AbortController(); // of the search that is shown
const views = new Map(); // by history entry, the latest last
const uploads = new Map(); // pictures of the reader's own, by key

function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** Controls as the search has them. */
function reflect(search) {
  box.value = search.q;
  chooseLanguages(search);
  form.elements.find.value = search.find;
  $("in-option").hidden = search.find !== "captions";
  $("source").hidden = !search.source;
  $("source").firstElementChild.textContent = search.source;
  $("source").title = `Results of “${search.source}” only; press to see all`;
  const subject = search.q || search.like || uploads.get(search.upload)?.name;
  document.title = subject ? `${subject} – mla-ray` : "mla-ray";
}

let said = "";

function say(text, ...nodes) {
  const line = text + nodes.map((node) => node.textContent ?? node).join("");
  if (line === said) return;
  said = line;
  $("status").replaceChildren(text, ...nodes);
}

/** The status line of the results that are shown. */
function summarise() {
  if (!view.pages.length) return;
  const { search, pages } = view;
  const count = pages.reduce((sum, page) => sum + page.hits.length, 0);
  const noun = search.find === "images" ? "picture" : "caption";
  if (!count) return say("");
  const first = pages[0].offset;
  const range = first ? `${noun[0].toUpperCase()}${noun.slice(1)}s ${first + 1} to ${first + count}` : plural(count, noun);
  const { language, detected, unknown_tokens: unknown } = pages[0];
  if (!language) return say(range);
  const name = make("bdi", { textContent: languageName(language), lang: language });
  const little = `. ${unknown === 1 ? "All" : "Most"} of the query is unknown to this language`;
  say(`${range} · `, name, detected ? " (detected)" : "", unknown > 0.5 ? little : "");
}

function notice(title, detail, ...actions) {
  const panel = $("notice");
  panel.querySelector("h2").textContent = title;
  panel.querySelector("p").textContent = detail;
  panel.querySelector("div").replaceChildren(...actions.map(([label, act]) => {
    const button = make("button", { type: "button", className: "primary", textContent: label });
    button.addEventListener("click", act);
    return button;
  }));
  panel.hidden = false;
  say("");
}

let toasting;

function toast(text) {
  clearTimeout(toasting);
  $("toast").textContent = text;
  $("toast").classList.add("shown");
  toasting = setTimeout(() => $("toast").classList.remove("shown"), 2500);
}

let askedUrl = "";

/** The picture that is searched with, above its results. */
function showAsked({ search, image }) {
  const panel = $("asked");
  panel.hidden = !withPicture(search);
  URL.revokeObjectURL(askedUrl);
  askedUrl = image && !panel.hidden ? URL.createObjectURL(image) : "";
  const frame = panel.querySelector(".picture");
  frame.className = "picture";
  if (askedUrl) {
    frame.firstElementChild.src = askedUrl;
    markSize(frame.firstElementChild);
  } else {
    frame.firstElementChild.removeAttribute("src");
  }
  const kind = search.find === "captions" ? "Captions for this picture" : "Pictures like this one";
  panel.querySelector(".asked-kind").textContent = kind;
  panel.querySelector("h2").textContent = search.like || uploads.get(search.upload)?.name || "";
}

// ---- cards -----------------------------------------------------------------------------------

let pictureUrls = []; // blob: addresses in the results

function clearResults() {
  pictureUrls.forEach((url) => URL.revokeObjectURL(url));
  pictureUrls = [];
  results.replaceChildren();
}

/** Show the picture at `url`; with a token it must be fetched, for <img> sends no header. */
async function setPicture(img, url, signal) {
  const frame = img.parentElement;
  const missing = () => frame.classList.add("none");
  if (!url) return missing();
  markSize(img);
  if (!sessionStorage.getItem(TOKEN)) {
    let again = true;
    img.addEventListener("error", () => {
      if (!again) return missing();
      again = false; // it may have been one picture too many at a time
      setTimeout(() => { img.src = url; }, 1500);
    });
    img.src = url;
    return undefined;
  }
  try {
    const blob = await (await ask(url, { signal, quiet: true })).blob();
    if (signal.aborted) return undefined;
    const blobUrl = URL.createObjectURL(blob);
    pictureUrls.push(blobUrl);
    img.src = blobUrl;
  } catch (error) {
    if (error.name !== "AbortError") missing();
  }
  return undefined;
}

/** Small drawings are not blown up to the size of a photo. */
function markSize(img) {
  img.onload = () => {
    const small = Math.max(img.naturalWidth, img.naturalHeight) <= 96;
    img.parentElement.classList.toggle("small", small);
    img.parentElement.classList.add("loaded");
  };
}

/** What no other hit has: two sources may use one id, and so may two languages. */
const keyOf = (hit) => JSON.stringify([hit.source, hit.language, hit.id]);

function card(hit, search, offset, signal) {
  const images = search.find === "images";
  const item = $(images ? "image-card" : "caption-card").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  const like = {
    ...START, language: search.language, like: hit.image_id, like_source: hit.source, source: search.source,
  };
  const captions = hit.image_url && address({ ...like, find: "captions" });
  const similar = hit.image_url && address({ ...like, find: "images" });
  const link = (name, href) => {
    if (href) part(name).href = href;
    else part(name).remove();
  };
  item.id = `hit-${keyOf(hit)}`;
  item.dataset.id = hit.id;
  setPicture(item.querySelector("img"), hit.image_url && imageUrl(like), signal);
  if (images) {
    const name = part("name").firstElementChild;
    name.textContent = name.title = hit.image_id;
    part("open").setAttribute("aria-label", `${hit.image_id}: captions for it`);
    link("captions", captions);
    if (captions) {
      part("open").href = captions;
      part("captions").tabIndex = -1; // the picture is the same link
    } else {
      part("open").tabIndex = 0; // nothing to open, still a stop on the way
    }
  } else {
    const text = { ...START, q: hit.caption, language: hit.language, source: search.source };
    part("caption").textContent = hit.caption;
    part("caption").lang = hit.language;
    part("tongue").textContent = hit.language;
    part("tongue").title = languageName(hit.language);
    link("pictures", address(text));
    part("open").href = captions || address(text);
    if (!captions) part("pictures").tabIndex = -1;
  }
  link("similar", similar);
  if (search.source) {
    part("source").remove();
  } else {
    part("source").textContent = hit.source;
    part("source").title = `Only results of “${hit.source}”`;
  }
  part("fill").style.setProperty("--score", Math.min(1, Math.max(0, hit.score)));
  part("number").textContent = hit.score.toFixed(3);
  part("copy").setAttribute("aria-label", `Copy a link to ${hit.caption || hit.image_id}`);
  // A picture of the reader's own has no address; the picture found with it has.
  link("copy", search.upload ? captions : address({ ...search, offset }, keyOf(hit)));
  return item;
}

function addPage({ search }, page) {
  const present = new Set([...results.children].map((item) => item.id));
  const fresh = page.hits.filter((hit) => !present.has(`hit-${keyOf(hit)}`));
  const cards = fresh.map((hit) => card(hit, search, page.offset, controller.signal));
  results.append(...cards);
  return cards;
}

function render() {
  const { search, pages } = view;
  clearResults();
  results.className = `results ${search.find}`;
  pages.forEach((page) => addPage(view, page));
  offerMore();
  $("earlier").hidden = !search.offset;
  $("earlier").href = address({ ...search, offset: Math.max(0, search.offset - K) });
  $("notice").hidden = true;
  summarise();
  if (!results.children.length) explainNothing(search);
}

function offerMore() {
  const next = view.pages.at(-1)?.next_offset;
  $("more").hidden = next == null;
  $("more").href = address({ ...view.search, offset: next ?? 0 });
}

function explainNothing(search) {
  const noun = search.find === "images" ? "pictures" : "captions";
  if (search.offset) {
    const start = () => go({ ...search, offset: 0 });
    return notice("There are no more results", "The list ends before this page.", ["From the start", start]);
  }
  if (search.source || search.in_language) {
    const widen = () => go({ ...search, source: "", in_language: "" });
    return notice(`No ${noun} here`, "Nothing is left of the results with this filter.", ["Remove the filter", widen]);
  }
  return notice(`There are no ${noun} yet`, `The collection of ${noun} is empty. Fill it with “mla index” or over HTTP.`);
}

// ---- searching -------------------------------------------------------------------------------

/** Go to a search: a new entry in the history. */
function go(search, { replace = false } = {}) {
  const depth = (history.state?.depth ?? 0) + (replace ? 0 : 1);
  const entry = { key: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, depth, upload: search.upload };
  history[replace ? "replaceState" : "pushState"](entry, "", address(search));
  show(entry.key, search);
}

/** Show the search of a history entry, from memory if it was shown before. */
function show(key, search) {
  const inResults = results.contains(document.activeElement);
  const known = views.get(key);
  controller.abort();
  controller = new AbortController();
  view = known ?? { key, search, pages: [], image: null, scroll: 0, focus: "" };
  views.delete(key);
  views.set(key, view);
  if (views.size > KEPT) views.delete(views.keys().next().value);
  reflect(search);
  showAsked(view);
  $("token").hidden = true;
  $("start").hidden = !isStart(search);
  if (isStart(search)) {
    endLoading();
    clearResults();
    for (const id of ["notice", "more", "earlier"]) $(id).hidden = true;
    say("");
    return;
  }
  if (view.pages.length) {
    endLoading();
    render();
    scrollTo({ top: view.scroll, behavior: "instant" });
    if (!mark() && view.focus) $(view.focus)?.querySelector(".open")?.focus({ preventScroll: true });
    return;
  }
  scrollTo({ top: 0, behavior: "instant" });
  load(inResults);
}

async function load(focus) {
  const { signal } = controller;
  const { search } = view;
  beginLoading(search);
  try {
    if ([...search.q].length > MAX_TEXT) {
      throw new Failure(422, `A query has at most ${MAX_TEXT.toLocaleString("en")} characters; this one has ${[...search.q].length.toLocaleString("en")}.`);
    }
    const page = await find(view, search.offset, signal);
    if (signal.aborted) return;
    view.pages = [page];
    render();
    if (!mark() && focus) results.querySelector(".open")?.focus({ preventScroll: true });
  } catch (error) {
    if (signal.aborted) return;
    fail(error);
  }
  endLoading();
}

function beginLoading(search) {
  document.body.classList.add("loading");
  results.setAttribute("aria-busy", "true");
  $("notice").hidden = $("more").hidden = $("earlier").hidden = true;
  say("Searching …");
  if (results.children.length) return; // the old results stay, dimmed, until the new are there
  results.className = `results ${search.find}`;
  results.append(...Array.from({ length: 12 }, () => {
    const item = make("li", { className: "card skeleton", ariaHidden: "true" });
    item.append(make("span", { className: "picture" }), make("span", { className: "words" }));
    return item;
  }));
}

function endLoading() {
  document.body.classList.remove("loading");
  results.removeAttribute("aria-busy");
}

async function more(byKeyboard) {
  const { signal } = controller;
  const next = view.pages.at(-1)?.next_offset;
  if (next == null || document.body.classList.contains("loading")) return;
  document.body.classList.add("loading");
  try {
    const page = await find(view, next, signal);
    if (signal.aborted) return;
    view.pages.push(page);
    const cards = addPage(view, page);
    offerMore();
    summarise();
    cards[0]?.querySelector(".open").focus({ preventScroll: !byKeyboard });
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) fail(error);
    else toast(explain(error).join(". "));
  }
  endLoading();
}

/** Title and detail of a failure. */
function explain(failure) {
  const { status, message } = failure;
  const own = withPicture(view.search);
  const titles = {
    0: "The server does not answer",
    404: own ? "That picture is not kept here" : "That language is not served",
    410: "That picture is gone",
    413: "The picture is too large",
    415: "The server does not read such pictures",
    422: own ? "The server cannot read that picture" : "The server cannot search for that",
    429: "Too many searches at a time",
    503: "The server is busy",
    504: "The server took too long",
  };
  if (!(failure instanceof Failure)) return ["Something went wrong", String(message)];
  return [titles[status] ?? "Something went wrong on the server", message];
}

function fail(failure) {
  clearResults();
  if (failure.status === 401) return askForToken();
  const { search } = view;
  const again = ["Try again", () => show(view.key, search)];
  const anew = ["New search", () => { go({ ...START, language: search.language }); box.focus(); }];
  const pick = ["Choose another picture", () => $("file").click()];
  const detect = ["Detect language", () => go({ ...search, language: "auto", in_language: "" })];
  const actions = {
    404: withPicture(search) ? [anew] : [detect],
    410: [pick],
    413: [pick],
    415: [pick],
    422: withPicture(search) ? [pick] : [],
  };
  let [title, detail] = explain(failure);
  if (failure.wait) detail += ` (in ${Math.ceil(failure.wait)} s)`;
  return notice(title, detail, ...(actions[failure.status] ?? [again]));
}

// ---- the token -------------------------------------------------------------------------------

function askForToken() {
  endLoading();
  clearResults();
  say("");
  const refused = sessionStorage.getItem(TOKEN);
  $("token-why").textContent = refused
    ? "The one that was given is not accepted. Check it, or ask who runs the server for another."
    : "Whoever runs it can give you one.";
  $("notice").hidden = $("start").hidden = $("more").hidden = true;
  $("token").hidden = false;
  $("token-value").focus();
}

function start() {
  $("forget").hidden = !sessionStorage.getItem(TOKEN);
  loadLanguages();
  show(view.key, view.search);
}

$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = $("token-value").value.trim();
  if (!value) return;
  if (/[^\x21-\x7e]/.test(value)) {
    $("token-why").textContent = "A token has no spaces and only plain letters, digits and signs.";
    return;
  }
  sessionStorage.setItem(TOKEN, value);
  $("token-value").value = "";
  start();
  box.focus();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.assign(HOME);
});

// ---- what the reader does --------------------------------------------------------------------

/** A search as the controls say. */
function asked() {
  return {
    ...START,
    q: box.value.trim(),
    language: $("language").value,
    find: form.elements.find.value,
    in_language: form.elements.find.value === "captions" ? $("in-language").value : "",
    source: view.search.source,
  };
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const search = asked();
  if (!search.q) {
    box.focus();
    return;
  }
  if (withPicture(view.search)) Object.assign(search, { find: "images", in_language: "" });
  if (touch.matches) box.blur(); // the keyboard of a phone covers the results
  const same = address(search) === address(view.search);
  if (same) view.pages = [];
  go(search, { replace: same });
});

form.addEventListener("change", (event) => {
  if (event.target === box || event.target === $("file")) return;
  $("in-option").hidden = form.elements.find.value !== "captions";
  const search = asked();
  const { like, like_source, upload } = view.search;
  if (search.q) go(search);
  else if (event.target !== $("language") && withPicture(view.search)) {
    go({ ...search, like, like_source, upload });
  }
});

$("source").addEventListener("click", () => {
  box.focus();
  go({ ...view.search, source: "", offset: 0 });
});

$("unask").addEventListener("click", () => leave());

/** Leave a picture's page: back to where it was opened, or to the start. */
function leave() {
  if (history.state?.depth) history.back();
  else go({ ...START, language: view.search.language });
}

document.addEventListener("click", (event) => {
  const plain = !event.button && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!(event.target instanceof Element) || event.defaultPrevented || !plain) return;
  const source = event.target.closest("button.source");
  if (source) go({ ...view.search, source: source.textContent, offset: 0 });
  const link = event.target.closest("a[href]");
  if (!link || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  if (link.id === "more") more(event.detail === 0);
  else if (link.classList.contains("copy")) copy(link);
  else go(readSearch(link.href));
  if (link.id === "home") box.focus();
});

async function copy(link) {
  if (!view.search.upload) {
    history.replaceState(history.state, "", link.href);
    mark({ quiet: true });
  }
  toast((await toClipboard(link.href)) ? "Link copied" : "The link is in the address bar");
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // only pages from https or loopback have a clipboard: the old way
  }
  const field = make("textarea", { value: text, className: "sr", readOnly: true });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

/** Mark the result that the fragment names; whether there is one. */
function mark({ quiet = false } = {}) {
  results.querySelector(".marked")?.classList.remove("marked");
  if (!location.hash.startsWith("#hit-")) return false;
  let id;
  try {
    id = decodeURIComponent(location.hash.slice(1));
  } catch {
    return false; // a fragment that is no percent-encoding
  }
  // A link of 0.1.0 has the hit's id alone.
  const item = [...results.children].find((each) => each.id === id || `hit-${each.dataset.id}` === id);
  if (!item) return false;
  item.classList.add("marked");
  if (quiet) return true;
  item.scrollIntoView({ block: "center", behavior: calm.matches ? "instant" : "smooth" });
  item.querySelector(".open").focus({ preventScroll: true });
  return true;
}

addEventListener("popstate", () => {
  const search = readSearch(location.href, history.state?.upload);
  if (history.state?.key) return show(history.state.key, search);
  // The fragment or the address was changed by hand.
  const same = address(search) === address(view.search);
  history.replaceState({ key: view.key, depth: 1, upload: null }, "", location.href);
  return same ? mark() : go(search, { replace: true });
});

addEventListener("scroll", () => { view.scroll = scrollY; }, { passive: true });
results.addEventListener("focusin", (event) => { view.focus = event.target.closest(".card")?.id ?? ""; });

// ---- pictures of the reader's own ------------------------------------------------------------

function searchWith(file) {
  const name = file.name && file.name !== "image.png" ? file.name : "Pasted picture";
  if (!IMAGE_TYPES.includes(file.type)) {
    return notice("That is no picture the server reads", `${name}: send PNG, JPEG, WebP, AVIF or GIF.`);
  }
  if (file.size > MAX_IMAGE) {
    const size = (file.size / 2 ** 20).toFixed(1);
    return notice("The picture is too large", `${name} has ${size} MB; at most 8 MB can be sent. Save it smaller and try again.`);
  }
  const key = `${Date.now()}-${uploads.size}`;
  uploads.set(key, { file, name });
  if (uploads.size > KEPT) uploads.delete(uploads.keys().next().value);
  const found = withPicture(view.search) ? view.search.find : "captions";
  return go({ ...asked(), q: "", find: found, upload: key });
}

$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // so that the same picture can be chosen again
  if (file) searchWith(file);
});

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  searchWith(file);
});

let dragged = 0; // elements of the page that the file is over
let own = false; // a picture of this page is dragged, not a file

const overlay = (shown) => $("drop").classList.toggle("shown", shown);
const holdsFile = (event) => !own && event.dataTransfer?.types.includes("Files");

document.addEventListener("dragstart", () => { own = true; });
document.addEventListener("dragend", () => { own = false; });
document.addEventListener("dragenter", (event) => {
  if (holdsFile(event)) overlay(++dragged > 0);
});
document.addEventListener("dragleave", (event) => {
  if (holdsFile(event)) overlay((dragged = Math.max(0, dragged - 1)) > 0);
});
document.addEventListener("dragover", (event) => {
  if (holdsFile(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  overlay(false);
  dragged = 0;
  if (!holdsFile(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files[0]) searchWith(event.dataTransfer.files[0]);
});

// ---- keys ------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  const typing = target.matches?.("input:not([type=radio], [type=file]), textarea, select");
  const inResults = results.contains(target) && target !== results;
  if (key === "/" && !typing) {
    event.preventDefault();
    box.focus();
    box.select();
  } else if (key === "Escape") {
    escape(event, inResults);
  } else if (key === "ArrowDown" && (target === box || target === results || target === document.body)) {
    const first = results.querySelector(".open");
    if (!first) return;
    event.preventDefault();
    first.focus();
  } else if (inResults) {
    const to = neighbour(target.closest(".card"), key);
    if (!to) return;
    event.preventDefault();
    to.focus();
    if (to === box) scrollTo({ top: 0, behavior: calm.matches ? "instant" : "smooth" });
  }
});

/** Clear the box; with nothing to clear leave a picture's page; else back to the box. */
function escape(event, inResults) {
  const { target } = event;
  if (target === $("token-value")) return;
  event.preventDefault();
  if (target === box && box.value) {
    box.value = "";
  } else if (withPicture(view.search)) {
    leave();
  } else if (inResults || target !== box) {
    box.focus();
    box.select();
  } else {
    box.blur();
  }
}

/** What an arrow key leads to from a card: the next in the row, or the nearest in the next row. */
function neighbour(from, key) {
  const cards = [...results.querySelectorAll(".card:not(.skeleton)")];
  const at = cards.indexOf(from);
  const step = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cards.length - 1 }[key];
  if (step !== undefined) return cards[step]?.querySelector(".open");
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const here = from.getBoundingClientRect();
  const sign = key === "ArrowDown" ? 1 : -1;
  const away = (item) => {
    const there = item.getBoundingClientRect();
    return { rows: sign * (there.top - here.top), columns: Math.abs(there.left - here.left) };
  };
  const beyond = cards.map((item) => ({ item, ...away(item) })).filter(({ rows }) => rows > 1);
  if (!beyond.length) return key === "ArrowUp" ? box : $("more").hidden ? null : $("more");
  beyond.sort((a, b) => a.rows - b.rows || a.columns - b.columns);
  return beyond[0].item.querySelector(".open");
}

// ---- begin -----------------------------------------------------------------------------------

history.scrollRestoration = "manual";
{
  const search = readSearch(location.href, history.state?.upload);
  const entry = history.state?.key ? history.state : { key: "first", depth: 0, upload: null };
  history.replaceState(entry, "", location.href);
  view = { ...view, key: entry.key, search };
}
start();
if (isStart(view.search) && !touch.matches) box.focus();
