// Generates tokens through node-llama-cpp: `READY`, then `OUT [token ids]` for each line of standard input.
// node drive_node.mjs DIRECTORY_WITH_NODE_MODULES MODEL
import {createRequire} from "node:module";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [directory, modelPath] = process.argv.slice(2);
const entry = createRequire(directory + "/").resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(entry));

const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 1024, threads: 1});
const sequence = context.getSequence();
console.log("READY");
for await (const line of readline.createInterface({input: process.stdin})) {
    const generated = [];
    for await (const token of sequence.evaluate([1, 400, 401, 402, 403, 404], {temperature: 0})) {
        generated.push(token);
        if (generated.length === 24) break;
    }
    console.log(`OUT [${generated.join(", ")}]`);
}
process.exit(0);
