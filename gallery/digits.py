# %% [markdown]
# # Halve a network that reads handwritten digits
#
# The 1,797 digits of scikit-learn, a small convolutional network, half of its multiply-adds removed: train, ask what
# every channel contributes, look at the answer, cut, and win back what was lost without training.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import shaprune as sp

torch.manual_seed(0)
pixels, classes = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
labels = torch.tensor(classes)
order = torch.randperm(len(images))
train, held_out, test = ((images[part], labels[part]) for part in order.split((1200, 300, 297)))

# %% [markdown]
# ## A network

# %%
conv = [nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
model = nn.Sequential(*conv, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
adam = torch.optim.Adam(model.parameters(), 2e-3)
for _ in range(12):
    for rows in torch.randperm(1200).split(64):
        adam.zero_grad()
        nn.functional.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
        adam.step()
model.eval()


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        return float((network(test[0]).argmax(1) == test[1]).float().mean())


print(f"trained: {accuracy(model):.1%} of the test images are read")

# %% [markdown]
# ## What every channel contributes
#
# One game per layer. The worth of a coalition of channels is how close the network's outputs stay to its own when only
# these channels are kept (no labels needed); coalitions keep at least half of a layer, because half will be kept.

# %%
players = sp.find_players(model, images[:1])
print(players.summary())
scores = sp.score(model, players, [held_out], worth="fidelity", progress=False)

# %% [markdown]
# ## Decide, cut, refit
#
# The refit solves one least-squares problem per layer, so that it answers as before from the inputs that are left.

# %%
plan = sp.plan(scores, sp.Budget(macs=0.5))
print(plan.summary())
small = sp.prune(model, plan, images[:1])
refitted = sp.recover(small, teacher=model, plan=plan, data=[train], steps=("refit",))
print(f"cut: {accuracy(small):.1%}, refitted: {accuracy(refitted):.1%}")

# %%
figure, axes = plt.subplots(1, len(scores), figsize=(9, 2.8), layout="constrained")
for axis, group in zip(axes, players.groups, strict=True):
    values, kept = scores[group.name], plan.kept[group.indices]
    ranking = values.ranking()[::-1]
    colours = ["#2563eb" if kept[player] else "#cbd5e1" for player in ranking]
    axis.bar(range(len(ranking)), values.value[ranking], yerr=2 * values.stderr[ranking], color=colours)
    axis.set(title=f"layer {group.name}: {kept.sum()} of {len(kept)} stay", xlabel="players, best first")
axes[0].set_ylabel("value, two standard errors")
figure.savefig("digits.png", dpi=80)
