// A pane: its log, its box and its buttons. The server (routes.py) has the conversation, this tab only the key to it.
const log = element.querySelector(".log");
const pane = element.closest(".pane");
const box = () => pane.querySelector(".ask textarea");
const key = () => sessionStorage.getItem(pane.id) || "";
let stream = null;             // of the answers that are shown
let asking = false;
let last = Promise.resolve();  // what was done last: one request after the other, in the order of the customer's presses

// turns: the HTML of each. Only those that changed are set anew, so that what a reader has unfolded, and where the keyboard is,
// stays while an answer is written.
function show(turns) {
  const atEnd = window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 120;
  const grown = turns.length > log.children.length;
  turns.forEach((html, number) => {
    const node = log.children[number] || log.appendChild(document.createElement("div"));
    if (node.source === html) return;
    const open = [...node.querySelectorAll("details")].map((details) => details.open);
    const focused = [...node.querySelectorAll("summary, button")].indexOf(document.activeElement);
    node.className = "turn";
    node.innerHTML = node.source = html;
    node.querySelectorAll("details").forEach((details, i) => { details.open = Boolean(open[i]); });
    if (focused >= 0) node.querySelectorAll("summary, button")[focused]?.focus({ preventScroll: true });
  });
  while (log.children.length > turns.length) log.lastChild.remove();
  if (turns.length > 1 && (atEnd || grown)) window.scrollTo(0, document.documentElement.scrollHeight);
}

function tell(why) {
  pane.querySelector(".refused").textContent = why;
}

function write(text) {
  box().value = text;
  box().dispatchEvent(new Event("input", { bubbles: true }));
}

function inTurn(act) {
  last = last.then(act).catch((error) => tell(error instanceof TypeError   // what fetch throws when nobody answers
    ? "The shop cannot be reached just now. Please try again in a moment." : error.message));
}

async function post(what, fields) {
  const answer = await fetch(`${pane.id}/${what}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: key(), ...fields }) });
  if (!answer.ok) throw new Error(answer.status < 500 && answer.headers.get("Content-Type")?.startsWith("text/plain") ? await answer.text()
    : `The shop could not take that (error ${answer.status}). Please try again in a moment.`);   // guard.py refuses in words
  return answer.json();
}

// Shows the conversation of the key, to the end of the answer that is being written. A stream that is cut comes back by itself.
function follow() {
  stream?.close();
  if (!key()) return;
  const turns = [];
  stream = new EventSource(`${pane.id}/answers?key=${encodeURIComponent(key())}`);
  stream.onmessage = ({ data }) => show(Object.assign(turns, JSON.parse(data)));
  stream.addEventListener("done", ({ target }) => target.close());
  stream.onerror = ({ target }) => {
    if (target.readyState === EventSource.CLOSED && log.querySelector(".query"))
      tell("This conversation is no longer known here. The next question begins a new one.");
  };
}

// Asks what is in the box. It is taken out once the server has it.
function ask() {
  if (asking) return;  // pressed twice
  const query = box().value;
  asking = true;
  tell("");
  inTurn(async () => {
    try {
      const taken = await post("ask", { query });
      sessionStorage.setItem(pane.id, taken.key);
      if (taken.refused) return tell(taken.refused);
      if (box().value === query) write("");
      follow();
    } finally {
      asking = false;
    }
  });
}

function judge({ turn, part, liked }) {
  inTurn(async () => {
    await post("judge", { turn: Number(turn), part: Number(part), liked: liked === "true" });
    follow();
  });
}

function startOver() {
  inTurn(async () => {
    await post("forget");
    stream?.close();
    sessionStorage.removeItem(pane.id);
    tell("");
    write("");
    show([props.value]);
  });
}

pane.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.ask) {
    write(button.dataset.ask);
    box().focus();
    ask();
  } else if (button.dataset.liked) judge(button.dataset);
  else if (button.matches(".send")) ask();
  else if (button.matches(".again")) startOver();
});

pane.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target !== box()) return;
  event.preventDefault();
  ask();
});

show([props.value]);
follow();
