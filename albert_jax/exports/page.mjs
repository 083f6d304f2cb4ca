// The page without a server: answers of the model beside this file, computed by ONNX Runtime Web, in the server's form.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./tokenizers.min.mjs";

const ROWS = 8;  // run together; between two batches the page can react
const NEVER = -1e30;

const at = name => new URL(name, import.meta.url).href;
async function read(name) {
  const answer = await fetch(at(name));
  if (!answer.ok) throw new Error(`${name} could not be read (status ${answer.status})`);
  return answer.json();
}

ort.env.wasm.numThreads = 1;  // More threads need headers that static file servers do not send.
ort.env.wasm.wasmPaths = { wasm: at("ort-wasm-simd-threaded.wasm") };
const [about, rules, settings] = await Promise.all(["model.json", "tokenizer.json", "tokenizer_config.json"].map(read));
const tokenizer = new Tokenizer(rules, settings);
const session = await ort.InferenceSession.create(at("model.onnx"));
const special = new Set(about.special);

export const models = [about];

// Texts to rows.

const encode = text => (text.trim() ? tokenizer.encode(text, { add_special_tokens: false }).ids : []);

function rowOf(first, second = null) {
  const ids = [about.cls, ...first, about.sep];
  const types = ids.map(() => 0);
  if (second) { ids.push(...second, about.sep); types.push(...second.map(() => 1), 1); }
  return { ids, types };
}

// One text or a pair as a row that fits the model; the longer of a pair is cut first, as in training.
function fitted(texts, truncate) {
  const parts = texts.map(encode), specials = parts.length + 1;
  const size = () => parts.reduce((sum, ids) => sum + ids.length, specials);
  if (size() > about.max_tokens && !truncate) {
    throw new Error(`an input has ${size()} tokens; the model takes ${about.max_tokens}; shorten it`);
  }
  while (size() > about.max_tokens) (parts.length === 2 && parts[1].length > parts[0].length ? parts[1] : parts[0]).pop();
  return rowOf(...parts);
}

// Each token's characters, as UTF-16 units. Where a word's pieces are not its characters, each stands for the word.
function tokensOf(text) {
  const ids = [], spans = [];
  for (const match of text.matchAll(/\S+/g)) {
    const { ids: own, tokens } = tokenizer.encode(match[0], { add_special_tokens: false });
    const pieces = tokens.map(token => token.replace(/^▁|^##/, ""));
    const exact = pieces.join("").length === match[0].length;
    let start = match.index;
    own.forEach((id, i) => {
      ids.push(id);
      spans.push(exact ? [start, start + pieces[i].length] : [match.index, match.index + match[0].length]);
      start += pieces[i].length;
    });
  }
  return { ids, spans };
}

// The number of characters (code points) before each UTF-16 unit; answers count as the server does.
function codePoints(text) {
  const before = [0];
  let count = 0;
  for (const character of text) {
    count += 1;
    for (let i = 0; i < character.length; i++) before.push(count);
  }
  return before;
}

// Rows to outputs.

let last = Promise.resolve();  // A session runs one batch at a time.
function alone(work) {
  const result = last.then(work);
  last = result.catch(() => {});
  return result;
}

function tensor(rows, width, value) {
  const data = new BigInt64Array(rows.length * width);
  rows.forEach((row, k) => row.ids.forEach((_, j) => { data[k * width + j] = BigInt(value(row, j)); }));
  return new ort.Tensor("int64", data, [rows.length, width]);
}

// For each row the outputs `names`, {name: flat array}; of outputs by token with padding at the end.
async function run(rows, names, signal) {
  const results = [];
  for (let first = 0; first < rows.length; first += ROWS) {
    const part = rows.slice(first, first + ROWS), width = Math.max(...part.map(row => row.ids.length));
    const feeds = {
      input_ids: tensor(part, width, (row, j) => row.ids[j]),
      attention_mask: tensor(part, width, () => 1),
      token_type_ids: tensor(part, width, (row, j) => row.types[j]),
    };
    if (session.inputNames.includes("allowed")) {
      feeds.allowed = tensor(part, width, (row, j) => Number(j === 0 || (j >= row.start && j < row.start + row.size)));
    }
    const out = await alone(() => { signal?.throwIfAborted(); return session.run(feeds, names); });
    part.forEach((_, k) => results.push(Object.fromEntries(names.map(name => {
      const { data } = out[name], size = data.length / part.length;
      return [name, Array.from(data.subarray(k * size, (k + 1) * size), Number)];
    }))));
  }
  return results;
}

function softmax(values) {
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity), weights = values.map(x => Math.exp(x - most));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map(x => x / sum);
}
const sigmoid = x => 1 / (1 + Math.exp(-x));
const best = (values, count) => values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b).slice(0, count);

