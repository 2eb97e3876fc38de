// Runs code with the scripts of an exported page: node page.js PAGE CODE < input.json; prints what the code returns.
"use strict";
const { readFileSync } = require("fs");
const { runInThisContext } = require("vm");

const [, , path, code] = process.argv;
const html = readFileSync(path, "utf8");
const script = (id) => html.match(new RegExp(`<script id="${id}"[^>]*>([^]*?)</script>`))[1];
for (const id of ["model-script", "train-script"]) runInThisContext(script(id));
globalThis.data = JSON.parse(script("data"));
globalThis.input = JSON.parse(readFileSync(0, "utf8"));
runInThisContext(`(async () => { ${code} })()`).then((result) => console.log(JSON.stringify(result)));
