// The browser of samples. Texts reach the page as text only, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const PER_PAGE = 25;
let found = [], page = 0;

const wrong = answer => answer !== null && answer[2] !== null && answer[2] < 1;
const answers = sample => sample[6];
const differ = sample => new Set(answers(sample).filter(each => each && each[2] !== null).map(each => each[2])).size > 1;
const SHOWS = [
  ["all answers", () => true],
  ["wrong in any run", sample => answers(sample).some(wrong)],
  ["wrong in all runs", sample => answers(sample).some(wrong) && answers(sample).every(each => each === null || wrong(each))],
  ["runs differ in score", differ],
  ...data.runs.map((name, place) => [`wrong: ${name}`, sample => wrong(answers(sample)[place])]),
  ["nothing parsed in any run", sample => answers(sample).some(each => each && each[1] === null)],
  ["not scored", sample => answers(sample).some(each => each && each[2] === null)],
];

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function options(select, names) {
  names.forEach((name, value) => select.append(new Option(name, value)));
}

// ------------------------------------------------------------------ which samples
const texts = new Map(); // made for the first search, 10,000 in some hundredths of a second
function text(sample) {
  if (!texts.has(sample)) {
    const said = answers(sample).flatMap(each => each ? [each[0], each[1]] : []);
    texts.set(sample, [sample[2], sample[3], sample[5], ...said].join("\n").toLowerCase());
  }
  return texts.get(sample);
}

function filter() {
  const benchmark = +find("benchmark").value - 1, shows = SHOWS[+find("shows").value][1];
  const words = find("text").value.toLowerCase().trim();
  found = data.samples.filter(sample =>
    (benchmark < 0 || sample[0] === benchmark) && shows(sample) && (!words || text(sample).includes(words)));
  turn(0);
}

// ------------------------------------------------------------------ what is shown
function turn(to) {
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(Math.max(to, 0), pages - 1);
  find("cards").replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
  find("count").textContent = `${found.length.toLocaleString("en")} of ${data.samples.length.toLocaleString("en")}, ` +
    `page ${page + 1} of ${pages}`;
  find("before").disabled = page === 0;
  find("after").disabled = page === pages - 1;
}

function card(sample) {
  const [benchmark, index, id, prompt, pictures, gold] = sample;
  const card = make("article", "card"), left = make("div", "pictures"), right = make("div", "");
  for (const place of pictures) left.append(picture(place));
  if (!pictures.length) left.append(make("div", "none quiet", "no picture"));
  right.append(make("div", "quiet", `${data.benchmarks[benchmark]} · question ${index} · id ${id}`));
  right.append(make("p", "question", prompt));
  right.append(make("p", "quiet", gold === null ? "no answer is published" : `right answer: ${gold}`));
  const row = make("div", "answers");
  answers(sample).forEach((each, place) => row.append(answer(each, data.runs[place])));
  right.append(row);
  card.append(left, right);
  return card;
}

function picture(place) {
  if (place === null) return make("div", "none quiet", "the picture is not there");
  const image = make("img", "");
  Object.assign(image, {loading: "lazy", alt: "picture of the question", src: data.pictures[place]});
  return image;
}

function answer(each, run) {
  if (each === null) {
    const box = make("div", "answer");
    box.append(make("div", "who", run), make("span", "quiet", "–"));
    return box;
  }
  const [said, parsed, score] = each, state = score === null ? "" : wrong(each) ? "wrong" : "right";
  const box = make("div", `answer ${state}`), who = make("div", "who");
  const mark = score === null ? "not scored" : score === 1 ? "✓ right" : score === 0 ? "✗ wrong" : score.toFixed(2);
  who.append(make("span", "", run), make("span", "mark", mark));
  box.append(who, make("div", "", said || "(nothing)"));
  if (parsed !== said) box.append(make("div", "quiet", parsed === null ? "nothing parsed" : `parsed: ${parsed}`));
  return box;
}

// ------------------------------------------------------------------ begin
options(find("benchmark"), ["all benchmarks", ...data.benchmarks]);
options(find("shows"), SHOWS.map(([name]) => name));
for (const id of ["benchmark", "shows", "text"]) find(id).addEventListener("input", filter);
for (const [id, step] of [["before", -1], ["after", 1]]) {
  find(id).addEventListener("click", () => { turn(page + step); find("samples").scrollIntoView(); });
}
filter();
