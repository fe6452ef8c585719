// What happens when something is touched.
let waiting = false;

// Everything that follows the slider. Plots are drawn at most once per frame.
function show() {
  settle();
  const path = state.path;
  const kept = (name) => `${number(path.cost[name][state.k])} (${percent(path.cost[name][state.k] / D.dense[name])})`;
  $("n-players").textContent = `${number(path.cost.players[state.k])} of ${number(N)}`;
  $("n-macs").textContent = D.dense.macs ? kept("macs") : "0";
  $("n-params").textContent = kept("params");
  $("n-value").textContent = positive > 0 ? percent(state.value / positive) : "-";
  if ($("quality")) $("quality").textContent = number(here().y[0] ?? null);
  const asked = `${percent(state.share / 1000)} of the ${RESOURCES[state.resource]}`;
  $("asked").textContent = asked;
  $("budget").setAttribute("aria-valuetext", `${asked}: ${$("n-players").textContent} players stay`);
  const none = state.k === 0;
  $("export").disabled = none;
  $("export-note").textContent = none ? "Nobody leaves: the network already meets this budget." : "for shaprune prune --plan plan.json";
  fillBars();
  for (let i = 0; i < groupRows.length; i++) {
    const told = number(state.stay[i]);
    if (groupRows[i].textContent !== told) groupRows[i].textContent = told;
  }
  for (const [i, row] of rowOf) markPlayer(i, row);
  if (!waiting) {
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follows("plot-values"); follows("plot-frontier"); });
  }
}

function choose(group, move) {
  state.group = group;
  everyRow = false;
  $("group").value = String(group);
  pressBars();
  drawPlayers();
  draw("plot-values");
  if (move) $("values").focus();
}

// Another way down, or another limit; the slider stays where it is, as far as that way reaches.
function turn() {
  state.resource = $("resource").value;
  follow($("allocation").value);
  const slider = $("budget");
  slider.min = String(least(ahead()));
  state.share = Math.max(Number(slider.value), least(state.path));
  slider.value = String(state.share);
  show();
  draw("plot-frontier");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(plan())], { type: "application/json" }));
  link.download = "plan.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

state.path = Object.values(D.paths)[0];
if ($("quality")) $("quality-name").textContent = D.quality === null ? "between measured qualities" : `predicted ${D.quality}`;
sortable("players", drawPlayers);
sortable("groups", drawGroups);
drawGroups();
choose(0, false);
if (D.paths.plan) {
  const limited = Object.keys(D.paths.plan.budget).find((name) => RESOURCES[name]);
  if (limited) $("resource").value = limited;
  $("budget").value = "0"; // its own size
}
turn();
$("budget").addEventListener("input", (event) => {
  if (state.path === D.paths.plan) {
    $("allocation").value = ahead().allocation;
    turn();
  }
  state.share = Number(event.target.value);
  show();
});
$("resource").addEventListener("change", turn);
$("allocation").addEventListener("change", turn);
$("group").addEventListener("change", (event) => choose(Number(event.target.value), false));
$("more").addEventListener("click", () => { everyRow = true; drawPlayers(); });
$("export").addEventListener("click", save);
$("diagram").addEventListener("keydown", walkBars);
for (const bar of bars) bar.node.addEventListener("click", () => choose(bar.groups[0], false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", every);
requestAnimationFrame(() => setTimeout(() => load().catch((error) => {
  for (const plot of document.querySelectorAll(".plot")) plot.textContent = `No plot: this browser is too old (${error.message}).`;
})));
