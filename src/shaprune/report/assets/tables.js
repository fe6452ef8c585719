// The two tables, sorted by whichever heading is pressed, and the diagram.
const FEW = 200; // rows before one asks for more
const sorted = { players: ["value", false], groups: ["place", true] }; // by what, and whether the smallest is first
let everyRow = false;
let rowOf = new Map(); // player -> its row

function element(tag, text, scope) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (scope) made.scope = scope;
  return made;
}

function wide(i) {
  return D.low[i] === null || D.high[i] === null ? null : (D.high[i] - D.low[i]) / 2;
}

const PLAYER = {
  name: (i) => i,
  value: (i) => D.value[i],
  wide: (i) => (wide(i) === null ? Infinity : wide(i)),
  macs: (i) => D.macs[i],
  params: (i) => D.params[i],
  stays: (i) => 1 - state.gone[i],
};

function chosen() {
  if (state.group < 0) return Array.from({ length: N }, (_, i) => i);
  const { first, size } = D.groups[state.group];
  return Array.from({ length: size }, (_, i) => first + i);
}

function order(items, key, rising) {
  return items.sort((a, b) => (rising ? 1 : -1) * (key(a) - key(b)) || a - b);
}

function drawPlayers() {
  const [key, rising] = sorted.players;
  const all = order(chosen(), PLAYER[key], rising);
  const shown = everyRow ? all : all.slice(0, FEW);
  rowOf = new Map();
  const rows = shown.map((i) => {
    const row = document.createElement("tr");
    const error = wide(i);
    row.append(element("th", D.names[i], "row"), element("td", number(D.value[i])));
    row.append(element("td", error === null ? "unknown" : number(error)));
    row.append(element("td", number(D.macs[i])), element("td", number(D.params[i])), element("td", ""));
    rowOf.set(i, row);
    markPlayer(i, row);
    return row;
  });
  $("players").tBodies[0].replaceChildren(...rows);
  $("more").hidden = shown.length === all.length;
  $("more").textContent = `Show all ${number(all.length)} players`;
  arrows("players");
}

function markPlayer(i, row) {
  const told = state.gone[i] ? "leaves" : "stays";
  if (row.className === told) return;
  row.className = told;
  row.lastChild.textContent = told;
}

const groupMean = D.groups.map((g) => D.value.slice(g.first, g.first + g.size).reduce((a, b) => a + b, 0) / g.size);
const GROUP = {
  place: (i) => i,
  name: (i) => i,
  size: (i) => D.groups[i].size,
  stay: (i) => state.stay[i],
  mean: (i) => groupMean[i],
  macs: (i) => D.macs[D.groups[i].first],
  params: (i) => D.params[D.groups[i].first],
};
let groupRows = [];

function drawGroups() {
  const [key, rising] = sorted.groups;
  groupRows = [];
  const rows = order(D.groups.map((_, i) => i), GROUP[key], rising).map((i) => {
    const row = document.createElement("tr");
    const head = element("th", "", "row");
    const button = element("button", D.groups[i].name);
    button.type = "button";
    button.addEventListener("click", () => choose(i, true));
    head.append(button);
    row.append(head, element("td", number(D.groups[i].size)), element("td", number(state.stay[i])));
    row.append(element("td", number(groupMean[i])), element("td", number(GROUP.macs(i))), element("td", number(GROUP.params(i))));
    groupRows[i] = row.children[2];
    return row;
  });
  $("groups").tBodies[0].replaceChildren(...rows);
  arrows("groups");
}

function arrows(table) {
  const [key, rising] = sorted[table];
  for (const head of $(table).tHead.rows[0].cells) {
    const its = head.firstChild.dataset.key === key;
    head.setAttribute("aria-sort", its ? (rising ? "ascending" : "descending") : "none");
  }
}

function sortable(table, draw) {
  for (const head of $(table).tHead.rows[0].cells) {
    head.firstChild.addEventListener("click", () => {
      const key = head.firstChild.dataset.key;
      sorted[table] = [key, sorted[table][0] === key ? !sorted[table][1] : key === "name"];
      draw();
    });
  }
}

const bars = Array.from(document.querySelectorAll("#diagram .bar"), (node) => {
  const groups = node.dataset.groups.split(",").map(Number);
  const fill = node.querySelector(".fill");
  return { node, groups, fill, count: node.querySelector(".count"), width: Number(fill.dataset.width),
    size: groups.reduce((sum, g) => sum + D.groups[g].size, 0), shown: -1 };
});

function fillBars() {
  for (const bar of bars) {
    const stay = bar.groups.reduce((sum, g) => sum + state.stay[g], 0);
    if (stay === bar.shown) continue;
    bar.shown = stay;
    bar.fill.setAttribute("width", ((bar.width * stay) / bar.size).toFixed(1));
    bar.count.textContent = `${number(stay)} / ${number(bar.size)}`;
  }
}

function pressBars() {
  for (const bar of bars) bar.node.setAttribute("aria-pressed", String(bar.groups.includes(state.group)));
}

function walkBars(event) {
  const at = bars.findIndex((bar) => bar.node === document.activeElement);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: bars.length - 1 }[event.key];
  if (at >= 0 && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(bars[at].groups[0], false);
  } else if (at >= 0 && to !== undefined && bars[to]) {
    event.preventDefault();
    bars[at].node.setAttribute("tabindex", "-1");
    bars[to].node.setAttribute("tabindex", "0");
    bars[to].node.focus();
  }
}