// Tasks.

async function fillMask(texts, { top_k = 5 }, signal) {
  const rows = texts.map(text => fitted([text], false));
  const name = session.outputNames.includes("prediction_logits") ? "prediction_logits" : "logits";
  const outputs = await run(rows, [name], signal);
  return rows.map((row, n) => {
    const V = about.vocabulary;
    const masks = row.ids.flatMap((id, j) => (id === about.mask ? [j] : [])).map(j => {
      const logits = outputs[n][name].slice(j * V, (j + 1) * V).map((x, id) => (special.has(id) ? -Infinity : x));
      const scores = softmax(logits);
      return best(scores, top_k).map(id => ({ token: tokenizer.decode([id]).trim(), score: scores[id] }));
    });
    return { text: texts[n], masks };
  });
}

async function classify(items, { truncate }, signal) {
  const rows = items.map(item => fitted(typeof item === "string" ? [item] : [item.text, item.pair], truncate));
  return (await run(rows, ["logits"], signal)).map(({ logits }) => {
    if (about.kind === "regression") return { score: logits[0] };
    const scores = about.kind === "multilabel" ? logits.map(sigmoid) : softmax(logits);
    const order = best(scores, scores.length), named = Object.fromEntries(order.map(k => [about.labels[k], scores[k]]));
    if (about.kind === "multilabel") return { labels: order.filter(k => scores[k] > 0.5).map(k => about.labels[k]), scores: named };
    return { label: about.labels[order[0]], score: scores[order[0]], scores: named };
  });
}

function windowsOf(length, room, stride) {
  const windows = [];
  for (let first = 0; ; first += stride) {
    windows.push({ first, size: Math.min(room, length - first) });
    if (first + room >= length) return windows;
  }
}

async function answer(items, { top_k = 5 }, signal) {
  const results = [];
  for (const { question, context } of items) {
    const search = about.answer, query = encode(question).slice(0, search.max_query_length);
    const { ids, spans } = tokensOf(context), room = about.max_tokens - query.length - 3;
    const windows = windowsOf(ids.length, room, Math.min(search.doc_stride, room));
    const rows = windows.map(({ first, size }) =>
      ({ ...rowOf(query, ids.slice(first, first + size)), start: query.length + 2, size }));
    const names = search.beam ? ["start_index", "start_score", "end_index", "end_score", "null"] : ["start_logits", "end_logits"];
    const outputs = await run(rows, names, signal);
    // A token counts in the window that shows more of what is around it than the others do.
    const context_of = ({ first, size }, j) => (j < first || j >= first + size ? -1 : Math.min(j - first, first + size - 1 - j) + 0.01 * size);
    const owner = ids.map((_, j) => best(windows.map(window => context_of(window, j)), 1)[0]);
    const candidates = [];
    let none = Infinity;
    rows.forEach((row, w) => {
      for (const [start, end, score] of pairs(outputs[w], row, search)) {
        const from = start - row.start, to = end - row.start;
        if (from < 0 || to < from || to >= row.size || to - from >= search.max_answer_length) continue;
        if (owner[from + windows[w].first] === w) candidates.push({ score, from: from + windows[w].first, to: to + windows[w].first });
      }
      none = Math.min(none, search.beam ? outputs[w].null[0] : outputs[w].start_logits[0] + outputs[w].end_logits[0]);
    });
    const answers = new Map(), before = codePoints(context);
    for (const one of candidates.sort((a, b) => b.score - a.score)) {
      const start = spans[one.from][0], text = context.slice(start, spans[one.to][1]).trimEnd();
      if (answers.size < search.n_best && text && !answers.has(text)) {
        answers.set(text, { text, start: before[start], end: before[start + text.length], score: one.score });
      }
    }
    const list = [...answers.values()], odds = search.beam ? none : none - (list[0]?.score ?? NEVER);
    const compared = list.map(one => one.score).concat(search.no_answer && !search.beam ? [none] : []);
    const shares = softmax(compared);
    results.push({
      answer: search.no_answer && odds > search.null_threshold ? "" : (list[0]?.text ?? ""),
      answers: list.map((one, i) => ({ ...one, score: shares[i] })).slice(0, top_k),
      no_answer: search.no_answer ? sigmoid(odds) : null,
    });
  }
  return results;
}

