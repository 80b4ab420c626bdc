// One JSON request a line on standard input, one JSON answer a line on standard output.
const readline = require("node:readline");
const wecom = require("@wecom/crypto");

const operations = {
  encrypt: ({ aeskey, message, receiver, random }) =>
    wecom.encrypt(aeskey, message, receiver, Buffer.from(random, "hex")),
  decrypt: ({ aeskey, encrypted }) => {
    const { message, id } = wecom.decrypt(aeskey, encrypted);
    return { message, receiver: id };
  },
  sign: ({ token, timestamp, nonce, encrypted }) => wecom.getSignature(token, timestamp, nonce, encrypted),
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const request = JSON.parse(line);
  process.stdout.write(JSON.stringify(operations[request.operation](request)) + "\n");
});
