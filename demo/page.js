// The log: `props.value` is the HTML of each turn. Only turns that changed are set anew, so that what a reader has unfolded,
// and where the keyboard is, stays while an answer is written.
const log = element.querySelector(".log");
const pane = () => element.closest(".pane");

function show() {
  const turns = Array.isArray(props.value) ? props.value : [];
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

log.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.ask) {
    const box = pane().querySelector(".ask textarea");
    box.value = button.dataset.ask;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.focus();
    setTimeout(() => pane().querySelector("button.send").click(), 50);
  } else if (button.dataset.liked) {
    const { turn, part, liked } = button.dataset;
    trigger("like", { turn: Number(turn), part: Number(part), liked: liked === "true" });
  }
});

watch("value", show);
show();