// The [start, end, score] of a row's candidates.
function pairs(output, row, search) {
  if (search.beam) {
    const { start_index, start_score, end_index, end_score } = output, ends = end_index.length / start_index.length;
    return end_index.map((end, i) => [start_index[Math.floor(i / ends)], end, start_score[Math.floor(i / ends)] + end_score[i]]);
  }
  const [starts, ends] = ["start_logits", "end_logits"].map(name => {
    const scores = output[name].map((x, j) => (j >= row.start && j < row.start + row.size ? x : NEVER));
    return best(scores, search.n_best).map(j => [j, scores[j]]);
  });
  return starts.flatMap(([start, a]) => ends.map(([end, b]) => [start, end, a + b]));
}

// Words as data/words.py cuts them, in scripts with spaces between words.
const WORDS = /[#@]?[\p{L}\p{N}\p{M}_]+(?:(?:[-‐‑.&/'’]|(?<=\p{N})[,.](?=\p{N}))[\p{L}\p{N}\p{M}_]+)*|\S/gu;
function wordsOf(text) {
  return [...text.matchAll(WORDS)].flatMap(({ 0: word, index }) => {
    const cut = word.match(/^(.+)(['’]s)$/i);
    return cut ? [[cut[1], index], [cut[2], index + cut[1].length]] : [[word, index]];
  });
}

async function tag(texts, _, signal) {
  const results = [];
  for (const text of texts) {
    const words = wordsOf(text), rows = [], places = [];
    for (const [word] of words) {
      const ids = encode(word).slice(0, about.max_tokens - 2);
      if (!rows.length || rows.at(-1).length + ids.length > about.max_tokens - 2) rows.push([]);
      places.push(ids.length ? [rows.length - 1, rows.at(-1).length + 1] : null);
      rows.at(-1).push(...ids);
    }
    const outputs = await run(rows.map(ids => rowOf(ids)), ["logits"], signal), before = codePoints(text);
    const guesses = places.map(place => {
      if (!place) return { label: "O", score: 1 };
      const C = about.labels.length, scores = softmax(outputs[place[0]].logits.slice(place[1] * C, (place[1] + 1) * C));
      const [k] = best(scores, 1);
      return { label: about.labels[k], score: scores[k] };
    });
    const entities = [];
    let open = null, previous = ["O", ""];
    guesses.forEach(({ label, score }, i) => {
      const parts = label === "O" ? ["O", ""] : /^[BIES]-/.test(label) ? [label[0], label.slice(2)] : ["I", label];
      const begins = parts[0] !== "O" && ("BS".includes(parts[0]) || "OES".includes(previous[0]) || parts[1] !== previous[1]);
      if (parts[0] === "O") open = null;
      else if (begins) entities.push(open = { type: parts[1], from: words[i][1], scores: [] });
      if (open) { open.to = words[i][1] + words[i][0].length; open.scores.push(score); }
      previous = parts;
    });
    results.push({ text, entities: entities.map(({ type, from, to, scores }) => ({
      type, text: text.slice(from, to), start: before[from], end: before[to],
      score: scores.reduce((a, b) => a + b, 0) / scores.length,
    })) });
  }
  return results;
}

async function embed(texts, { truncate }, signal) {
  const rows = texts.map(text => fitted([text], truncate));
  const name = session.outputNames.includes("sentence_embedding") ? "sentence_embedding" : "last_hidden_state";
  const outputs = await run(rows, [name], signal);
  return rows.map((row, n) => {
    let vector = outputs[n][name];
    if (name === "last_hidden_state") {
      const D = about.hidden_size;
      vector = Array.from({ length: D }, (_, d) => row.ids.reduce((sum, _, j) => sum + outputs[n][name][j * D + d], 0));
      const norm = Math.hypot(...vector) || 1;
      vector = vector.map(x => x / norm);
    }
    return { embedding: vector };
  });
}

const TASKS = { "fill-mask": fillMask, classify, answer, tag, embed };

// As the server answers POST v1/TASK.
export function post(task, { inputs, ...options }, signal) {
  return TASKS[task](Array.isArray(inputs) ? inputs : [inputs], options, signal);
}
