// Code in; pieces [class or "", text] out: comments, strings, numbers and words that a language keeps for itself.

const MOST = 60_000; // characters; longer code is shown plain

const WORDS = {
  c: "auto bool break case catch char class const constexpr continue default delete do double else enum explicit export extern false float for friend goto if inline int long namespace new noexcept nullptr operator override private protected public return short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile while",
  js: "abstract any as async await boolean break case catch class const continue debugger declare default delete do else enum export extends false finally for from function get if implements import in instanceof interface let namespace never new null number of package private protected public readonly return set static string super switch this throw true try type typeof undefined unknown var void while with yield",
  py: "False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield",
  rs: "as async await bool break const continue crate dyn else enum extern f32 f64 false fn for i32 i64 if impl in let loop match mod move mut pub ref return self Self static str String struct super trait true type u32 u64 u8 unsafe use usize where while",
  go: "bool break byte case chan const continue default defer else error fallthrough false float64 for func go goto if import int int64 interface map nil package range return rune select string struct switch true type uint var",
  java: "abstract boolean break byte case catch char class const continue default do double else enum extends false final finally float for if implements import instanceof int interface internal long new null override package private protected public record return sealed short static string super switch synchronized this throw throws true try val var void volatile while fun when object",
  sh: "alias case do done echo elif else esac exit export fi for function if in local read return select set shift source then until unset while",
  sql: "add all alter and as asc between by case column constraint create cross database default delete desc distinct drop else end exists foreign from full group having in index inner insert into is join key left like limit not null offset on or order outer primary references returning right select set table then union unique update values view when where with",
  data: "true false null yes no on off",
  rb: "BEGIN END alias and begin break case class def defined do else elsif end ensure false for if in module next nil not or redo require rescue retry return self super then true undef unless until when while yield",
};
const SAME = {
  "c++": "c",
  cpp: "c",
  cc: "c",
  h: "c",
  hpp: "c",
  cuda: "c",
  cs: "java",
  csharp: "java",
  kotlin: "java",
  kt: "java",
  swift: "rs",
  javascript: "js",
  jsx: "js",
  mjs: "js",
  ts: "js",
  tsx: "js",
  typescript: "js",
  python: "py",
  python3: "py",
  rust: "rs",
  golang: "go",
  bash: "sh",
  shell: "sh",
  zsh: "sh",
  console: "sh",
  make: "sh",
  makefile: "sh",
  dockerfile: "sh",
  json: "data",
  yaml: "data",
  yml: "data",
  toml: "data",
  ini: "data",
  ruby: "rb",
  php: "js",
  css: "css",
  html: "xml",
  xml: "xml",
  svg: "xml",
};
const HASH = new Set(["py", "sh", "rb", "data"]);

const STRING = `"(?:[^"\\\\\\n]|\\\\.)*"?|'(?:[^'\\\\\\n]|\\\\.)*'?`;
const NUMBER = "\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b";

/** The pieces, joined, are `text`. A language that is not known has strings, numbers and nothing else. */
export function highlight(text, language) {
  const name = language.toLowerCase();
  const family = SAME[name] ?? name;
  const known = Object.hasOwn(WORDS, family);
  if (text.length > MOST || (!known && family !== "css" && family !== "xml")) return [["", text]];
  const words = new Set((WORDS[family] ?? "").split(" "));
  const folded = family === "sql";
  const pieces = [];
  let last = 0;
  for (const found of text.matchAll(grammar(family))) {
    const kind = Object.keys(found.groups).find((group) => found.groups[group] !== undefined);
    if (!kind) continue;
    const piece = found.groups[kind];
    const isWord = kind === "word";
    if (isWord && !words.has(folded ? piece.toLowerCase() : piece)) continue;
    if (found.index > last) pieces.push(["", text.slice(last, found.index)]);
    pieces.push([isWord ? "word" : kind, piece]);
    last = found.index + piece.length;
  }
  if (last < text.length) pieces.push(["", text.slice(last)]);
  return pieces;
}

const grammars = new Map();

function grammar(family) {
  if (!grammars.has(family)) grammars.set(family, new RegExp(rules(family), "gu"));
  return grammars.get(family);
}

function rules(family) {
  if (family === "xml")
    return `(?<comment><!--[^]*?(?:-->|$))|(?<word></?[A-Za-z][\\w:-]*)|(?<string>${STRING})`.replace(
      "<word>",
      "<tag>",
    );
  let comment = "//[^\\n]*|/\\*[^]*?(?:\\*/|$)";
  if (HASH.has(family)) comment = "#[^\\n]*";
  if (family === "sql") comment = "--[^\\n]*|/\\*[^]*?(?:\\*/|$)";
  if (family === "css") comment = "/\\*[^]*?(?:\\*/|$)";
  let string = STRING;
  if (family === "py") string = `[rbfuRBFU]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$))|${STRING}`;
  if (family === "js" || family === "go") string = `\`(?:[^\`\\\\]|\\\\.)*\`?|${STRING}`;
  if (family === "rs") string = `"(?:[^"\\\\]|\\\\.)*"?`;
  // a # behind a word, $ or & begins no comment: taken with it, as Safari before 16.4 knows no lookbehind
  const taken = HASH.has(family) ? "#*|[$&]#+" : "";
  return `(?<comment>${comment})|(?<string>${string})|(?<number>${NUMBER})|(?<word>[A-Za-z_]\\w*)${taken}`;
}
