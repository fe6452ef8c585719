// The data, and where the slider stands. Who leaves was decided when the report was written; here it is looked up.
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const N = D.names.length;
const RESOURCES = { macs: "multiply-adds", params: "parameters", players: "players" };
const owner = new Int32Array(N);
D.groups.forEach((g, i) => owner.fill(i, g.first, g.first + g.size));
const positive = D.value.reduce((sum, v) => sum + Math.max(v, 0), 0);

const state = {
  path: null, // one of D.paths
  resource: "macs", // what the slider limits
  share: 1000, // thousandths that may stay
  k: 0, // steps that have been taken
  gone: new Uint8Array(N),
  stay: D.groups.map((g) => g.size), // players left, by group
  value: positive, // positive value that stays
  group: 0, // the one whose values are shown; -1 = all
};

const limit = () => (state.share / 1000) * D.dense[state.resource];
const least = (path) => {
  const cost = path.cost[state.resource];
  return Math.min(1000, Math.ceil((1000 * cost[cost.length - 1]) / D.dense[state.resource]));
};

// The fewest steps after which the cost is at most the limit; costs fall.
function steps(cost, most) {
  let low = 0;
  let high = cost.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cost[middle] <= most) high = middle;
    else low = middle + 1;
  }
  return low;
}

function take(step, leaves) {
  for (const player of step) {
    state.gone[player] = leaves ? 1 : 0;
    state.stay[owner[player]] += leaves ? -1 : 1;
    state.value += (leaves ? -1 : 1) * Math.max(D.value[player], 0);
  }
}

// Go to where the slider stands; only the steps between are taken (or taken back).
function settle() {
  const to = steps(state.path.cost[state.resource], limit());
  for (; state.k < to; state.k++) take(state.path.steps[state.k], true);
  for (; state.k > to; state.k--) take(state.path.steps[state.k - 1], false);
}

const way = (by) => D.paths[by === "global" ? `global:${state.resource}` : by];
// A plan is one size: other budgets are answered by the way it was made, where there is one.
const ahead = () => (state.path === D.paths.plan ? way(state.path.allocation) || way("global") : state.path);

function follow(by) {
  for (; state.k > 0; state.k--) take(state.path.steps[state.k - 1], false);
  state.path = way(by);
}

// What `shaprune.planning.plan.Plan.to_json` writes for this budget.
function plan() {
  const cost = {};
  for (const name of Object.keys(state.path.cost)) cost[name] = state.path.cost[name][state.k];
  return {
    schema: 1,
    kind: "plan",
    allocation: state.path.allocation,
    budget: state.path.budget || { [state.resource]: limit() },
    kept: Array.from(state.gone, (gone) => 1 - gone),
    cost,
    removed: D.names.filter((_, i) => state.gone[i]),
    players: D.plan.players,
  };
}

const number = (x) => (x === null ? "?" : Number.isInteger(x) ? x.toLocaleString("en") : Number(x.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));
const percent = (x) => `${(100 * x).toFixed(1)} %`;
