// Plays the sound of a word that is clicked. Gradio runs this with the component as `element`.
const MARGIN = 0.05; // seconds on both sides: a CTC network states a word's times to about that
let timer;
element.addEventListener("click", (event) => {
  const word = event.target.closest(".word");
  if (!word) return;
  const audio = element.querySelector("audio");
  const start = Math.max(0, word.dataset.start - MARGIN);
  audio.currentTime = start;
  audio.play();
  clearTimeout(timer);
  timer = setTimeout(() => audio.pause(), 1000 * (word.dataset.end - start + MARGIN));
});
