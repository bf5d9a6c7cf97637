// Sends the microphone to the server, each chunk once the one before is answered, and shows the text.
// Gradio runs this with the component as `element` and its Python functions in `server`.
const CHUNK_MS = 250;
const RECORDER = `registerProcessor("recorder", class extends AudioWorkletProcessor {
  process([[channel]]) { if (channel) this.port.postMessage(channel.slice()); return true; }
});`;
const button = element.querySelector("button");
const output = element.querySelector("output");
let speaking = false;

function encode(blocks) { // Float32Arrays to 16-bit samples in base64
  const text = (block) => {
    const samples = Int16Array.from(block, (value) => 32767 * Math.max(-1, Math.min(1, value)));
    return String.fromCharCode(...new Uint8Array(samples.buffer));
  };
  return btoa(blocks.map(text).join(""));
}

async function record(context, microphone) { // returns a function that takes what was recorded since the last call
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([RECORDER], { type: "text/javascript" })));
  const recorder = new AudioWorkletNode(context, "recorder");
  let waiting = [];
  recorder.port.onmessage = ({ data }) => waiting.push(data);
  context.createMediaStreamSource(microphone).connect(recorder);
  return () => waiting.splice(0);
}

async function stream(context, microphone) {
  const take = await record(context, microphone);
  const name = Math.random().toString(36).slice(2);
  for (let open = true; open; ) {
    await new Promise((resolve) => setTimeout(resolve, CHUNK_MS));
    const last = !speaking;
    const answer = await server.feed({ name, rate: context.sampleRate, samples: encode(take()), last });
    output.innerHTML = answer.html;
    open = answer.open;
  }
}

button.addEventListener("click", async () => {
  speaking = !speaking;
  button.disabled = !speaking; // until the stream under way has sent its last chunk
  if (!speaking) return;
  button.textContent = "Stop";
  let context, microphone;
  try {
    microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    context = new AudioContext();
    await stream(context, microphone);
  } catch (error) {
    output.textContent = `Stopped: ${error.message ?? error}`; // no microphone, or no answer of the server
  } finally {
    microphone?.getTracks().forEach((track) => track.stop());
    context?.close();
    speaking = button.disabled = false;
    button.textContent = "Speak";
  }
});
