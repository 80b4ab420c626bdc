// An NLP service in another language: it owes nothing to ai-assistant but protos/, which it reads at its start.
//
//     PROTOS=../../../protos LISTEN=0.0.0.0:50051 node server.js
//
// It repeats what it is told, and lets the skill `clock` tell the time. Put your own model into `answer`.

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { HealthImplementation } from "grpc-health-check";

const SERVICE = "assistant.api.nlp.v1.NlpService";
const MODEL = "example-node/1";
const LONGEST_ECHO = 1000; // characters

const definition = protoLoader.loadSync("assistant/api/nlp/v1/nlp.proto", {
  includeDirs: [process.env.PROTOS ?? "../../../protos"],
  keepCase: true,
  enums: String,
  oneofs: true,
  defaults: true,
});
const { NlpService } = grpc.loadPackageDefinition(definition).assistant.api.nlp.v1;

const words = (message) => message.content.map((content) => content.text?.text ?? "").join("");
const listed = (struct) =>
  Object.entries(struct?.fields ?? {}).map(([name, value]) => `${name}: ${JSON.stringify(value[value.kind])}`).join(", ");
const say = (text) => ({ content: [{ text: { text } }], model: MODEL, confidence: 0.5 });

// One turn: what a member said in, an answer or the use of a skill out.
function answer(request) {
  const said = words(request.message);
  const clock = request.skills.some((skill) => skill.name === "clock");
  if (request.skill_results.length) {
    const { succeeded, content, result } = request.skill_results.at(-1);
    if (succeeded && content.length) return { ...say(""), content };
    return say(succeeded ? listed(result) || "Done." : "That did not work.");
  }
  if (clock && /几点|time/.test(said)) {
    return { actions: [{ skill: "clock", arguments: { fields: { what: { stringValue: "time" } } } }], model: MODEL };
  }
  return say(`Node.js heard: ${[...said].slice(0, LONGEST_ECHO).join("")}`);
}

function checked(request) {
  if (request?.turn_id && request.message?.content.length) return request;
  const details = "turn_id and message.content are needed";
  throw Object.assign(new Error(details), { code: grpc.status.INVALID_ARGUMENT, details });
}

const implementation = {
  GenerateReply(call, respond) {
    try {
      respond(null, answer(checked(call.request)));
    } catch (error) {
      respond(error);
    }
  },
  StreamReply(call) {
    try {
      const summary = answer(checked(call.request.request));
      for (const { text } of summary.content ?? []) call.write({ text_delta: text?.text ?? "" });
      call.write({ summary });
      call.end();
    } catch (error) {
      call.emit("error", error);
    }
  },
  DescribeModel(_, respond) {
    respond(null, {
      provider: "example-node", model: "echo", version: "1", capabilities: ["CAPABILITY_SKILLS"], ready: true,
    });
  },
};

const server = new grpc.Server();
server.addService(NlpService.service, implementation);
new HealthImplementation({ "": "SERVING", [SERVICE]: "SERVING" }).addToServer(server);
const listen = process.env.LISTEN ?? "0.0.0.0:50051";
server.bindAsync(listen, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  console.log(JSON.stringify({ event: "serving", listen }));
});
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => server.tryShutdown(() => process.exit(0)));
