// One pane: its log, its box and its buttons. The conversation itself is on the server (routes.py);
// this tab only has the key to it.
const log = element.querySelector(".log");
const pane = element.closest(".pane");
const box = () => pane.querySelector(".ask textarea");
const key = () => sessionStorage.getItem(pane.id) || "";
const UNREACHABLE = "The shop cannot be reached just now. Please try again in a moment.";
const FORGOTTEN =
  "This conversation is no longer known here. The next question begins a new one.";
let stream = null;                // of the answers on display
let asking = false;
let queue = Promise.resolve();    // requests go out one after the other, in the order of presses

// turns: the HTML of each. Only turns that changed are replaced, so that unfolded details and the
// keyboard focus survive while an answer is written.
function show(turns) {
  const page = document.documentElement;
  const atEnd = window.innerHeight + window.scrollY > page.scrollHeight - 120;
  const grown = turns.length > log.children.length;
  turns.forEach((html, number) => {
    const node = log.children[number] || log.appendChild(document.createElement("div"));
    if (node.source === html) return;
    const open = [...node.querySelectorAll("details")].map((details) => details.open);
    const focused = [...node.querySelectorAll("summary, button")].indexOf(document.activeElement);
    node.className = "turn";
    node.innerHTML = node.source = html;
    node.querySelectorAll("details").forEach((details, i) => { details.open = Boolean(open[i]); });
    const controls = node.querySelectorAll("summary, button");
    if (focused >= 0) controls[focused]?.focus({ preventScroll: true });
  });
  while (log.children.length > turns.length) log.lastChild.remove();
  if (turns.length > 1 && (atEnd || grown)) window.scrollTo(0, page.scrollHeight);
}

function showError(text) {
  pane.querySelector(".refused").textContent = text;
}

function setBox(text) {
  box().value = text;
  box().dispatchEvent(new Event("input", { bubbles: true }));
}

function enqueue(action) {
  queue = queue.then(action).catch((error) =>
    showError(error instanceof TypeError ? UNREACHABLE : error.message));  // fetch throws TypeError
}

async function post(path, fields) {
  const response = await fetch(`${pane.id}/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ key: key(), ...fields }),
  });
  if (response.ok) return response.json();
  const isRefusal = response.status < 500  // auth.py gives its reason as plain text
    && response.headers.get("Content-Type")?.startsWith("text/plain");
  throw new Error(isRefusal ? await response.text()
    : `The shop could not take that (error ${response.status}). Please try again in a moment.`);
}

// Shows the conversation of the key until the answer is complete. A stream that is cut reconnects
// by itself.
function follow() {
  stream?.close();
  if (!key()) return;
  const turns = [];
  stream = new EventSource(`${pane.id}/answers?key=${encodeURIComponent(key())}`);
  stream.onmessage = ({ data }) => show(Object.assign(turns, JSON.parse(data)));
  stream.addEventListener("done", ({ target }) => target.close());
  stream.onerror = ({ target }) => {
    const refused = target.readyState === EventSource.CLOSED;
    if (refused && log.querySelector(".query")) showError(FORGOTTEN);
  };
}

// Sends the question in the box. The box is emptied once the server has accepted it.
function ask() {
  if (asking) return;  // pressed twice
  const query = box().value;
  asking = true;
  showError("");
  enqueue(async () => {
    try {
      const reply = await post("ask", { query });
      sessionStorage.setItem(pane.id, reply.key);
      if (reply.refused) return showError(reply.refused);
      if (box().value === query) setBox("");
      follow();
    } finally {
      asking = false;
    }
  });
}

function rate({ turn, response, liked }) {
  enqueue(async () => {
    const rating = { turn: Number(turn), response: Number(response), liked: liked === "true" };
    await post("feedback", rating);
    follow();
  });
}

function startOver() {
  enqueue(async () => {
    await post("forget");
    stream?.close();
    sessionStorage.removeItem(pane.id);
    showError("");
    setBox("");
    show([props.value]);
  });
}

pane.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.ask) {
    setBox(button.dataset.ask);
    box().focus();
    ask();
  } else if (button.dataset.liked) rate(button.dataset);
  else if (button.matches(".send")) ask();
  else if (button.matches(".again")) startOver();
});

pane.addEventListener("keydown", (event) => {
  const typed = event.shiftKey || event.isComposing || event.target !== box();
  if (event.key !== "Enter" || typed) return;
  event.preventDefault();
  ask();
});

show([props.value]);
follow();
